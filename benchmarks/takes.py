"""What the take search gains, and what it costs, on the nano stack.

Groups of 8 takes of one shot: two identities that no training has seen, one prompt. First every take of a group is
sampled to its end and scored as Score Takes does it, on all frames; on the way its previews are scored as the search
does it, at several noise levels, and once at the first step while looking ahead. Then the real search
(IDCrafterSampleTakes with a budget of 3 generations) runs on the same seeds; a take that it finishes must equal the
take of the full run.

Keys of the result, scores in 0..1, gains over the mean of the group:

    bon8_gain      of the take with the best final score of all 8
    search_gain    of the take with the best final score among those that the search finished
    share          search_gain / bon8_gain; at least 0.83 is required
    search_cost    mean model passes of a search / passes of one generation, previews that look ahead included; at most
                   3.0 is allowed
    search_cost_with_decoding   the same and the time for decoding and scoring the previews, by the clock, in
                   generations; a preview of nano costs a fifth of one, because its DiT is small beside its VAE
    monitor        the gains of the same two choices by an embedder that had no say in them
    rho            mean rank correlation in a group of preview and final score, with the noise levels: by evaluations
                   ahead
    plan           the rungs that the search used, and the source of the curves that it was made from
    proposed       the curves and the plan that this run would propose

Gains, share and rho have a 95 % interval, bootstrapped over groups. The curves that the planner uses by default come
from other people and other seeds, with no search:

    python benchmarks/takes.py --curve idcrafter/sampling/preview_rho.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

import nano
from nano import inprocess

GROUPS, TAKES, BUDGET = 24, 8, 3.0
CURVE_GROUPS = 16
MOST_COST, LEAST_SHARE = 3.0, 0.83
AHEAD = (2, 3, 4)  # at the first step
PREVIEWS = 8  # noise levels at which plain previews are scored
MONITOR = "idcrafter_nano_monitor"
# First seeds of the scenes, of the photos, and of the takes, by whose identities they are.
SEEDS = {"sealed": (60_000, 70_000, 0), "val": (80_000, 90_000, 500_000)}


@dataclass
class Group:
    """One shot.

    measured  tensors: samples [N, C, T, h, w]; final and monitor [N], previews [N, K], ahead [N, A] scores
    record    of the search (`idcrafter/sampling/search.py`)
    finished  indices of the takes that the search finished
    seconds   that sampling one of them took, with its looks ahead
    """

    measured: dict[str, torch.Tensor]
    record: dict
    finished: list[int]
    seconds: float

    @property
    def final(self) -> np.ndarray:
        return self.measured["final"].numpy()

    @property
    def cost(self) -> float:
        return self.record["passes"] / self.record["passes_per_generation"]

    @property
    def cost_with_decoding(self) -> float:
        steps = self.record["steps"]
        generation = self.seconds * steps / (steps + sum(rung["ahead"] for rung in self.record["rungs"]))
        return self.cost + (self.record["decode_seconds"] + self.record["score_seconds"]) / generation

    @property
    def chosen(self) -> int:
        return max(self.finished, key=lambda k: self.final[k])


class Shot:
    """The inputs of one group: two people of the split, a scene of them, and the seeds of its takes."""

    def __init__(self, bench: Bench, index: int):
        scene_seed, photo_seed, take_seed = SEEDS[bench.split]
        people = bench.people[2 * index : 2 * index + 2]
        spec = bench.world.sample_clip_spec(tuple(people), scene_seed + index)
        photos = [torch.from_numpy(bench.world.render_photo(who, photo_seed + index, 128)[0]) / 255 for who in people]
        self.cast = bench.stack.pack.execute(
            "IDCrafterExtractFaces",
            cast=bench.stack.cast_of(photos),
            face_analyzer=bench.stack.analyzer,
            no_face="error",
            several_faces="error",
        )[0]
        size = (bench.scene.WIDTH, bench.scene.HEIGHT, bench.scene.FRAMES)
        self.inputs = bench.stack.shot_of(self.cast, bench.caption(spec, 0)[0], size)
        self.seed = take_seed + 1000 * index


class Bench:
    """The stack and the modules of the pack that are measured."""

    def __init__(self, split: str, groups: int, takes: int, budget: float, folder: Path):
        self.stack = stack = nano.Stack()
        module = stack.pack.submodule
        self.world, self.scene = module("idcrafter.nano.world"), module("idcrafter.nano.world.scene")
        self.caption = module("idcrafter.nano.recipes.text").caption
        self.plan, self.tape, self.run = (module(f"idcrafter.sampling.{name}") for name in ("plan", "tape", "run"))
        self.evidence, self.record = module("idcrafter.rewards.evidence"), module("idcrafter.rewards.record")
        self.identity = module("idcrafter.rewards.identity")
        self.scorer_of = module("idcrafter.sampling.preview").PreviewScorer
        self.guider_of = module("idcrafter.sampling.guiders").make_guider
        self.monitor = module("model_loaders.faces").load_named_analyzer(MONITOR, provider="cpu")
        self.split, self.groups, self.takes, self.budget, self.folder = split, groups, takes, budget, folder
        numbers = islice(self.world.numbers_of_split(split), 2 * groups)
        self.people = [self.world.sample_identity(number) for number in numbers]
        self.sigmas = [float(sigma) for sigma in stack.sigmas]
        steps = len(self.sigmas) - 1
        self.started = time.time()
        self.looked_at = sorted({round(p) for p in np.linspace(1, steps - 1, PREVIEWS)})  # steps done

    def measure(self, index: int) -> dict[str, torch.Tensor]:
        """`Group.measured` of this group, from `folder` if it is there."""
        file = self.folder / f"{self.split}-{self.takes}-{index:02}.safetensors"
        if not file.is_file():
            shot = Shot(self, index)
            names = ("model", "positive", "negative_text", "negative_images", "cfg_text", "cfg_images")
            guider = self.guider_of(*(shot.inputs[name] for name in names))
            latent = self.run.prepare_latent(guider.model_patcher, shot.inputs["latent_image"])
            rows = [self.take(guider, latent, shot.seed + k, shot.cast) for k in range(self.takes)]
            measured = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
            _write(file, safetensors.torch.save(measured))
        return safetensors.torch.load_file(file)

    def take(self, guider, latent, seed: int, cast) -> dict[str, torch.Tensor]:
        """One take to its end, with the scores of its previews."""
        score = self.scorer_of(self.stack.vae, cast)
        tape, sigmas, sampler = self.tape.Tape(), self.stack.sigmas, self.stack.sampler
        out_of = guider.model_patcher.model.process_latent_out
        shown = {}

        def on_step(step, x0, x, total):
            if step + 1 in self.looked_at:
                shown[step + 1] = out_of(x0.float()).cpu()

        ahead = []
        for count in AHEAD:
            levels = self.plan.ahead_sigmas(self.sigmas, 1, count)
            ahead.append(self.tape.play(guider, sampler, sigmas, latent, seed, tape, self.sigmas[0], levels).samples)
        whole = self.tape.play(guider, sampler, sigmas, latent, seed, tape, None, on_step=on_step).samples
        source = self.evidence.TensorFrames(self.stack.decode(whole))
        clip = self.evidence.gather_evidence(source, range(source.length), cast, monitor=self.monitor)
        # The finished take as the last preview: what few frames, each decoded alone, lose.
        previews = [shown[step] for step in self.looked_at] + [whole]
        scores = {
            "final": self.record.clip_record(clip)["score"],
            "monitor": self.identity.identity_reward(self.identity.subject_quality(clip.monitor)),
            "previews": [score(preview) for preview in previews],
            "ahead": [score(preview) for preview in ahead],
        }
        return {"samples": whole[0]} | {k: torch.tensor(v, dtype=torch.float64) for k, v in scores.items()}

    def search(self, index: int, measured: dict[str, torch.Tensor]) -> Group:
        """The real search of this group with the curves as they are now, from `folder` if it is there."""
        file = self.folder / f"{self.split}-{self.takes}-{index:02}.search.json"
        shown = json.loads(file.read_text("utf-8")) if file.is_file() else None
        if shown is None or shown["record"]["curve"] != self.plan.default_curve().source:
            shot = Shot(self, index)
            wanted = {"seed": shot.seed, "takes": self.takes, "budget": self.budget}
            found = self.stack.pack.execute(
                "IDCrafterSampleTakes", vae=self.stack.vae, cast=shot.cast, **wanted, **shot.inputs
            )[0]
            finished = [take.seed - shot.seed for take in found.takes]
            for k, take in zip(finished, found.takes, strict=True):
                if not torch.equal(take.samples[0], measured["samples"][k]):
                    raise RuntimeError(f"The search's take of seed {take.seed} is not the take that its seed gives.")
            seconds = float(np.mean([take.seconds for take in found.takes]))
            shown = {"record": found.search, "finished": finished, "seconds": seconds}
            _write(file, json.dumps(shown).encode())
        return Group(measured, shown["record"], shown["finished"], shown["seconds"])


def _write(file: Path, data: bytes) -> None:
    """All of it or nothing, so that a run that was broken off goes on with the group that it hit."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(data)
    temporary.replace(file)


