"""ID-Crafter's attention per group where subjects are reference tokens: each subject's references also see themselves.

The block of the paper (arXiv 2511.00511) first attends inside of every group of tokens and then over all of them. Here
the model's own self-attention is the second part, with the block's own projections, and what a subject's references
make of each other is added to their result through a gate for each block and head, which starts at zero
(`reference_gates` of IdentityAdapter). So a model without a trained gate computes exactly what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from . import wan


def attend_within(model, key: str, gates: Callable[[dict], Gates | None], names: Sequence[str]):
    """A clone of the Wan MODEL in which each subject's references attend to each other.

    key    names the replacement of self-attention
    gates  transformer_options of a model call -> what to add in this block, or None for nothing
    names  of the subjects, in the adapter's order; references of others, and unnamed ones, are left as they are
    """

    def begin_run(run: wan.Run) -> wan.BeginCall:
        owners = owners_of(run, names)

        def begin_call(layout: wan.TokenLayout, sigma: float) -> wan.Attention | None:
            groups = _groups(layout, owners.get(len(layout.references), ()))
            return _attention(groups, gates) if groups else None

        return begin_call

    return wan.replace_self_attention(model, key, begin_run, adds=True)


class Gates:
    """What one block adds: gate [heads], and how much of it each row's subjects get, [B, S]."""

    def __init__(self, gate: torch.Tensor, share: torch.Tensor):
        self.gate, self.share = gate, share


@dataclass(frozen=True, eq=False)
class _Group:
    """Subjects with as many reference tokens as each other: their numbers, and tokens [len(subjects), N]."""

    subjects: list[int]
    tokens: torch.Tensor


def owners_of(run: wan.Run, names: Sequence[str]) -> dict[int, tuple[int | None, ...]]:
    """Whose each reference of a model call is, by the number of its references: the place in `names`, or None."""
    return {
        len(found): tuple(names.index(name) if name in names else None for name in found)
        for found in run.references
        if any(name in names for name in found)
    }


def _groups(layout: wan.TokenLayout, owners: Sequence[int | None]) -> list[_Group]:
    """The references' tokens of each subject who has some; those of one size together, for one attention."""
    by_size: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for s in sorted({own for own in owners if own is not None}):
        tokens = [torch.arange(r.start, r.stop) for r, own in zip(layout.references, owners, strict=True) if own == s]
        found = torch.cat(tokens)
        by_size.setdefault(len(found), []).append((s, found))
    return [_Group([s for s, _ in members], torch.stack([t for _, t in members])) for members in by_size.values()]


def _attention(groups: list[_Group], gates: Callable[[dict], Gates | None]) -> wan.Attention:
    def attention(attend: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        out = attend(q, k, v)
        found = gates(options)
        if found is None:
            return out
        scale = found.gate.to(out).repeat_interleave(out.shape[-1] // len(found.gate))
        for group in groups:
            tokens = group.tokens.flatten().to(out.device)
            size = (len(out) * len(group.subjects), group.tokens.shape[1], out.shape[2])
            own = attend(*(part.index_select(1, tokens).view(size) for part in (q, k, v)))
            share = found.share[:, group.subjects].to(out).flatten()
            own = own * (share[:, None, None] * scale)
            out = out.index_add(1, tokens, own.reshape(len(out), -1, out.shape[2]))
        return out

    return attention
