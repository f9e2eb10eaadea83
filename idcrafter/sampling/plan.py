"""Which takes to look at when: successive halving under a budget of model passes.

A preview is the model's estimate of the clean clip in the middle of sampling. How well its score predicts the score of
the finished take is rho, a rank correlation inside a group of takes of one shot. It depends on the noise level sigma
(not on the step's number, because schedules differ in their shift) and on how far the preview looks ahead: 0 is the x0
that the sampler has at hand; `ahead` further evaluations on the way to the clean clip, in a few large Euler steps, cost
as much as steps but show what the take will be (the look-ahead of Oshima et al., arXiv 2501.19252). `fit_rho` measures
the curves, `plan_search` turns them into rungs: at each rung all takes that are left are scored, the best ones go on.

The plan is the best one of a coarse grid in a model of scores, by simulation with a fixed seed: the final scores of a
group are independent standard normal y, previews are noisy readings of y along one Brownian path, from the least to
the most reliable: corr(p_i, y) = rho_i and corr(p_i, p_j) = rho_i / rho_j for rho_i < rho_j. A rung that n takes climb
costs n (steps since the rung before + ahead) / steps generations; who passes the last one costs what is left.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CURVE_FILE = Path(__file__).with_name("preview_rho.json")
MAX_RUNGS = 3
_POSITIONS = 10  # steps of a long schedule that are considered for a rung
_KEEPS = 8  # numbers of survivors that are considered
_DRAWS = 16_000  # simulated takes
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Curve:
    """rho(sigma) for each number of evaluations ahead, at ascending flow sigmas (0..1).

    points  ahead -> ((sigma, rho), ...); `ahead` 0 is there
    source  the command and the model that it was measured with
    """

    points: tuple[tuple[int, tuple[tuple[float, float], ...]], ...]
    source: str

    def __post_init__(self):
        if 0 not in dict(self.points):
            raise ValueError("The curves rho(sigma) need one for previews that do not look ahead (0).")
        for ahead, points in self.points:
            sigmas = [sigma for sigma, _ in points]
            if not points or sigmas != sorted(set(sigmas)) or not all(-1.0 <= rho <= 1.0 for _, rho in points):
                raise ValueError(
                    f"The curve rho(sigma) of {ahead} evaluations ahead needs ascending sigmas and correlations."
                )

    def at(self, sigmas: Sequence[float], ahead: int = 0) -> np.ndarray:
        """Linear between the points, constant beyond them: below the lowest sigma measured that is a lower bound."""
        points = dict(self.points)[ahead]
        return np.interp(np.asarray(sigmas, np.float64), [s for s, _ in points], [rho for _, rho in points])


@dataclass(frozen=True)
class Rung:
    """After `step` steps (counted from 1), at noise level `sigma`, the best `keep` takes go on; their previews look
    `ahead` evaluations ahead."""

    step: int
    sigma: float
    keep: int
    ahead: int = 0


@dataclass(frozen=True)
class Plan:
    """A search over `takes` seeds.

    steps   steps of a full generation
    rungs   in order; none = every take is finished
    cost    in full generations
    gain    expected final score above the mean of the group, in standard deviations of final scores
    source  of the curves
    """

    takes: int
    steps: int
    rungs: tuple[Rung, ...]
    cost: float
    gain: float
    source: str


def plan_search(takes: int, budget: float, sigmas: Sequence[float], curve: Curve | None = None) -> Plan:
    """The plan with the greatest expected gain that costs no more than the budget.

    takes   seeds to begin with, at least 1
    budget  full generations; at least `takes` of them leave nothing to prune
    sigmas  flow sigmas of the schedule, [steps + 1], descending
    curve   rho(sigma); None takes the measured one (`default_curve`)
    Raises ValueError for a budget that finishes no take, or that cannot look at each of them once.
    """
    if takes < 1:
        raise ValueError(f"A search needs at least one take, got {takes}.")
    if not budget >= 1.0:  # also NaN
        raise ValueError(
            f"A budget of {budget:g} full generations finishes no take; give 1 or more, or 0 for no search."
        )
    curve = curve or default_curve()
    return _best_plan(takes, float(budget), tuple(float(sigma) for sigma in sigmas), curve)


@functools.lru_cache(maxsize=32)
def _best_plan(takes: int, budget: float, sigmas: tuple[float, ...], curve: Curve) -> Plan:
    steps = len(sigmas) - 1
    if takes == 1 or budget >= takes:
        return Plan(takes, steps, (), float(takes), 0.0, curve.source)
    rungs, gain = _climb(takes, budget * steps + _TOLERANCE, steps, _looks(sigmas, curve))
    if rungs is None:
        least = cost(takes, steps, (Rung(1, sigmas[0], 1),))
        raise ValueError(
            f"A budget of {budget:g} generations is too small for {takes} takes of {steps} steps: looking at each of "
            f"them once and finishing one costs at least {least:.2f}. Raise budget, lower takes, or use more steps."
        )
    return Plan(takes, steps, rungs, cost(takes, steps, rungs), gain, curve.source)


def cost(takes: int, steps: int, rungs: Sequence[Rung]) -> float:
    """Full generations that a search costs when it is carried out to the end."""
    spent, alive, done = 0, takes, 0
    for rung in rungs:
        spent += alive * (rung.step - done + rung.ahead)
        alive, done = rung.keep, rung.step
    return (spent + alive * (steps - done)) / steps


def ahead_sigmas(sigmas: Sequence[float], step: int, ahead: int) -> list[float]:
    """The noise levels of a look `ahead` evaluations ahead after `step` steps.

    They share the rest of the schedule evenly, half a share late: the first evaluation, in the thick of the noise, says
    little, and the last one makes the preview.
    """
    begin, end = step - 1, len(sigmas) - 1
    places = begin + (end - begin) * (np.arange(1, ahead + 1) + 0.5) / (ahead + 1)
    return [float(sigmas[place]) for place in places.round().astype(int)]


def default_curve() -> Curve:
    """The curve that was measured with the nano weights; the only one until somebody measures another model."""
    return read_curve(CURVE_FILE)


def read_curve(path: Path) -> Curve:
    """Curves from JSON: {"rho": {ahead: [[sigma, rho], ...]}, "source": text}."""
    data = json.loads(Path(path).read_text("utf-8"))
    points = ((int(ahead), tuple((float(s), float(rho)) for s, rho in rows)) for ahead, rows in data["rho"].items())
    return Curve(tuple(points), data["source"])


def rank_correlation(previews: np.ndarray, finals: np.ndarray) -> float | None:
    """Mean over the groups of Spearman's rho between previews and finals, both [G, N].

    A group whose previews are all equal counts 0; one whose finals are all equal says nothing and is left out. None
    when no group is left.
    """
    from scipy.stats import rankdata

    values = []
    for preview, final in zip(previews, finals, strict=True):
        if np.ptp(final) == 0:
            continue
        values.append(0.0 if np.ptp(preview) == 0 else float(np.corrcoef(rankdata(preview), rankdata(final))[0, 1]))
    return float(np.mean(values)) if values else None


def fit_rho(sigmas: Sequence[float], previews: np.ndarray, finals: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The points of a curve from measured scores: rank correlation at each sigma, made to never rise with sigma.

    sigmas    [K] flow sigmas of the steps whose previews were scored
    previews  [G, N, K] scores of G groups of N takes; finals [G, N]
    Raises ValueError for NaN, or when no group has two different final scores.
    """
    previews, finals = np.asarray(previews, np.float64), np.asarray(finals, np.float64)
    if not np.isfinite(previews).all() or not np.isfinite(finals).all():
        raise ValueError("The scores that rho(sigma) is fitted to hold NaN or infinite values.")
    order = np.argsort(sigmas)
    raw = [rank_correlation(previews[:, :, k], finals) for k in order]
    if any(value is None for value in raw):
        raise ValueError("All takes of every group have the same final score; rho(sigma) cannot be fitted.")
    from scipy.optimize import isotonic_regression

    smooth = np.clip(isotonic_regression(np.array(raw), increasing=False).x, 0.0, 1.0)
    return tuple((round(float(sigmas[k]), 4), round(float(rho), 4)) for k, rho in zip(order, smooth, strict=True))