def summarise(bench: Bench, groups: list[Group]) -> dict:
    plan, count = bench.plan, len(groups)
    finals = np.stack([g.final for g in groups])
    mean = finals.mean(1)
    best = finals.max(1) - mean
    searched = np.array([g.final[g.chosen] for g in groups]) - mean
    cost = [g.cost for g in groups]
    measured = [g.measured for g in groups]
    proposed = curves_of(bench, measured)
    points = tuple((ahead, tuple(map(tuple, rows))) for ahead, rows in proposed["rho"].items())
    curve = plan.Curve(points, proposed["source"])
    result = {
        "groups": count,
        "takes": finals.shape[1],
        "budget": groups[0].record["budget"],
        "final_mean": round(float(finals.mean()), 4),
        "final_std_in_group": round(float(finals.std(1, ddof=1).mean()), 4),
        "bon8_gain": round(float(best.mean()), 4),
        "bon8_gain_ci95": interval(lambda i: best[i].mean(), count),
        "search_gain": round(float(searched.mean()), 4),
        "search_gain_ci95": interval(lambda i: searched[i].mean(), count),
        "share": round(float(searched.mean() / best.mean()), 4),
        "share_ci95": interval(lambda i: searched[i].mean() / best[i].mean(), count),
        "share_required": LEAST_SHARE,
        "search_cost": round(float(np.mean(cost)), 4),
        "search_cost_max": round(max(cost), 4),
        "search_cost_allowed": MOST_COST,
        "search_cost_with_decoding": round(float(np.mean([g.cost_with_decoding for g in groups])), 2),
        "found_the_best": round(float(np.mean(searched == best)), 4),
        "monitor": watch(groups),
        "rho": rank_correlations(bench, measured),
        "plan": {"rungs": groups[0].record["rungs"], "curve": groups[0].record["curve"]},
        "proposed": {**proposed, "plan": describe(plan.plan_search(TAKES, BUDGET, bench.sigmas, curve))},
    }
    result["met"] = (
        result["share"] >= LEAST_SHARE and result["search_cost_max"] <= MOST_COST and result["monitor"]["confirmed"]
    )
    return result


