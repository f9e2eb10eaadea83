"""What reinforcement learning on the nano stack's own takes does for people whom nobody has trained on.

A row is a LoRA of `idcrafter/nano/recipes/rl.py` (METHOD-SEED.safetensors in the folder of --loras, or those that come
with the pack), or the two that are worn together, of one seed (`ipro_dpo`), or `before`, the model without any. All
rows make the same clips: two sealed identities in the world of crowds, with stories, references and noise that no
collection has seen. LoRAs of another model than the bundle's are refused.

The measures of a clip (means over clips, with 95 % bootstrap intervals):

    reward            what takes were collected with, but for copy_paste, which one photo cannot tell: the identity
                      score, gated by motion (`rewards/terms.py`, recommended_reward)
    identity_mean     cosine of the face that is assigned to a subject, 0 where there is none, mean of the subjects
    identity_worst    the same of the worst subject
    monitor           identity_mean by the monitor, an embedder that no reward has used, with a gallery of its own
    motion            optical flow (`rewards/motion.py`)
    relation_accuracy share of the story's relations that are to be seen (`_relation_scores.py`): who stands where, who
                      changes places, who hides behind whom
    facesim           OpenS2V's, the reward of the run `gamed`

Keys of the result: `rows`, the measures of each; `methods`, for each before, after and relative gains over all its
seeds (a clip counts once, with the mean of the seeds); `best_method`, by its gain in reward; and of it `relative_gain`,
`monitor_gain_low` (lower end of the interval), `motion_ratio`, `relation_ratio`; `permuted_gain_high` (upper end of the
control's gain); `hacking`: gains of `gamed` and of the best method in facesim, identity_worst, monitor and motion;
`required` and `met`.

A run that was broken off goes on where it was, with the same --work folder; that also gets a contact sheet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ablation
import numpy as np
import torch
from ablation import inprocess, nano, scores

inprocess.prepare_path()

import _relation_scores as relations  # noqa: E402 - it imports idcrafter

from idcrafter.nano import install  # noqa: E402
from idcrafter.nano.recipes.rl import STACKED  # noqa: E402
from idcrafter.rewards import identity, motion, opens2v  # noqa: E402

CLIPS = 64
MONITOR = "idcrafter_nano_monitor"
BEFORE, PERMUTED, GAMED = "before", "permuted", "gamed"
CONTROLS = (PERMUTED, GAMED)
MEASURES = (
    "reward", "identity_mean", "identity_worst", "monitor", "motion", "relation_accuracy", "facesim",
)  # fmt: skip
REQUIRED = {
    "relative_gain": 0.10, "monitor_gain_low": 0.0, "motion_ratio": 0.95, "relation_ratio": 0.95,
    "permuted_gain_high": 0.05,
}  # fmt: skip
STACK = "_".join(STACKED)
_FILE = re.compile(r"(?P<method>\w+)-(?P<seed>\d+)")


class RlBench(ablation.Bench):
    """The clips and the stack of the ablation, on the bundle's own model; with a monitor and what the rewards see."""

    scenes = 160_000  # the settings of the methods were chosen on those of the ablation, 140_000 and 150_000

    def __init__(self, clips: int, steps: int = ablation.STEPS):
        super().__init__({2: clips}, steps, "nano.json")
        module = self.stack.pack.submodule
        own = self.stack.analyzer
        self.stack.analyzer = self.monitor = module("model_loaders.faces").load_named_analyzer(MONITOR, "auto", "cpu")
        self.monitor_gallery = np.stack([self._portrait(who) for who in range(ablation.GALLERY)])
        self.stack.analyzer = own
        hashes = module("idcrafter.rollouts.provenance").patcher_hashes(self.stack.model, self.files.sha256_of)
        self.policy = hashes["policy"]

    def lora_row(self, name: str, files: dict[str, Path]) -> ablation.Row:
        """The row of all LoRAs in `files` (by run) at once; ValueError for those of another model."""
        model, digests, facts = self.stack.model, {}, {}
        for run, path in files.items():
            said = self.files.read_header(path).metadata
            if said.get("policy") != self.policy:
                raise ValueError(f"'{path.name}' was trained on another model than the bundle's; train it again.")
            model = self.lora.apply_lora(model, self.lora.load_lora(path, model).weights, 1.0)
            digests[f"{run}.safetensors"] = hashlib.sha256(path.read_bytes()).hexdigest()
            known = {key: said[key] for key in ("method", "steps", "rank", "seed", "data")}
            facts[run] = known | {"sha256": digests[f"{run}.safetensors"]}
        return ablation.Row(name, model, None, {"loras": facts}, self._key(name, digests))

    def measure(self, clip: ablation.Clip, frames: torch.Tensor) -> dict:
        """The measures of the module."""
        found = self.stack.analyzer.analyze_frames(frames)
        pixels, people = frames.numpy(), clip.people
        seen = scores.measure_clip(clip.ends, pixels, found, people, self.gallery, self.fps)
        watched = self.monitor.embed(frames, found)
        monitor = scores.measure_clip(clip.ends, pixels, watched, people, self.monitor_gallery, self.fps)
        moved = float(np.mean([motion.motion(*pair) for pair in zip(frames, frames[1:], strict=False)]))
        subjects = self.gallery[list(people)]
        score = identity.score_identity(
            [identity.FrameFaces.of(faces, subjects.shape[1]) for faces in found],
            subjects,
            times=[t / self.fps for t in range(len(found))],
        ).score
        gate = min(1.0, moved / motion.FLOOR)
        return {
            "reward": 0.0 if scores.is_still(pixels) else float(score) * gate,
            "identity_mean": seen["similarity"],
            "identity_worst": seen["worst_subject"],
            "monitor": monitor["similarity"],
            "motion": moved,
            "relation_accuracy": relations.right(relations.relations(clip.truth, clip.ends, found, subjects)),
            "facesim": opens2v.face_sim(found, subjects[0]),
        }


