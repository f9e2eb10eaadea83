"""Rollouts as a trainer reads them: groups of comparable takes, and why everything else was left out.

Parts of one group (the same shot by the same policy) are joined. A take that several parts hold counts once: with the
rewards of all of them, the newest value of each, as long as its latent is the same; otherwise the first one stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import advantages, conditioning, licences, record
from .digests import canonical
from .store import Damage, Entry, RolloutStore


@dataclass(frozen=True, eq=False)
class StoredTake:
    """A take on disk: the file that holds it, its place in there, seed, raw rewards by name, and their total."""

    path: Path
    index: int
    seed: int
    rewards: dict[str, float]
    total: float
    sde: dict | None


@dataclass(frozen=True, eq=False)
class Group:
    """Takes of one shot by one policy, in seed order, their totals made of one reward; `facts` are those of its newest
    file with that reward (`record`).
    """

    name: str
    facts: dict
    takes: tuple[StoredTake, ...]

    @property
    def totals(self) -> np.ndarray:
        """[G] float64."""
        return np.array([take.total for take in self.takes], np.float64)

    @property
    def spread(self) -> float:
        return float(self.totals.std())

    @property
    def prompt(self) -> str:
        return self.facts["shot"].get("prompt") or ""

    @property
    def best(self) -> int:
        return int(self.totals.argmax())

    @property
    def worst(self) -> int:
        return int(self.totals.argmin())

    def load(self, take: int, names: Sequence[str] = ("x0",)) -> dict[str, torch.Tensor]:
        """Tensors of a take by name, bfloat16 as stored; ValueError when one is not there or cannot be read."""
        stored = self.takes[take]
        found = record.read_tensors(stored.path, [f"{stored.index}.{name}" for name in names])
        return {name: found[f"{stored.index}.{name}"] for name in names}

    def sigmas(self) -> torch.Tensor:
        """[steps + 1] float32: the schedule that all takes were sampled with."""
        return record.read_tensors(self.takes[0].path, ["sigmas"])["sigmas"]


@dataclass(frozen=True)
class Skipped:
    """A group or file that is not used. `what` names it."""

    what: str
    reason: str


@dataclass(frozen=True)
class Filters:
    """Which groups are wanted; empty fields let everything pass.

    policy        the beginning of a policy's hash
    text_encoder  hash of the text encoder that will read the prompts
    licence       must be part of the licence of everything that made pixels, upper or lower case
    since, until  ISO dates (or times), the first and the last day that count
    min_spread    groups whose totals have a smaller standard deviation are left out; 0 leaves out equal ones
    label         must be equal
    """

    policy: str = ""
    text_encoder: str = ""
    licence: str = ""
    since: str = ""
    until: str = ""
    min_spread: float = 0.0
    label: str = ""


EVERYTHING = Filters()


@dataclass(frozen=True, eq=False)
class Rollouts:
    """A folder of rollouts as the filters let it be seen.

    groups    in the order in which they were collected, each with two takes or more that differ
    skipped   what the filters, licences and rules left out, and why
    damages   files that could not be read
    """

    folder: Path
    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    damages: tuple[Damage, ...]

    @property
    def policies(self) -> tuple[str, ...]:
        return tuple(sorted({group.facts["hashes"]["policy"] for group in self.groups}))

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The rewards that every take has."""
        names = [set(take.rewards) for group in self.groups for take in group.takes]
        return tuple(sorted(set.intersection(*names))) if names else ()

    def advantages(self, method: str = "grpo", weights: dict[str, float] | None = None) -> list[np.ndarray]:
        """[G] a group; see `advantages.advantages`. `weights` choose among `reward_names`."""
        takes = [take for group in self.groups for take in group.takes]
        labels = [i for i, group in enumerate(self.groups) for _ in group.takes]
        if not takes:
            return []
        if method in advantages.OF_TERMS:
            names = self.reward_names if weights is None else tuple(weights)
            missing = [name for name in names if name not in self.reward_names]
            if missing:
                raise ValueError(
                    f"Not every take has the reward '{missing[0]}'; all have: {', '.join(self.reward_names) or 'none'}."
                )
            rewards = {name: [take.rewards[name] for take in takes] for name in names}
        else:
            rewards = [take.total for take in takes]
        prompts = [group.prompt for group in self.groups for _ in group.takes]
        flat = advantages.advantages(rewards, labels, method, weights=weights, prompts=prompts)
        ends = np.cumsum([len(group.takes) for group in self.groups])[:-1]
        return np.split(flat, ends)

    def conditioning(self, group: Group) -> dict[str, list]:
        """The CONDITIONING lists of a group by name, from the stored tensors.

        Raises ValueError where only hashes were stored, FileNotFoundError where a tensor is gone.
        """
        plan = group.facts["shot"].get("conditioning")
        if not plan:
            raise ValueError(
                f"Group {group.name[:12]} was stored without its conditioning; collect with keep = "
                "conditioning, or make it again with Cast to Video."
            )
        return conditioning.unpack(plan, RolloutStore(self.folder).load_object)


