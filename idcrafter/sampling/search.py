"""The take search: begin with many seeds, look at previews on the way, finish the ones that promise most.

`plan.plan_search` says when how many go on; `tape.play` pauses and continues each take so that a survivor is exactly
the take that its seed gives alone. Takes that are in the store already are kept whatever their rank.

The record of a search (`Takes.search`, JSON):

    budget, takes, steps       what was asked for
    rungs                      step, sigma, ahead, keep, scored: after this many steps the best `keep` of `scored` went
                               on, judged by previews that look `ahead` evaluations ahead
    previews                   per look: seed, step, sigma, ahead, score (null = not finite), rank (from 1), kept
    pruned                     per pruned take: seed, step, sigma, ahead, score, rank, of, why
    passes                     model passes that the search needed (each condition of each call), looking ahead and
                               what an interrupted run has left included; takes that it found finished cost none
    passes_per_generation      of a finished take; null when the search only found finished ones
    cost                       passes / passes_per_generation; decoding and scoring are not in it
    decode_seconds, score_seconds   for the previews, in this run
    expected_gain              of the plan, in standard deviations of final scores
    curve                      the source of rho(sigma)
    warnings                   what made a choice blind
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import comfy.model_management
import comfy.model_sampling
import torch

from ..subjects.references import LEADING
from .fingerprint import sampler_name
from .plan import Curve, Plan, Rung, ahead_sigmas, plan_search
from .preview import PreviewScorer
from .run import Progress, check_schedule, model_facts, prepare_latent
from .seeds import take_seeds
from .store import Look, TakeStore
from .takes import Take, Takes
from .tape import Segment, Tape, play, refuse_state

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Candidate:
    """One seed in the search.

    take      when it is finished
    stored    it was finished before this search began
    looks     its scored previews, by (steps done, evaluations ahead)
    passes    model passes of the whole take, when it is finished
    counted   how many of them this search has on its bill
    steps     steps of the schedule that it was sampled for, in this run
    segment   the last one that this run has played
    """

    seed: int
    tape: Tape
    take: Take | None = None
    stored: bool = False
    looks: dict[tuple[int, int], Look] = field(default_factory=dict)
    passes: int = 0
    counted: int = 0
    steps: int = 0
    seconds: float = 0.0
    segment: Segment | None = None


def plan_for(guider, sigmas: torch.Tensor, takes: int, budget: float, curve: Curve | None = None) -> Plan:
    """`plan_search` for the schedule of this guider's model. Raises its ValueErrors, and those of an empty schedule."""
    check_schedule(sigmas)
    return plan_search(takes, budget, flow_sigmas(guider.model_patcher, sigmas), curve)


def flow_sigmas(patcher, sigmas: torch.Tensor) -> list[float]:
    """The schedule as flow sigmas (noise's share of the latent, 0..1), in which rho is measured.

    A model that adds noise without shrinking the clip has the same signal to noise ratio at sigma / (1 + sigma).
    """
    values = sigmas.detach().to("cpu", torch.float64)
    if not isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        values = values / (1 + values)
    return values.tolist()