def loras_in(folder: Path | None) -> dict[str, Path]:
    """Files by run: those of a folder that the recipe trained into, or without one those that come with the pack."""
    if folder is None:
        return {run: install.WEIGHTS / kind / name for run, (kind, name) in install.RL_LORAS.items()}
    return {path.stem: path for path in sorted(folder.glob("*.safetensors")) if _FILE.fullmatch(path.stem)}


def rows_of(loras: dict[str, Path], only: Sequence[str] | None = None) -> dict[str, dict[str, Path]]:
    """The files of each row that can be made of LoRAs, or of those named in `only`; `before` has none."""
    rows = {run: {run: path} for run, path in loras.items()}
    for seed in sorted({_FILE.fullmatch(run)["seed"] for run in loras}):
        parts = [f"{method}-{seed}" for method in STACKED]
        if all(part in loras for part in parts):
            rows[f"{STACK}-{seed}"] = {part: loras[part] for part in parts}
    return {BEFORE: {}} | {name: files for name, files in rows.items() if only is None or name in only}


def summarise(clips: Sequence[dict]) -> dict:
    """Means of the measures of clips with their intervals."""
    found: dict = {"clips": len(clips), **_means(clips)}
    for name in MEASURES:
        values = np.array([clip[name] for clip in clips], np.float64)
        found[f"{name}_ci95"] = scores.bootstrap(lambda i, values=values: values[i].mean(), len(values))
    return found


