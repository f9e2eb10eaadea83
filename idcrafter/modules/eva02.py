"""The image tower of EVA02-CLIP-L/14 at 336 px, which tells Ingredients and its relatives how a face looks.

Names and sizes are those of `visual` in the released checkpoint (QuanSun/EVA-CLIP, EVA02_CLIP_L_336_psz14_s6B.pt); the
architecture is baaivision/EVA, EVA-CLIP/rei/eva_clip/eva_vit_model.py with the options of EVA02-CLIP-L-14-336.json:
rotary positions over a grid of 16 stretched to 24, SwiGLU with a norm inside, a norm on the attention's result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .attention import attend

EPS = 1e-6
# The grid that the rotary positions were made for; a finer one is squeezed into it.
TRAINED_GRID = 16
THETA = 10000.0


@dataclass(frozen=True)
class EvaConfig:
    """Sizes of a tower; the defaults are the release's.

    inner    of the feed-forward layers, int(width * 2.6667)
    maps     the hidden maps that a facial extractor takes are the inputs of these blocks
    """

    image: int = 336
    patch: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    inner: int = 2730
    out_width: int = 768
    maps: tuple[int, ...] = (4, 8, 12, 16, 20)

    @property
    def grid(self) -> int:
        return self.image // self.patch


class EvaAttention(nn.Module):
    """Self-attention with rotary positions on the patches, none on the class token."""

    def __init__(self, operations: Any, width: int, heads: int, **factory):
        super().__init__()
        self.heads = heads
        self.q_proj = operations.Linear(width, width, bias=False, **factory)
        self.k_proj = operations.Linear(width, width, bias=False, **factory)
        self.v_proj = operations.Linear(width, width, bias=False, **factory)
        self.q_bias = nn.Parameter(torch.empty(width, **factory))
        self.v_bias = nn.Parameter(torch.empty(width, **factory))
        self.inner_attn_ln = operations.LayerNorm(width, eps=EPS, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q = rotate(self.q_proj(x) + self.q_bias.to(x), self.heads, *rotation)
        k = rotate(self.k_proj(x), self.heads, *rotation)
        v = self.v_proj(x) + self.v_bias.to(x)
        return self.proj(self.inner_attn_ln(attend(q, k, v, self.heads)))


class SwiGLU(nn.Module):
    def __init__(self, operations: Any, width: int, inner: int, **factory):
        super().__init__()
        self.w1 = operations.Linear(width, inner, **factory)
        self.w2 = operations.Linear(width, inner, **factory)
        self.ffn_ln = operations.LayerNorm(inner, eps=EPS, **factory)
        self.w3 = operations.Linear(inner, width, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w3(self.ffn_ln(nn.functional.silu(self.w1(x)) * self.w2(x)))


class EvaBlock(nn.Module):
    def __init__(self, operations: Any, config: EvaConfig, **factory):
        super().__init__()
        self.norm1 = operations.LayerNorm(config.width, eps=EPS, **factory)
        self.attn = EvaAttention(operations, config.width, config.heads, **factory)
        self.norm2 = operations.LayerNorm(config.width, eps=EPS, **factory)
        self.mlp = SwiGLU(operations, config.width, config.inner, **factory)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotation)
        return x + self.mlp(self.norm2(x))


class EvaTower(nn.Module):
    """Pictures [B, 3, image, image], normalised -> (embedding [B, out_width], hidden maps [B, 1 + grid^2, width] each).

    operations  has Conv2d, Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    The embedding is not of unit length.
    """

    def __init__(self, config: EvaConfig, operations: Any, **factory):
        super().__init__()
        self.config = c = config
        self.patch_embed = nn.Module()
        self.patch_embed.proj = operations.Conv2d(3, c.width, kernel_size=c.patch, stride=c.patch, **factory)
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.width, **factory))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + c.grid**2, c.width, **factory))
        self.blocks = nn.ModuleList(EvaBlock(operations, c, **factory) for _ in range(c.depth))
        self.norm = operations.LayerNorm(c.width, eps=EPS, **factory)
        self.head = operations.Linear(c.width, c.out_width, **factory)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x).expand(len(x), -1, -1), x], dim=1) + self.pos_embed.to(x)
        rotation = rotary(self.config.grid, self.config.width // self.config.heads, x.device)
        maps = []
        for i, block in enumerate(self.blocks):
            if i in self.config.maps:
                maps.append(x)
            x = block(x, rotation)
        return self.head(self.norm(x)[:, 0]), maps


def rotary(grid: int, head_width: int, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [grid^2, head_width]: the first half of a head turns with the row, the second with the column."""
    half = head_width // 2
    speeds = THETA ** -(torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    places = torch.arange(grid, dtype=torch.float32, device=device) / grid * TRAINED_GRID
    angles = (places[:, None] * speeds).repeat_interleave(2, dim=-1)
    both = torch.cat([angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)], dim=-1).flatten(0, 1)
    return both.cos(), both.sin()


def rotate(x: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the neighbouring pairs of all tokens but the first; x [B, N, heads * head_width]."""
    first, rest = x[:, :1], x[:, 1:].unflatten(-1, (heads, -1)).float()
    pairs = rest.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    rest = rest * cos[:, None] + turned * sin[:, None]
    return torch.cat([first, rest.flatten(-2).to(x)], dim=1)


def config_of(shapes: dict[str, Sequence[int]]) -> EvaConfig:
    """The sizes that a tower's tensors tell; ValueError names the tensor that is missing.

    Heads are 64 wide, as in every tower of the family; narrower towers have one head.
    """
    try:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        grid = round((shapes["pos_embed"][1] - 1) ** 0.5)
        inner = shapes["blocks.0.mlp.w1.weight"][0]
        out_width = shapes["head.weight"][0]
    except KeyError as error:
        raise ValueError(f"the tensor {error} of an EVA02-CLIP image tower is missing") from error
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    return EvaConfig(grid * patch, patch, width, depth, max(1, width // 64), inner, out_width)
