"""How well any clip keeps its people, and proof of it."""

import json
import os

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import InputImpl, io, ui
from PIL import Image
from typing_extensions import override

from ..idcrafter.rewards.evidence import TensorFrames, VideoFrames, gather_evidence, scored_subjects
from ..idcrafter.rewards.scorecard import build_scorecard, spread_frames, write_report
from ..idcrafter.rewards.scorecard_picture import draw_scorecard
from ..idcrafter.rewards.table import report_table
from ..idcrafter.subjects.faces import to_uint8
from .score import Progress, measure_clip, monitor_input, reward_input, saved, software
from .types import CastType, ScorecardType


class ScoreVideo(io.ComfyNode):
    """Any clip + cast -> who is there, how recognisable."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterScoreVideo",
            display_name="Score Video (IDCrafter)",
            category="IDCrafter/score",
            description="Finds the cast in any video or frames and says who is there, how recognisable, and what went "
            "wrong: missing, exchanged, doubled or mixed people. Saves picture, JSON and CSV. No video model needed.",
            search_aliases=["idcrafter", "face similarity", "identity score", "evaluate video", "arcface", "csv"],
            inputs=[
                io.MultiType.Input(
                    "video",
                    types=[io.Video, io.Image],
                    tooltip="A VIDEO (Load Video), which is read a few frames at a time whatever its length, or frames "
                    "as IMAGE.",
                ),
                CastType.Input("cast", tooltip="The cast from Extract Faces."),
                io.Int.Input(
                    "frames",
                    default=64,
                    min=0,
                    max=1_000_000,
                    tooltip="Frames that are scored, spread evenly; 0 = all. Each is one face detection. Exchanged "
                    "people are only found where the frames are at most a second apart.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="idcrafter/scorecard",
                    tooltip="Where the results go, inside the output folder; a number and .json (report), .csv (every "
                    "scored frame) and .png (picture) are appended. %year%, %month%, %day% and so on work as in Save "
                    "Image.",
                ),
                reward_input(),
                monitor_input(),
            ],
            outputs=[
                ScorecardType.Output(display_name="scorecard"),
                io.Image.Output(
                    display_name="picture",
                    tooltip="Of each subject the photo, the best and the worst frame, the similarity over time and a "
                    "verdict in words.",
                ),
                io.String.Output(display_name="table", tooltip="The figures in one line, with all warnings."),
                io.String.Output(display_name="report", tooltip="The saved report, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(
        cls, video, cast, frames=64, filename_prefix="idcrafter/scorecard", reward=None, monitor=None
    ) -> io.NodeOutput:
        scored_subjects(cast)
        folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        source = _source(video)
        indices = spread_frames(source.length, frames)
        progress = Progress(comfy.utils.ProgressBar(len(indices)), 0, 1).expect(len(indices))
        record, crops = measure_clip(gather_evidence(source, indices, cast, None, monitor, "", progress), cast, reward)
        facts = {"seed": None, "seconds": None, "resumed": False, "latent_sha256": None}
        scorecard = build_scorecard(
            cast,
            [{**facts, **record}],
            sampling={},
            model={},
            software=software(),
            monitor=monitor and monitor.describe(),
            reward=reward,
        )
        report = scorecard.report
        picture, table = draw_scorecard(report, crops), report_table(report)
        stem = f"{filename}_{counter:05}"
        write_report(report, os.path.join(folder, f"{stem}.json"))
        Image.fromarray(to_uint8(picture[0])).save(os.path.join(folder, f"{stem}.png"))
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        shown = {
            "images": [ui.SavedResult(f"{stem}.png", subfolder, io.FolderType.output)],
            "text": (table,),
            "files": saved(f"{stem}.json", subfolder),
        }
        return io.NodeOutput(scorecard, picture, table, text, ui=shown)


def _source(video) -> TensorFrames | VideoFrames:
    """A VIDEO or IMAGE as frames that can be read one by one."""
    if isinstance(video, torch.Tensor):
        return TensorFrames(video)
    if isinstance(video, InputImpl.VideoFromFile):
        return VideoFrames(video.get_stream_source(), *video.get_active_trim_window())
    parts = video.get_components()
    return TensorFrames(parts.images, float(parts.frame_rate))


NODES = [ScoreVideo]
