"""The identity hierarchy: subjects' tokens are made consistent in themselves, then told apart, then read the prompt.

ID-Crafter (arXiv 2511.00511) draws a block of three attentions: inside of each subject, over all subjects, and to the
features of a vision language model. Its sizes, gates and places are not published; here is this project's reading of it
for identity tokens:

- *intra-subject*: all tokens of all photos of one subject attend to each other; the photos' mean is the subject.
- *inter-subject*: all subjects' tokens attend to each other.
- *cross-modal*: a subject's tokens attend to those of the prompt (text or a vision language model's hidden states).

Nothing here sees the noisy video, so a run computes it once. A layer of the hierarchy serves the DiT's blocks until the
next one takes over, which is how the levels are interleaved with the blocks. Each level is added through a gate that
starts at zero. There are no positions of subjects or photos: their order changes nothing but the order of the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .attention import attend


@dataclass(frozen=True)
class Levels:
    """How much of each level is added: 0 leaves it out exactly, 1 is as trained."""

    intra: float = 1.0
    inter: float = 1.0
    cross_modal: float = 1.0


class GatedAttention(nn.Module):
    """Tokens [B, N, width] attend to themselves or to a context [B, M, context_width] -> what is added to them."""

    def __init__(self, operations: Any, width: int, heads: int, context_width: int | None = None, **factory):
        super().__init__()
        self.heads = heads
        self.norm = operations.LayerNorm(width, **factory)
        self.norm_context = None if context_width is None else operations.LayerNorm(context_width, **factory)
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_kv = operations.Linear(context_width or width, 2 * width, bias=False, **factory)
        self.to_out = operations.Linear(width, width, bias=False, **factory)
        self.gate = nn.Parameter(torch.empty(width, **factory))

    def forward(
        self, tokens: torch.Tensor, keys: torch.Tensor | None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """keys: [B, N] or [B, M] bool, which of the tokens looked at exist; None for all."""
        tokens = self.norm(tokens)
        k, v = self.to_kv(tokens if self.norm_context is None else self.norm_context(context)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(tokens), k, v, self.heads, keys)) * self.gate.to(tokens)


class HierarchyLayer(nn.Module):
    """One round of the three levels."""

    def __init__(self, operations: Any, width: int, heads: int, context_width: int, **factory):
        super().__init__()
        self.intra = GatedAttention(operations, width, heads, **factory)
        self.inter = GatedAttention(operations, width, heads, **factory)
        self.cross_modal = GatedAttention(operations, width, heads, context_width, **factory)

    def forward(
        self,
        tokens: torch.Tensor,
        photos: torch.Tensor,
        context: torch.Tensor | None,
        context_keys: torch.Tensor | None,
        levels: Levels,
    ) -> torch.Tensor:
        """tokens [B, S, P, K, width] of every photo, photos [B, S, P] bool, context [B, M, context_width] or None."""
        exist = photos[..., None].expand(-1, -1, -1, tokens.shape[3])
        if levels.intra:
            within = tokens.flatten(0, 1).flatten(1, 2)
            tokens = tokens + levels.intra * self.intra(within, exist.flatten(0, 1).flatten(1)).view_as(tokens)
        if levels.inter:
            # A subject speaks to the others with one voice, however many photos it has.
            one = photo_mean(tokens, photos)
            told = self.inter(one.flatten(1, 2), exist.any(dim=2).flatten(1))
            tokens = tokens + levels.inter * told.view_as(one)[:, :, None]
        if levels.cross_modal and context is not None:
            read = self.cross_modal(tokens.flatten(1, 3), context_keys, context)
            tokens = tokens + levels.cross_modal * read.view_as(tokens)
        return tokens


class IdentityHierarchy(nn.Module):
    """(tokens [B, S, P, K, width], photos [B, S, P]) -> `depth` stages of subjects' tokens [B, S, K, width].

    operations     has Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    context_width  of the prompt's tokens
    """

    def __init__(self, operations: Any, width: int, heads: int, context_width: int, depth: int, **factory):
        super().__init__()
        self.layers = nn.ModuleList(
            HierarchyLayer(operations, width, heads, context_width, **factory) for _ in range(depth)
        )

    def forward(
        self,
        tokens: torch.Tensor,
        photos: torch.Tensor,
        context: torch.Tensor | None = None,
        context_keys: torch.Tensor | None = None,
        levels: Levels = Levels(),  # noqa: B008 (frozen)
    ) -> list[torch.Tensor]:
        photos = photos > 0
        stages = []
        for layer in self.layers:
            tokens = layer(tokens, photos, context, context_keys, levels)
            stages.append(photo_mean(tokens, photos))
        return stages


def photo_mean(tokens: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Tokens [B, S, P, K, width] of the photos that exist (photos [B, S, P] bool) -> their mean [B, S, K, width]."""
    weights = photos.to(tokens.dtype)[..., None, None]
    return (tokens * weights).sum(dim=2) / weights.sum(dim=2).clamp(min=1)