def _looks(sigmas: tuple[float, ...], curve: Curve) -> list[tuple[Rung, float]]:
    """The looks that are considered, with their rho, the least reliable first. `keep` is not chosen yet."""
    steps = len(sigmas) - 1
    positions = sorted({round(p) for p in np.linspace(1, steps - 1, min(_POSITIONS, steps - 1))}) if steps > 1 else []
    looks = []
    for ahead, _ in sorted(curve.points):
        # Looking so far ahead that it costs as much as going there makes no sense.
        for step in (p for p in positions if ahead == 0 or ahead < steps - p):
            look, rho = Rung(step, sigmas[step - 1], 0, ahead), float(curve.at([sigmas[step - 1]], ahead)[0])
            # Nor does a look when an earlier and shorter one says as much.
            if not any(o.step <= step and o.ahead <= ahead and known >= rho for o, known in looks):
                looks.append((look, rho))
    return sorted(looks, key=lambda look: look[1])


def _climb(takes: int, most: float, steps: int, looks: list[tuple[Rung, float]]) -> tuple[tuple | None, float]:
    """The best rungs on the grid that cost no more than `most` steps, and their expected gain; None when none does."""
    finals, previews = _simulate(takes, [rho for _, rho in looks])
    keeps = range(1, takes) if takes <= _KEEPS + 1 else sorted({round(k) for k in np.geomspace(1, takes - 1, _KEEPS)})
    best: tuple[tuple | None, float] = (None, -np.inf)

    def climb(rungs: tuple[Rung, ...], alive: np.ndarray, done: int, spent: float) -> None:
        nonlocal best
        for (look, _), preview in zip(looks, previews, strict=True):
            now = spent + alive.shape[1] * (look.step - done + look.ahead)
            if look.step <= done or now + steps - look.step > most:  # not even one take could be finished
                continue
            order = np.argsort(-np.take_along_axis(preview, alive, 1), 1)
            ranked = np.take_along_axis(alive, order, 1)
            # What finishing the first n of them gains; whatever follows cannot gain more.
            gains = np.maximum.accumulate(np.take_along_axis(finals, ranked, 1), 1).mean(0)
            for keep in (k for k in keeps if k < alive.shape[1] and gains[k - 1] > best[1]):
                path = (*rungs, dataclasses.replace(look, keep=keep))
                if now + keep * (steps - look.step) <= most:
                    best = (path, float(gains[keep - 1]))
                elif len(path) < MAX_RUNGS:
                    climb(path, ranked[:, :keep], look.step, now)

    climb((), np.broadcast_to(np.arange(takes), finals.shape), 0, 0.0)
    return best


def _simulate(takes: int, rho: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Final scores [trials, takes] and previews [looks, trials, takes] of the module's model; `rho` ascends."""
    generator = np.random.default_rng(0)
    trials = max(500, _DRAWS // takes)
    finals = generator.standard_normal((trials, takes))
    # Brownian path: information h = rho^2 / (1 - rho^2) grows from look to look, reading = h y + W(h).
    rho = np.clip(np.asarray(rho, np.float64), 1e-3, 0.999)
    information = rho**2 / (1 - rho**2)
    steps = np.diff(information, prepend=0.0)
    path = np.cumsum(np.sqrt(steps)[:, None, None] * generator.standard_normal((len(rho), trials, takes)), 0)
    return finals, information[:, None, None] * finals + path