def search_takes(
    guider,
    sampler,
    sigmas: torch.Tensor,
    latent: dict,
    base_seed: int,
    plan: Plan,
    budget: float,
    score: PreviewScorer,
    store: TakeStore | None = None,
    score_key: str = "",
) -> Takes:
    """The takes that pass all rungs of `plan`, out of plan.takes seeds from base_seed on.

    Each is what `run.sample_takes` gives for its seed. With a `store`, everything that an interrupt leaves behind is
    used again, and the same search ends with the same takes.

    plan       from `plan_for` with this schedule
    score      scores previews
    score_key  stands for what shapes a score: VAE, cast, face analyzer
    Raises ValueError as `run.sample_takes`, and for a MODEL or sampler that cannot be paused.
    """
    steps = check_schedule(sigmas)
    latent = prepare_latent(guider.model_patcher, latent)
    if plan.rungs:
        refuse_state(guider)
    search = _Search(guider, sampler, sigmas, latent, plan, score, store, score_key)
    candidates = [search.begin(seed) for seed in take_seeds(base_seed, plan.takes)]
    alive = candidates
    for rung in plan.rungs:
        alive = search.climb(alive, rung)
    for candidate in alive:
        search.finish(candidate)
    finished = [candidate for candidate in candidates if candidate.take is not None]
    generation = max((candidate.passes for candidate in finished), default=0) or None
    record = {
        "budget": float(budget),
        "takes": plan.takes,
        "steps": steps,
        "rungs": search.rungs,
        "previews": search.previews,
        "pruned": search.pruned,
        "passes": search.passes,
        "passes_per_generation": generation,
        "cost": round(search.passes / generation, 4) if generation else None,
        "decode_seconds": round(score.seconds["decode"], 3),
        "score_seconds": round(score.seconds["score"], 3),
        "expected_gain": round(plan.gain, 3),
        "curve": plan.source,
        "warnings": search.warnings,
    }
    log.info(summary(record))
    return Takes(
        takes=tuple(candidate.take for candidate in finished),
        base_seed=base_seed,
        sampler=sampler_name(sampler),
        sigmas=sigmas.detach().to("cpu", copy=True),
        model=model_facts(guider.model_patcher),
        search=record,
        leading=latent.get(LEADING, 0),
    )


def summary(record: dict) -> str:
    """The record in a few lines for people."""
    finished = record["takes"] - len(record["pruned"])
    cost = "nothing new" if record["cost"] is None else f"{record['cost']:.2f} full generations"
    lines = [
        f"Take search: {finished} of {record['takes']} takes finished, for {cost} (budget {record['budget']:g}); "
        f"previews {record['decode_seconds']:.1f} s to decode, {record['score_seconds']:.1f} s to score."
    ]
    lines += [
        f"Pruned seed {take['seed']} after step {take['step']} of {record['steps']} (sigma {take['sigma']:.3f}): "
        f"{take['why']}."
        for take in record["pruned"]
    ]
    return "\n".join(lines + [f"Warning: {warning}" for warning in record["warnings"]])