def result_of(facts: dict[str, dict], measured: dict[str, list[dict]]) -> dict:
    """The result from the measures of each row's clips; None for what needs rows that are not there.

    facts  of each row, for its part of the result
    """
    base = measured[BEFORE]
    runs: dict[str, list[str]] = {}
    for name in measured:
        if match := _FILE.fullmatch(name):
            runs.setdefault(match["method"], []).append(name)
    pooled = {method: _mean_of([measured[name] for name in names]) for method, names in runs.items()}
    methods = {}
    for method, clips in pooled.items():
        gains = {name: dict(zip(("gain", "ci95"), scores.gain(clips, base, name), strict=True)) for name in MEASURES}
        methods[method] = {
            "seeds": sorted(int(_FILE.fullmatch(name)["seed"]) for name in runs[method]),
            "before": _means(base),
            "after": _means(clips),
            "gains": gains,
        }
    trained = [method for method in methods if method not in CONTROLS]
    gained = {method: methods[method]["gains"]["reward"]["gain"] for method in trained}
    best = max((method for method in trained if gained[method] is not None), key=gained.get, default=None)
    result: dict = {"best_method": best, **_summary(methods, best)}
    result["hacking"] = {
        what: {
            name: methods[method]["gains"][name]
            for name in ("facesim", "identity_worst", "monitor", "motion", "relation_accuracy")
        }
        for what, method in (("gamed", GAMED), ("shipped", best))
        if method in methods
    }
    result["required"] = REQUIRED
    result["met"] = {name: _met(name, result[name], limit) for name, limit in REQUIRED.items()}
    result["methods"] = methods
    result["rows"] = {name: {**facts[name], **summarise(clips)} for name, clips in measured.items()}
    return result


def _means(clips: Sequence[dict]) -> dict[str, float]:
    return {name: round(float(np.mean([clip[name] for clip in clips])), 4) for name in MEASURES}


def _mean_of(rows: Sequence[Sequence[dict]]) -> list[dict]:
    """One measure a clip, the mean over the rows."""
    return [
        {name: float(np.mean([each[name] for each in same])) for name in MEASURES} for same in zip(*rows, strict=True)
    ]


def _summary(methods: dict[str, dict], best: str | None) -> dict:
    def gain(method: str | None, name: str, end: int | None = None) -> float | None:
        found = methods.get(method, {}).get("gains", {}).get(name, {"gain": None, "ci95": None})
        return found["gain"] if end is None else found["ci95"] and found["ci95"][end]

    def ratio(name: str) -> float | None:
        found = gain(best, name)
        return None if found is None else round(1 + found, 4)

    return {
        "relative_gain": gain(best, "reward"),
        "monitor_gain_low": gain(best, "monitor", 0),
        "permuted_gain_high": gain(PERMUTED, "reward", 1),
        "motion_ratio": ratio("motion"),
        "relation_ratio": ratio("relation_accuracy"),
    }


def _met(name: str, value: float | None, limit: float) -> bool | None:
    if value is None:
        return None
    return value <= limit if name.endswith("high") else value > limit if name.endswith("low") else value >= limit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="an eighth of the clips")
    parser.add_argument("--loras", type=Path, help="folder of trained runs (default: those that come with the pack)")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="these, as nft-0, instead of all that are there")
    parser.add_argument("--clips", type=int, default=CLIPS, help="default: %(default)s")
    parser.add_argument("--work", type=Path, help="folder for what is done, and sheets (default: FILE's name, -work)")
    arguments = parser.parse_args()
    files = rows_of(loras_in(arguments.loras), arguments.only)
    if len(files) == 1:
        parser.error(
            f"no such LoRAs in '{arguments.loras or 'the pack'}'; 'python -m idcrafter.nano rl' trains them into a "
            "folder, which --loras names"
        )
    work = scores.Work(arguments.work or arguments.json.with_name(f"{arguments.json.stem}-work"))
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        from comfy.utils import set_progress_bar_enabled

        set_progress_bar_enabled(False)
        with torch.inference_mode():
            bench = RlBench(max(1, arguments.clips // (8 if arguments.quick else 1)))
            rows = [bench.lora_row(name, own) for name, own in files.items()]
            measured = ablation.run_rows(bench, rows, work, {})
    result = result_of({row.name: row.facts for row in rows}, measured)
    result |= {"steps": bench.steps, "cfg_text": nano.CFG_TEXT, "cfg_images": nano.CFG_IMAGES}
    work.draw_sheet([row.name for row in rows], bench.clips)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
