"""Exact attention in which some queries see only some of the reference tokens, without a mask.

The tokens are [everything else | reference 0 | reference 1 | ...], every query sees everything else, and which
references it sees depends on the group that it belongs to. A group's attention is an ordinary unmasked one over a
shorter list of keys, so whatever kernel the caller passes as `attend` (flash, sage, sub-quadratic) does the work, and
the softmax over the visible keys is the one that a mask of -inf would give.

Keys that must lie next to each other are moved inside of `k` and `v` and moved back; queries go through in chunks. So
the extra memory is one group's references plus a chunk of queries and results, O(L * width); a mask takes O(L * L).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Fewer queries than this leave a large GPU partly idle (32 tiles of 128 queries a head); from there on an eighth of the
# sequence keeps the number of kernel calls small.
MIN_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class QueryGroup:
    """Queries that see the same references.

    queries  [n] int64, token indices
    sees     the numbers of the visible references, ascending
    """

    queries: torch.Tensor
    sees: tuple[int, ...]

    def to(self, device: torch.device) -> QueryGroup:
        return QueryGroup(self.queries.to(device), self.sees)


def query_groups(
    regions: torch.Tensor,
    bound: Sequence[int],
    owners: Sequence[int | None],
    video_start: int,
    references: Sequence[range],
    total: int,
    outside_sees_all: bool,
) -> list[QueryGroup]:
    """Split all tokens by what they see. References without an owner in `bound` are free: everybody sees them.

    regions           [len(bound), V] bool, the video tokens of each bound subject; they may overlap
    bound             the subjects that have a region
    owners            the subject of each reference, None for nobody's
    video_start       index of the first video token
    references        the tokens of each reference, behind each other at the end of the sequence
    total             number of tokens
    outside_sees_all  whether a video token in no region sees every reference, or only the free ones

    A video token sees the references of all subjects whose regions it is in. All other tokens see everything, the
    references too: models learn with references that see each other, and nano loses likeness when they are kept apart.
    """
    everything = tuple(range(len(references)))
    found: dict[tuple[int, ...], list[torch.Tensor]] = {}

    def add(visible: tuple[int, ...], tokens: torch.Tensor) -> None:
        if tokens.numel():
            found.setdefault(visible, []).append(tokens)

    # Each token's set of regions as one integer, so that there is a group for every set that occurs.
    weights = 2 ** torch.arange(len(bound), dtype=torch.int64)
    codes = (regions.to(torch.int64) * weights[:, None]).sum(dim=0)
    for code in codes.unique().tolist():
        subjects = [subject for bit, subject in enumerate(bound) if code >> bit & 1]
        if subjects or not outside_sees_all:
            visible = tuple(r for r in everything if owners[r] in subjects or owners[r] not in bound)
        else:
            visible = everything
        add(visible, torch.nonzero(codes == code).flatten() + video_start)
    add(everything, torch.arange(0, video_start))
    add(everything, torch.arange(video_start + regions.shape[1], total))
    return [QueryGroup(torch.cat(parts), visible) for visible, parts in found.items()]


def grouped_attention(
    attend: Attend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    groups: Sequence[QueryGroup],
    references: Sequence[range],
    strength: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """softmax attention [B, L, C] of every query over everything that is no reference and the references of its group.

    attend      (q [B, n, C], k [B, m, C], v [B, m, C]) -> [B, n, C], unmasked, any number of heads
    q, k, v     [B, L, C]; k and v are rearranged meanwhile and given back as they came (copied while gradients are on)
    groups      cover every token once
    references  the tokens of each reference, behind each other at the end of the sequence
    strength    in 0..1: of the attention weight that a query gives to a hidden reference when nothing is bound, the
                share 1 - strength stays and the rest goes to what it may see, in proportion. Below 1 this costs the
                unbound attention on top.
    chunk       queries a call
    """
    total = q.shape[1]
    chunk = chunk or max(MIN_CHUNK, total // 8)
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v))
    if strength < 1.0:
        out = attend(q, k, v)
        out = out.clone() if tracked else out  # the kernel keeps its result for the backward pass
        groups = [group for group in groups if len(group.sees) < len(references)]
    else:
        out = torch.empty_like(q)

    def run(group: QueryGroup, keys: torch.Tensor, values: torch.Tensor) -> None:
        for queries in group.queries.split(chunk):
            result = attend(q.index_select(1, queries), keys, values)
            if strength < 1.0:
                result = torch.lerp(out.index_select(1, queries), result, strength)
            out.index_copy_(1, queries, result)
            del result  # or it would live until the next chunk has its own

    start = references[0].start if references else total
    moved = []
    for group in groups:
        if group.sees == tuple(range(len(group.sees))):
            end = references[group.sees[-1]].stop if group.sees else start
            run(group, k[:, :end], v[:, :end])
        elif tracked:
            parts = [range(start), *(references[r] for r in group.sees)]
            run(group, *(torch.cat([tensor[:, p.start : p.stop] for p in parts], dim=1) for tensor in (k, v)))
        else:
            moved.append(group)
    if moved:
        _run_moved(run, moved, k, v, references)
    return out


def _run_moved(run, groups: list[QueryGroup], k: torch.Tensor, v: torch.Tensor, references: Sequence[range]) -> None:
    """Run groups whose references do not follow the other tokens directly, by copying them there for a while."""
    start = references[0].start
    longest = max(sum(len(references[r]) for r in group.sees) for group in groups)
    # Whole references, so that each one's original is either all saved or never written to.
    kept = next(tokens.stop for tokens in references if tokens.stop >= start + longest)
    saved = [(tensor, tensor[:, start:kept].clone()) for tensor in (k, v)]
    try:
        for group in groups:
            end = start
            for tokens in (references[r] for r in group.sees):
                first, end = end, end + len(tokens)
                for tensor, original in saved:
                    if tokens.stop <= kept:
                        source = original[:, tokens.start - start : tokens.stop - start]
                    else:
                        source = tensor[:, tokens.start : tokens.stop]
                    tensor[:, first:end].copy_(source)
            run(group, k[:, :end], v[:, :end])
    finally:
        for tensor, original in saved:
            tensor[:, start:kept].copy_(original)
