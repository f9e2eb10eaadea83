"""`python -m idcrafter build-dataset` and `check-dataset`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..host import load_pack, pack_module
from .builder import REPORT, build_dataset
from .picture import draw_dataset
from .plan import BuildSettings
from .reader import read_dataset

log = logging.getLogger("idcrafter")

SHEET = "sheet.jpg"
_DEFAULTS = BuildSettings()


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add both to a command line; each sets `run`, which takes the options and returns the exit code."""
    build = commands.add_parser(
        "build-dataset",
        help="make a data set for adapter training of raw clips",
        description="Makes a data set for adapter training of raw clips: people found, windows cut, references taken "
        "from other moments, masks and captions. Goes on where it stopped. What was left out, and why, is in "
        f"{REPORT}; {SHEET} shows everything.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    build.add_argument("clips", type=Path, help="folder of video files; a .txt beside one is its caption")
    build.add_argument("out", type=Path, help="folder of the data set")
    build.add_argument("--licence", required=True, help="under which the clips may be used; travels into the adapter")
    build.add_argument("--faces", default="buffalo_l", help="face detector, as in Load Face Analyzer")
    build.add_argument("--recogniser", default="auto", help="face recogniser, as in Load Face Analyzer")
    build.add_argument("--provider", default="auto", choices=("auto", "cuda", "cpu"), help="where they run")
    build.add_argument("--frames", type=int, default=_DEFAULTS.frames, help="of a window, 4 n + 1")
    build.add_argument("--fps", type=float, help="of the windows; without it each clip's own")
    build.add_argument("--min-face", type=float, default=_DEFAULTS.min_face, help="side of a face in pixels")
    build.add_argument("--min-sharpness", type=float, default=_DEFAULTS.min_sharpness, help="of a face")
    build.add_argument(
        "--min-share", type=float, default=_DEFAULTS.min_share, help="of a window's frames with the face"
    )
    build.add_argument("--references", type=int, default=_DEFAULTS.references, help="moments a subject, at most")
    build.add_argument("--gap", type=float, default=_DEFAULTS.gap, help="seconds between window and reference")
    build.add_argument("--across-clips", action="store_true", help="references from other clips of the person, too")
    build.add_argument("--same", type=float, default=_DEFAULTS.same, help="cosine from which two tracks are one person")
    build.add_argument("--seed", type=int, default=_DEFAULTS.seed, help="draws where windows lie")
    build.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $IDCRAFTER_COMFYUI)")
    build.set_defaults(run=run_build)
    check = commands.add_parser("check-dataset", help="say what is wrong with a data set, and draw it")
    check.add_argument("folder", type=Path, help="folder of the data set")
    check.set_defaults(run=run_check)


def run_build(options: argparse.Namespace) -> int:
    settings = BuildSettings(
        frames=options.frames,
        fps=options.fps,
        min_face=options.min_face,
        min_sharpness=options.min_sharpness,
        min_share=options.min_share,
        references=options.references,
        gap=options.gap,
        across=options.across_clips,
        same=options.same,
        seed=options.seed,
    )
    faces = pack_module(load_pack(options.comfyui), "model_loaders.faces")
    analyzer = faces.load_named_analyzer(options.faces, options.recogniser, options.provider)
    for line in faces.summary(analyzer).splitlines():
        log.info(line)
    report = build_dataset(options.clips, options.out, analyzer, options.licence, settings, on_progress=_Log().tell)
    for entry in report["left_out"]:
        span = f", frames {entry['first']} to {entry['last']}" if entry["first"] else ""
        log.info("left out: %s%s, %s: %s", entry["clip"], span, entry["what"], entry["reason"])
    made = report["clips"]
    log.info(
        "%d clips with %d subjects from %d raw clips in %s; %d things were left out, see %s",
        len(made),
        sum(len(clip["subjects"]) for clip in made),
        report["raw_clips"],
        options.out,
        len(report["left_out"]),
        REPORT,
    )
    return run_check(argparse.Namespace(folder=options.out))


def run_check(options: argparse.Namespace) -> int:
    dataset = read_dataset(options.folder)
    draw_dataset(dataset).save(options.folder / SHEET, quality=90)
    seconds = sum(clip.seconds for clip in dataset.clips)
    log.info(
        "%d clips, %.0f seconds, licences: %s; %s shows them",
        len(dataset.clips),
        seconds,
        ", ".join(dataset.licences),
        options.folder / SHEET,
    )
    return 0


class _Log:
    """Progress as lines of the log, one a tenth."""

    def __init__(self):
        self.tenth = -1

    def tell(self, done: int, total: int, what: str) -> None:
        # The total grows when windows are known, and never shows less than before.
        tenth = 10 * done // max(total, 1)
        if tenth > self.tenth:
            self.tenth = tenth
            log.info("frame %d of %d: %s", done, total, what)
