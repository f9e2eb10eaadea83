"""ID-Crafter's attention per group where subjects are reference tokens: each subject's references also see themselves.

The block of the paper (arXiv 2511.00511) first attends inside of every group of tokens and then over all of them. Here
the model's own self-attention is the second part, with the block's own projections, and what a subject's references
make of each other is added to their result through a gate for each block and head, which starts at zero
(`reference_gates` of IdentityAdapter). So a model without a trained gate computes exactly what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import wan


def attend_within(model, key: str, gates: Callable[[dict], Gates | None], names: Sequence[str]):
    """A clone of the Wan MODEL in which each subject's references attend to each other.

    key    names the replacement of self-attention
    gates  transformer_options of a model call -> what to add in this block, or None for nothing
    names  of the subjects, in the adapter's order; references of others, and unnamed ones, are left as they are
    """

    def begin_run(run: wan.Run) -> wan.BeginCall:
        owners = {len(found): found for found in run.references if any(name in names for name in found)}

        def begin_call(layout: wan.TokenLayout, sigma: float) -> wan.Attention | None:
            groups = _groups(layout, owners.get(len(layout.references), ()), names)
            return _attention(groups, gates) if groups else None

        return begin_call

    return wan.replace_self_attention(model, key, begin_run, adds=True)


class Gates:
    """What one block adds: gate [heads], and how much of it each row's subjects get, [B, S]."""

    def __init__(self, gate: torch.Tensor, share: torch.Tensor):
        self.gate, self.share = gate, share


def _groups(
    layout: wan.TokenLayout, owners: Sequence[str | None], names: Sequence[str]
) -> list[tuple[int, torch.Tensor]]:
    """(subject, the tokens of its references) for each subject who has some."""
    groups = []
    for s, name in enumerate(names):
        tokens = [
            torch.arange(r.start, r.stop) for r, own in zip(layout.references, owners, strict=False) if own == name
        ]
        if tokens:
            groups.append((s, torch.cat(tokens)))
    return groups


def _attention(groups: list[tuple[int, torch.Tensor]], gates: Callable[[dict], Gates | None]) -> wan.Attention:
    def attention(attend: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        out = attend(q, k, v)
        found = gates(options)
        if found is None:
            return out
        scale = found.gate.to(out).repeat_interleave(out.shape[-1] // len(found.gate))
        for s, tokens in groups:
            tokens = tokens.to(out.device)
            own = attend(*(part.index_select(1, tokens) for part in (q, k, v)))
            out = out.index_add(1, tokens, own * scale * found.share[:, s].to(out)[:, None, None])
        return out

    return attention
