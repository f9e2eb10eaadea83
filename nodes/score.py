"""Which take is best, and proof of it."""

import json
import logging
import os
import platform

import comfy.utils
import comfyui_version
import folder_paths
import torch
from comfy_api.latest import io, ui
from typing_extensions import override

from ..idcrafter.rewards.scorecard import (
    build_scorecard,
    failed_record,
    latent_digest,
    score_clip,
    scored_faces,
    spread_frames,
    validate_report,
    write_report,
)
from ..idcrafter.rewards.table import report_table
from ..idcrafter.rewards.timeline import draw_timeline
from .types import CastType, ScorecardType, TakesType

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
            ],
            outputs=[
                ScorecardType.Output(display_name="scorecard"),
                io.Image.Output(display_name="timeline", tooltip="Similarity of each subject over the frames."),
                io.String.Output(display_name="table", tooltip="One line per take, the best one starred."),
            ],
        )

    @classmethod
    @override
    def execute(cls, takes, vae, cast, frames=16) -> io.NodeOutput:
        scored_faces(cast)  # before any decoding
        progress = comfy.utils.ProgressBar(len(takes.takes))
        records = []
        for i, take in enumerate(takes.takes):
            records.append(
                {
                    "seed": take.seed,
                    "seconds": round(take.seconds, 3),
                    "resumed": take.resumed,
                    "latent_sha256": latent_digest(take.samples),
                    **_score_take(take, vae, cast, frames, progress, i, len(takes.takes)),
                }
            )
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
            software={
                "comfyui": comfyui_version.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
        )
        table = report_table(scorecard.report)
        return io.NodeOutput(scorecard, draw_timeline(scorecard.report), table, ui=ui.PreviewText(table))


class PickTake(io.ComfyNode):
    """Takes + scorecard -> one take, and the report on disk."""

    @classmethod
    @override
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterPickTake",
            display_name="Pick Take (IDCrafter)",
            category="IDCrafter/score",
            description="Hands on the best take, or one that you name, and saves the report of all takes as JSON in "
            "the output folder.",
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
                    tooltip="-1 = the take with the highest score. Otherwise its number in the table, from 0.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="idcrafter/report",
                    tooltip="Where the report goes, inside the output folder; a number and .json are appended. "
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
        images = _decode(vae, chosen.samples) if torch.isfinite(chosen.samples).all() else None
        if images is None or not torch.isfinite(images).all():
            raise ValueError(f"Take {picked} holds NaN or infinite values; pick another take.")
        report = {**report, "picked": picked}
        file = f"{filename}_{counter:05}.json"
        write_report(report, os.path.join(folder, file))
        how = "the highest score" if take == -1 else "chosen by number"
        text = (
            f"Take {picked} (seed {chosen.seed}, score {report['takes'][picked]['score']:.3f}): {how}.\n\n"
            f"{report_table(report)}\n\nReport: {os.path.join(subfolder, file)}"
        )
        return io.NodeOutput(
            {"samples": chosen.samples},
            images,
            json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False),
            ui={"text": (text,), "files": [ui.SavedResult(file, subfolder, io.FolderType.output)]},
        )


def _score_take(take, vae, cast, wanted: int, progress, index: int, count: int) -> dict:
    """The record of one take. A take that is not finite is noted and scores 0, the others go on."""
    if not torch.isfinite(take.samples).all():
        log.warning("Take %d (seed %d) holds NaN or infinite values and scores 0.", index, take.seed)
        progress.update_absolute(index + 1, count)
        return failed_record(cast, "the latent holds NaN or infinite values")
    images = _decode(vae, take.samples)
    indices = spread_frames(len(images), wanted)
    done = 0

    def on_frame():
        # All takes have as many frames as this one. Its update is also where an interrupt takes effect.
        nonlocal done
        done += 1
        progress.update_absolute(index * len(indices) + done, count * len(indices))

    return score_clip(images, indices, cast, on_frame)


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