def load(folder: Path | str, filters: Filters = EVERYTHING, on_file: Callable[[], None] | None = None) -> Rollouts:
    """Read a folder. Raises FileNotFoundError when there is none.

    on_file  called for each file, for progress and interruption
    """
    store = RolloutStore(folder)
    if not store.groups.is_dir():
        raise FileNotFoundError(f"There are no rollouts in '{folder}'; collect some with Save Rollouts.")
    scan = store.scan(on_file)
    skipped: list[Skipped] = []
    parts: dict[str, list[Entry]] = {}
    for entry in scan.entries:
        reason = _refuse(entry.facts, filters)
        if reason:
            skipped.append(Skipped(f"groups/{entry.path.name}", reason))
        else:
            parts.setdefault(entry.facts["group"], []).append(entry)
    groups = []
    for name, entries in parts.items():
        group, notes = _join(name, entries)
        skipped += notes
        reason = _useless(group, filters.min_spread)
        if reason:
            skipped.append(Skipped(f"group {name[:12]}", reason))
        else:
            groups.append(group)
    return Rollouts(store.folder, tuple(groups), tuple(skipped), scan.damages)


def _refuse(facts: dict, filters: Filters) -> str | None:
    """Why the takes of this file must not, or shall not, be used."""
    hashes = facts["hashes"]
    policies = {take["policy"] for take in facts["takes"]} | {hashes["policy"]}
    if len(policies) > 1:
        return f"its takes are of {len(policies)} policies ({', '.join(sorted(p[:12] for p in policies))})"
    reason = licences.refusal(facts["licences"])
    if reason:
        return reason
    if filters.policy and not hashes["policy"].startswith(filters.policy):
        return f"it is of the policy {hashes['policy'][:12]}, not {filters.policy[:12]}"
    if filters.text_encoder and hashes.get("text_encoder") != filters.text_encoder:
        known = hashes.get("text_encoder")
        found = f"the text encoder {known[:12]}" if known else "a text encoder that was not noted"
        return f"it was collected with {found}, not {filters.text_encoder[:12]}; its prompts would mean something else"
    if filters.licence:
        wanted = filters.licence.casefold()
        made = [entry for entry in facts["licences"] if entry.get("made_pixels", True)]
        wrong = [entry for entry in made if wanted not in (entry["licence"] or "").casefold()]
        if wrong or not made:
            licence = (wrong[0]["licence"] if wrong else None) or "not stated"
            return f"its licence is '{licence}', not '{filters.licence}'"
    created = facts["created"]
    if (filters.since and created < filters.since) or (filters.until and created[: len(filters.until)] > filters.until):
        return f"it was collected on {created}"
    if filters.label and facts.get("label") != filters.label:
        return f"its label is '{facts.get('label', '')}'"
    return None


def _join(name: str, entries: Sequence[Entry]) -> tuple[Group, list[Skipped]]:
    """One group of its files, oldest first."""
    takes: dict[int, StoredTake] = {}
    digests: dict[int, str] = {}
    totals: dict[str, dict[int, float]] = {}  # by what made them, then by seed
    shape, skipped = entries[0].facts["shot"]["shape"], []
    for entry in entries:
        if entry.facts["shot"]["shape"] != shape:
            skipped.append(
                Skipped(f"groups/{entry.path.name}", f"its takes are not {shape} as the others of the group")
            )
            continue
        for fact in entry.facts["takes"]:
            digest = entry.facts["tensors"][f"{fact['index']}.x0"]["sha256"]
            take = StoredTake(entry.path, fact["index"], fact["seed"], fact["rewards"], fact["total"], fact.get("sde"))
            before = takes.get(take.seed)
            if digests.setdefault(take.seed, digest) != digest:
                what = f"seed {take.seed} of groups/{entry.path.name}"
                skipped.append(Skipped(what, f"groups/{before.path.name} has another take of this seed"))
                continue
            if before is not None:
                kept = before if before.sde is not None or take.sde is None else take
                take = replace(kept, rewards={**before.rewards, **take.rewards})
            takes[take.seed] = take
            totals.setdefault(canonical(entry.facts.get("reward")), {})[take.seed] = fact["total"]
    # Totals compare only when the same reward made them: the one that most takes have, of equals the newest.
    reward = max(
        reversed([canonical(entry.facts.get("reward")) for entry in entries]), key=lambda r: len(totals.get(r, ()))
    )
    for seed in sorted(set(takes) - set(totals[reward])):
        what = f"seed {seed} of groups/{takes[seed].path.name}"
        skipped.append(Skipped(what, "its total was made of other rewards than those of the rest of its group"))
    ordered = tuple(replace(takes[seed], total=totals[reward][seed]) for seed in sorted(totals[reward]))
    facts = next(e.facts for e in reversed(entries) if canonical(e.facts.get("reward")) == reward)
    return Group(name, facts, ordered), skipped


def _useless(group: Group, min_spread: float) -> str | None:
    if len(group.takes) < 2:
        return "it has one take, which compares with nothing"
    if record.is_flat([{"total": take.total} for take in group.takes]):
        return "all its takes have the same reward, so there is nothing to learn from"
    if group.spread < min_spread:
        return f"its rewards differ by {group.spread:.4g} only (less than {min_spread:.4g})"
    return None