class _Search:
    """The state of one search: what it plays with, and its record so far."""

    def __init__(self, guider, sampler, sigmas, latent, plan: Plan, score, store, score_key):
        self.guider, self.sampler, self.sigmas, self.latent = guider, sampler, sigmas, latent
        self.score, self.store, self.score_key = score, store, score_key
        self.steps = plan.steps
        self.rungs: list[dict] = []
        self.previews: list[dict] = []
        self.pruned: list[dict] = []
        self.warnings: list[str] = []
        self.passes = 0
        self.progress = Progress(guider.model_patcher, round(plan.cost * plan.steps))

    def begin(self, seed: int) -> _Candidate:
        if self.store is None:
            return _Candidate(seed, Tape())
        candidate = _Candidate(seed, self.store.tape(seed))
        candidate.take = self.store.load(seed, self.latent["samples"].shape)
        candidate.stored = candidate.take is not None
        candidate.looks, candidate.passes = self.store.load_previews(seed, self.score_key)
        return candidate

    def climb(self, alive: list[_Candidate], rung: Rung) -> list[_Candidate]:
        """Bring everybody to the rung, score, and return who goes on, in seed order."""
        look = rung.step, rung.ahead
        # First all of the sampling, then all of the decoding, so that a small GPU changes models once a rung.
        for candidate in alive:
            if candidate.take is None and look not in candidate.looks:
                self._advance(candidate, rung)
        for candidate in alive:
            if look not in candidate.looks and not candidate.stored:
                self._look(candidate, look)
        # A take from another search that was not looked at here is finished and costs nothing: it needs no rank.
        ranked = [candidate for candidate in alive if look in candidate.looks]
        ranked.sort(key=lambda candidate: -_value(candidate.looks[look].score))  # stable: equals in seed order
        for candidate in ranked:
            self._bill(candidate, candidate.looks[look].passes)
            self.passes += candidate.looks[look].looked
        kept = set(map(id, ranked[: rung.keep]))
        self._record(ranked, rung)
        for candidate in ranked[rung.keep :]:
            if candidate.take is None:
                candidate.tape.discard()
                candidate.segment = None
        return [candidate for candidate in alive if id(candidate) in kept or look not in candidate.looks]

    def finish(self, candidate: _Candidate) -> None:
        if candidate.take is None:
            self._advance(candidate, None)
        if candidate.counted or not candidate.stored:
            self._bill(candidate, candidate.passes)

    def _bill(self, candidate: _Candidate, passes: int) -> None:
        """Until now the search has needed this many passes of the candidate."""
        self.passes += max(0, passes - candidate.counted)  # a stored take may have lost its number
        candidate.counted = passes

    def _advance(self, candidate: _Candidate, rung: Rung | None) -> None:
        """Sample on to the rung or to the end; a finished take is stored."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        before, candidate.steps = candidate.steps, rung.step if rung else self.steps
        until = float(self.sigmas[rung.step - 1]) if rung else None
        ahead = ahead_sigmas(self.sigmas, rung.step, rung.ahead) if rung else ()
        segment = play(
            self.guider, self.sampler, self.sigmas, self.latent, candidate.seed, candidate.tape, until, ahead,
            self.progress.callback(before, candidate.steps - before),
        )  # fmt: skip
        candidate.seconds += segment.seconds
        candidate.segment = segment
        self.progress.advance(candidate.steps - before + (rung.ahead if rung else 0))
        if segment.finished:
            candidate.take = Take(candidate.seed, segment.samples, candidate.seconds, False, segment.sde)
            candidate.passes = segment.passes
            self._save_previews(candidate)
            if self.store is not None:
                self.store.save(candidate.take)
            candidate.tape.discard()

    def _look(self, candidate: _Candidate, look: tuple[int, int]) -> None:
        check = comfy.model_management.throw_exception_if_processing_interrupted
        check()
        # A sampler that chooses its own steps may have finished before the rung; then this is the finished take.
        segment = candidate.segment
        candidate.looks[look] = Look(self.score(segment.samples, check), segment.passes, segment.looked)
        self._save_previews(candidate)

    def _save_previews(self, candidate: _Candidate) -> None:
        if self.store is not None:
            self.store.save_previews(candidate.seed, self.score_key, candidate.looks, candidate.passes)

    def _record(self, ranked: list[_Candidate], rung: Rung) -> None:
        """Note what was seen at a rung and why who goes."""
        sigma = round(rung.sigma, 6)
        self.rungs.append(
            {"step": rung.step, "sigma": sigma, "ahead": rung.ahead, "keep": rung.keep, "scored": len(ranked)}
        )
        scores = [candidate.looks[rung.step, rung.ahead].score for candidate in ranked]
        blind = len(ranked) > rung.keep and len({_value(score) for score in scores}) == 1
        if blind:
            what = "holds finite values" if scores[0] is None else f"differs from {scores[0]:.3f}"
            self.warnings.append(
                f"after step {rung.step} (sigma {sigma:.3f}) no preview's score {what}; the first seeds went on"
            )
        for rank, (candidate, score) in enumerate(zip(ranked, scores, strict=True), 1):
            kept = rank <= rung.keep or candidate.take is not None
            entry = {
                "seed": candidate.seed,
                "step": rung.step,
                "sigma": sigma,
                "ahead": rung.ahead,
                "score": None if score is None else round(score, 6),
                "rank": rank,
            }
            self.previews.append({**entry, "kept": kept})
            if not kept:
                self.pruned.append({**entry, "of": len(ranked), "why": _why(score, rank, len(ranked), rung.keep)})


def _value(score: float | None) -> float:
    """A preview that is not finite ranks below every score."""
    return -1.0 if score is None else score


def _why(score: float | None, rank: int, count: int, keep: int) -> str:
    if score is None:
        return "its preview holds NaN or infinite values"
    return f"preview score {score:.3f} is rank {rank} of {count}, and {keep} went on"