def looks(bench: Bench, measured: list[dict]) -> dict[int, tuple[list[float], np.ndarray]]:
    """By evaluations ahead: noise levels [K] and the scores [G, N, K] of what was seen there."""
    previews = np.stack([group["previews"].numpy() for group in measured])
    ahead = np.stack([group["ahead"].numpy() for group in measured])
    plain = {0: ([bench.sigmas[step - 1] for step in bench.looked_at] + [0.0], previews)}
    return plain | {count: (bench.sigmas[:1], ahead[:, :, a : a + 1]) for a, count in enumerate(AHEAD)}


def curves_of(bench: Bench, measured: list[dict]) -> dict:
    """What `plan.read_curve` reads."""
    finals = np.stack([group["final"].numpy() for group in measured])
    rho = {count: bench.plan.fit_rho(*look, finals) for count, look in looks(bench, measured).items()}
    what = f"{len(finals)} groups of {finals.shape[1]} takes, {bench.split} identities"
    return {"rho": rho, "source": f"benchmarks/takes.py: {what}, nano weights, euler, {nano.STEPS} steps"}


def rank_correlations(bench: Bench, measured: list[dict]) -> dict:
    """By evaluations ahead: [sigma, rho, low, high] for each noise level."""
    finals = np.stack([group["final"].numpy() for group in measured])

    def row(sigma: float, scores: np.ndarray) -> list[float]:
        rho = bench.plan.rank_correlation(scores, finals)
        bounds = interval(lambda i: bench.plan.rank_correlation(scores[i], finals[i]), len(finals), 500)
        return [round(sigma, 4), round(rho, 4), *bounds]

    return {
        count: [row(sigma, scores[:, :, k]) for k, sigma in enumerate(sigmas)]
        for count, (sigmas, scores) in looks(bench, measured).items()
    }


