"""The facial extractor of Ingredients, a multi-scale projector: one face -> a few identity tokens.

Names and sizes are those of `local_facial_extractor` in the released Ingredients checkpoint (feizc/Ingredients,
models/local_facial_extractor.py), which are ConsisID's too: a recogniser's embedding of 512 beside EVA02-CLIP-L-336's
image embedding of 768, and five of that tower's hidden maps of [577, 1024], go into 32 tokens of 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .attention import attend


class PerceiverAttention(nn.Module):
    """Latents [B, N, width] look at a context [B, M, width] and at themselves -> [B, N, width]."""

    def __init__(self, operations: Any, width: int, heads: int, head_width: int, **factory):
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm1 = operations.LayerNorm(width, **factory)
        self.norm2 = operations.LayerNorm(width, **factory)
        self.to_q = operations.Linear(width, inner, bias=False, **factory)
        self.to_kv = operations.Linear(width, 2 * inner, bias=False, **factory)
        self.to_out = operations.Linear(inner, width, bias=False, **factory)

    def forward(self, context: torch.Tensor, latents: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """keys: [B, M] bool, which of the context exists; None for all."""
        latents = self.norm2(latents)
        k, v = self.to_kv(torch.cat([self.norm1(context), latents], dim=1)).chunk(2, dim=-1)
        if keys is not None:
            keys = torch.cat([keys, keys.new_ones(latents.shape[:2])], dim=1)
        return self.to_out(attend(self.to_q(latents), k, v, self.heads, keys))


class FacialExtractor(nn.Module):
    """(identity [B, id_width], `scales` hidden maps [B, M, visual_width]) -> identity tokens [B, tokens, out_width].

    operations    has Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    id_width      what describes the face as a whole: its embedding, and an image encoder's where there is one
    visual_width  of the hidden maps; the released extractor's maps have its own width
    scales        number of hidden maps, from fine to coarse; `depth` layers are shared out to them in order
    """

    def __init__(
        self,
        operations: Any,
        id_width: int = 1280,
        visual_width: int = 1024,
        width: int = 1024,
        out_width: int = 2048,
        tokens: int = 32,
        id_tokens: int = 5,
        scales: int = 5,
        depth: int = 10,
        heads: int = 16,
        head_width: int = 64,
        **factory,
    ):
        super().__init__()
        if depth % scales:
            raise ValueError(f"The facial extractor's {depth} layers can't be shared out to {scales} hidden maps.")
        self.tokens, self.id_tokens, self.scales = tokens, id_tokens, scales

        def mapping(inner: int, outer: int) -> nn.Sequential:
            return nn.Sequential(
                operations.Linear(inner, width, **factory),
                operations.LayerNorm(width, **factory),
                nn.LeakyReLU(),
                operations.Linear(width, width, **factory),
                operations.LayerNorm(width, **factory),
                nn.LeakyReLU(),
                operations.Linear(width, outer, **factory),
            )

        self.latents = nn.Parameter(torch.empty(1, tokens, width, **factory))
        self.proj_out = nn.Parameter(torch.empty(width, out_width, **factory))
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(operations, width, heads, head_width, **factory),
                    nn.Sequential(
                        operations.LayerNorm(width, **factory),
                        operations.Linear(width, 4 * width, bias=False, **factory),
                        nn.GELU(),
                        operations.Linear(4 * width, width, bias=False, **factory),
                    ),
                ]
            )
            for _ in range(depth)
        )
        for i in range(scales):
            self.add_module(f"mapping_{i}", mapping(visual_width, width))
        self.id_embedding_mapping = mapping(id_width, width * id_tokens)

    def forward(self, identity: torch.Tensor, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        if len(maps) != self.scales:
            raise ValueError(f"The facial extractor takes {self.scales} hidden maps of the image, not {len(maps)}.")
        identity = self.id_embedding_mapping(identity).unflatten(-1, (self.id_tokens, -1))
        latents = torch.cat([self.latents.to(identity).expand(len(identity), -1, -1), identity], dim=1)
        per_scale = len(self.layers) // self.scales
        for i, features in enumerate(maps):
            context = torch.cat([identity, self.get_submodule(f"mapping_{i}")(features)], dim=1)
            for j in range(i * per_scale, (i + 1) * per_scale):
                attention, feed_forward = self.layers[j]
                latents = attention(context, latents) + latents
                latents = feed_forward(latents) + latents
        return latents[:, : self.tokens] @ self.proj_out.to(latents)
