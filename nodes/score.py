"""Which take is best, and proof of it."""

import json
import logging
import os
import platform

import comfy.model_management
import comfy.utils
import comfyui_version
import folder_paths
import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..idcrafter.rewards.crops import cut_crops
from ..idcrafter.rewards.evidence import (
    ClipEvidence,
    NotFiniteError,
    TensorFrames,
    gather_evidence,
    scored_subjects,
)
from ..idcrafter.rewards.record import BAD_PIXELS, clip_record, failed_record
from ..idcrafter.rewards.scorecard import (
    build_scorecard,
    latent_digest,
    spread_frames,
    validate_report,
    write_report,
)
from ..idcrafter.rewards.scorecard_picture import draw_scorecard
from ..idcrafter.rewards.table import report_table
from ..idcrafter.rewards.terms import measure_terms
from ..idcrafter.rewards.timeline import draw_timeline
from .shown import show
from .types import CastType, FaceAnalyzerType, RewardType, ScorecardType, TakesType

log = logging.getLogger(__name__)


class ScoreTakes(io.ComfyNode):
    """Takes + cast -> who is there, how recognisable, in every take."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterScoreTakes",
            display_name="Score Takes (IDCrafter)",
            category="IDCrafter/score",
            description="Finds each subject's face in the frames of every take and scores how well all are kept, the "
            "worst as much as the average. Missing, extra and exchanged people cost points.",
            search_aliases=["idcrafter", "face similarity", "identity score", "best of n", "arcface", "rank"],
            inputs=[
                TakesType.Input("takes", tooltip="From Sample Takes; each take is scored, whatever their number."),
                io.Vae.Input("vae", tooltip="The VAE of the model that made the takes. One take is decoded at a time."),
                CastType.Input("cast", tooltip="The cast from Extract Faces."),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=0,
                    max=4096,
                    tooltip="Frames scored per take, spread evenly; 0 = all. More frames find shorter lapses and take "
                    "longer (each frame is one face detection).",
                ),
                reward_input(),
                monitor_input(),
            ],
            outputs=[
                ScorecardType.Output(display_name="scorecard"),
                io.Image.Output(display_name="timeline", tooltip="Similarity of each subject over the frames."),
                io.String.Output(display_name="table", tooltip="One line per take, the best one starred."),
                io.Image.Output(
                    display_name="picture",
                    tooltip="The best take for people: of each subject the photo, the best and the worst frame, the "
                    "similarity over time and a verdict in words.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @override
    def execute(cls, takes, vae, cast, frames=16, reward=None, monitor=None) -> io.NodeOutput:
        scored_subjects(cast)  # before any decoding
        progress = comfy.utils.ProgressBar(len(takes.takes))
        records, crops = [], []
        for i, take in enumerate(takes.takes):
            facts = {
                "seed": take.seed,
                "seconds": round(take.seconds, 3),
                "resumed": take.resumed,
                "latent_sha256": latent_digest(take.samples),
            }
            evidence = _take_evidence(takes, take, vae, cast, frames, monitor, Progress(progress, i, len(takes.takes)))
            record, cut = measure_clip(evidence, cast, reward, f"take {i}")
            del evidence  # and with it the decoded frames
            records.append({**facts, **record})
            crops.append(cut)
        scorecard = build_scorecard(
            cast,
            records,
            sampling={
                "base_seed": takes.base_seed,
                "sampler": takes.sampler,
                "steps": max(len(takes.sigmas) - 1, 0),
                "sigmas": [round(float(sigma), 6) for sigma in takes.sigmas],
            },
            model=takes.model,
            software=software(),
            monitor=monitor and monitor.describe(),
            reward=reward,
            search=takes.search,
        )
        report = scorecard.report
        table = report_table(report)
        picture = draw_scorecard(report, crops[report["best"]])
        return io.NodeOutput(scorecard, draw_timeline(report), table, picture, ui=show(cls, table))


class PickTake(io.ComfyNode):
    """Takes + scorecard -> one take, and the report on disk."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterPickTake",
            display_name="Pick Take (IDCrafter)",
            category="IDCrafter/score",
            description="Hands on the best take, or one that you name, and saves the report of all takes as JSON "
            "and CSV in the output folder.",
            search_aliases=["idcrafter", "best take", "select", "choose seed", "save report", "save json"],
            inputs=[
                TakesType.Input("takes", tooltip="From Sample Takes, the same that were scored."),
                ScorecardType.Input("scorecard", tooltip="From Score Takes, of the same takes."),
                io.Vae.Input("vae", tooltip="Decodes the chosen take."),
                io.Int.Input(
                    "take",
                    default=-1,
                    min=-1,
                    max=63,
                    tooltip="-1 = the take with the highest reward, or score without one. Otherwise its number in the "
                    "table, from 0.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="idcrafter/report",
                    tooltip="Where the report goes, inside the output folder; a number, .json and .csv are appended. "
                    "%year%, %month%, %day% and so on work as in Save Image.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The chosen take."),
                io.Image.Output(display_name="images", tooltip="Its decoded frames."),
                io.String.Output(display_name="report", tooltip="The saved report, as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    @override
    def execute(cls, takes, scorecard, vae, take=-1, filename_prefix="idcrafter/report") -> io.NodeOutput:
        report = scorecard.report
        validate_report(report)
        _check_same_takes(takes, report)
        count = len(takes.takes)
        if not -1 <= take < count:
            raise ValueError(f"Take {take} does not exist; choose 0 to {count - 1}, or -1 for the best.")
        picked = report["best"] if take == -1 else take
        # Refuses a prefix that leaves the output folder, so it comes before the decoding.
        folder, filename, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        chosen = takes.takes[picked]
        video = takes.video(chosen)
        images = _decode(vae, video) if torch.isfinite(chosen.samples).all() else None
        if images is None or not torch.isfinite(images).all():
            raise ValueError(f"Take {picked} holds NaN or infinite values; pick another take.")
        report = {**report, "picked": picked}
        file = f"{filename}_{counter:05}.json"
        write_report(report, os.path.join(folder, file))
        best = "the highest reward" if "reward" in report else "the highest score"
        how = best if take == -1 else "chosen by number"
        text = (
            f"Take {picked} (seed {chosen.seed}, score {report['takes'][picked]['score']:.3f}): {how}.\n\n"
            f"{report_table(report)}\n\nReport: {os.path.join(subfolder, file)}"
        )
        return io.NodeOutput(
            {"samples": video},
            images,
            json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False),
            ui={"text": (text,), "files": saved(file, subfolder)},
        )


def reward_input() -> io.Input:
    return RewardType.Input(
        "reward",
        optional=True,
        tooltip="From Reward: what makes a take the best. Without it the score does. The score is reported either way.",
    )


def monitor_input() -> io.Input:
    return FaceAnalyzerType.Input(
        "monitor",
        optional=True,
        tooltip="A second face analyzer that looks at the same faces. Its numbers are only reported: where they stay "
        "low while the score is high, the score was gamed.",
    )


class Progress:
    """Calls for each scored frame of clip `index` of `count`; its update is also where an interrupt takes effect."""

    def __init__(self, bar: comfy.utils.ProgressBar, index: int, count: int):
        self._bar, self._index, self._count = bar, index, count
        self._done, self._frames = 0, 1

    def expect(self, frames: int) -> "Progress":
        """How many frames this clip has; all others are taken to have as many."""
        self._frames = frames
        return self

    def __call__(self) -> None:
        self._done += 1
        self._bar.update_absolute(self._index * self._frames + self._done, self._count * self._frames)

    def skip(self) -> None:
        self._done = self._frames - 1
        self()


def _take_evidence(takes, take, vae, cast, wanted: int, monitor, progress: Progress) -> ClipEvidence | str:
    """The evidence of one take, or why there is none; the others go on."""
    if not torch.isfinite(take.samples).all():
        log.warning("The take of seed %d holds NaN or infinite values and scores 0.", take.seed)
        progress.skip()
        return "the latent holds NaN or infinite values"
    source = TensorFrames(_decode(vae, takes.video(take)))
    indices = spread_frames(source.length, wanted)
    try:
        return gather_evidence(source, indices, cast, None, monitor, "", progress.expect(len(indices)))
    except NotFiniteError as error:
        log.warning("The take of seed %d scores 0. %s", take.seed, error)
        return BAD_PIXELS


def measure_clip(evidence: ClipEvidence | str, cast, reward, name: str = "the clip") -> tuple[dict, dict]:
    """The record of a clip, with a reward its raw terms, and the crops for the picture. Errors call the clip `name`."""
    failed = isinstance(evidence, str)
    record = failed_record(cast, evidence) if failed else clip_record(evidence)
    if reward is not None:
        check = comfy.model_management.throw_exception_if_processing_interrupted
        record["terms"] = None if failed else measure_terms(evidence, reward, check, name)
    return record, {} if failed else cut_crops(evidence)


def software() -> dict:
    return {
        "comfyui": comfyui_version.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def saved(file: str, subfolder: str) -> list[ui.SavedResult]:
    """The report and the CSV beside it."""
    names = (file, os.path.splitext(file)[0] + ".csv")
    return [ui.SavedResult(name, subfolder, io.FolderType.output) for name in names]


def _decode(vae, samples: torch.Tensor) -> torch.Tensor:
    """Latent [1, C, T, h, w] -> frames [T, H, W, 3], as core's VAEDecode does it."""
    images = vae.decode(samples)
    if images.ndim == 5:
        images = images.reshape(-1, *images.shape[-3:])
    return images[..., :3]


def _check_same_takes(takes, report: dict) -> None:
    """ValueError unless the report speaks of exactly these takes."""
    scored = [record["latent_sha256"] for record in report["takes"]]
    given = [latent_digest(take.samples) for take in takes.takes]
    if scored != given:
        raise ValueError(
            f"The scorecard was made from other takes ({len(scored)} scored, {len(given)} given); connect takes and "
            "scorecard of the same Sample Takes node."
        )


NODES = [ScoreTakes, PickTake]