def watch(groups: list[Group]) -> dict:
    """The gains of both choices by the monitor."""
    monitor = np.stack([g.measured["monitor"].numpy() for g in groups])
    best = np.array([m[g.final.argmax()] - m.mean() for m, g in zip(monitor, groups, strict=True)])
    searched = np.array([m[g.chosen] - m.mean() for m, g in zip(monitor, groups, strict=True)])
    bounds = interval(lambda i: searched[i].mean(), len(groups))
    return {
        "name": MONITOR,
        "bon8_gain": round(float(best.mean()), 4),
        "bon8_gain_ci95": interval(lambda i: best[i].mean(), len(groups)),
        "search_gain": round(float(searched.mean()), 4),
        "search_gain_ci95": bounds,
        "confirmed": bounds[0] > 0,
    }


def interval(statistic, count: int, draws: int = 2000) -> list[float]:
    """95 % bootstrap interval over `count` groups of statistic(indices)."""
    generator = np.random.default_rng(0)
    values = [statistic(generator.integers(0, count, count)) for _ in range(draws)]
    return [round(float(v), 4) for v in np.percentile(values, [2.5, 97.5])]


def describe(plan) -> dict:
    rungs = [{"step": r.step, "sigma": round(r.sigma, 4), "ahead": r.ahead, "keep": r.keep} for r in plan.rungs]
    return {"rungs": rungs, "cost": round(plan.cost, 4), "expected_gain": round(plan.gain, 4)}


def measure(bench: Bench) -> list[dict[str, torch.Tensor]]:
    measured = []
    for index in range(bench.groups):
        measured.append(bench.measure(index))
        final = measured[-1]["final"]
        print(
            f"group {index + 1} of {bench.groups}: mean {final.mean():.4f}, best of {bench.takes} "
            f"{final.max() - final.mean():+.4f}, {time.time() - bench.started:.0f} s",
            flush=True,
        )
    return measured


def run(bench: Bench) -> dict:
    """The result of the searches."""
    groups = []
    for index, measured in enumerate(measure(bench)):
        groups.append(last := bench.search(index, measured))
        print(
            f"search {index + 1} of {bench.groups}: {last.final[last.chosen] - last.final.mean():+.4f} of "
            f"{last.final.max() - last.final.mean():+.4f} for {last.cost:.2f} generations, "
            f"{time.time() - bench.started:.0f} s",
            flush=True,
        )
    return {"split": bench.split, **summarise(bench, groups)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--json", type=Path, help="file for the result")
    kind.add_argument(
        "--curve", type=Path, help="only measure rho(sigma), on validation identities; file for the curves"
    )
    parser.add_argument("--quick", action="store_true", help="2 groups of 4 takes")
    parser.add_argument("--keep", type=Path, help="folder for finished groups: a run that was broken off goes on there")
    arguments = parser.parse_args()
    inprocess.prepare_path()
    with tempfile.TemporaryDirectory() as folder:
        inprocess.configure(Path(folder))
        from comfy.utils import set_progress_bar_enabled

        set_progress_bar_enabled(False)
        groups = CURVE_GROUPS if arguments.curve else GROUPS
        size = (2, 4, 2.0) if arguments.quick else (groups, TAKES, BUDGET)
        split = "val" if arguments.curve else "sealed"
        with torch.inference_mode():
            bench = Bench(split, *size, arguments.keep or Path(folder) / "groups")
            result = curves_of(bench, measure(bench)) if arguments.curve else run(bench)
    file = arguments.curve or arguments.json
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
