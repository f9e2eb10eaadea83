"""How identities enter a video DiT: cross-attention to each subject, mixed token by token.

For a video token h and subjects n with identity tokens E_n (feizc/Ingredients, models/transformer_ingredients.py):

    h  +=  sum_n w_n(h) CrossAttention(h, E_n)

Keys and values do not depend on the video, so a run computes them once (`BlockIdentity`). Queries do not depend on the
subject: one projection serves all, and so does one output projection, because it is linear and has no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .attention import attend
from .id_router import IDRouter, route


@dataclass(frozen=True, eq=False)
class BlockIdentity:
    """What one block needs of the subjects, the same at every step.

    keys, values  [B, S, K, inner], of the cross-attention
    router        the router's keys [B, S, width], one more with a null identity; None without a router
    present       [B, S] 1 for a subject, 0 for padding
    """

    keys: torch.Tensor
    values: torch.Tensor
    router: torch.Tensor | None
    present: torch.Tensor

    def rows(self, part: slice) -> BlockIdentity:
        """The same for some rows of the batch."""
        router = None if self.router is None else self.router[part]
        return BlockIdentity(self.keys[part], self.values[part], router, self.present[part])


class PerceiverCrossAttention(nn.Module):
    """Video tokens [B, L, width] look at identity tokens [B, K, id_width] -> [B, L, width].

    operations  has Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    The names are those of `perceiver_cross_attention` in the released Ingredients and ConsisID checkpoints.
    """

    def __init__(self, operations: Any, width: int, id_width: int, heads: int, head_width: int, **factory):
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm1 = operations.LayerNorm(id_width, **factory)
        self.norm2 = operations.LayerNorm(width, **factory)
        self.to_q = operations.Linear(width, inner, bias=False, **factory)
        self.to_kv = operations.Linear(id_width, 2 * inner, bias=False, **factory)
        self.to_out = operations.Linear(inner, width, bias=False, **factory)

    def keys_values(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Identity tokens [..., K, id_width] -> keys and values [..., K, inner]."""
        k, v = self.to_kv(self.norm1(tokens)).chunk(2, dim=-1)
        return k, v

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        k, v = self.keys_values(tokens)
        return self.to_out(attend(self.to_q(self.norm2(hidden)), k, v, self.heads))


def block_identity(
    attention: PerceiverCrossAttention, router: IDRouter | None, tokens: torch.Tensor, present: torch.Tensor
) -> BlockIdentity:
    """Identity tokens [B, S, K, id_width], present [B, S] -> what `insert` needs of them in one block."""
    return BlockIdentity(*attention.keys_values(tokens), None if router is None else router.keys(tokens), present)


def insert(
    attention: PerceiverCrossAttention,
    router: IDRouter | None,
    hidden: torch.Tensor,
    identity: BlockIdentity,
    temperature: float = 1.0,
    known: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Tokens [B, L + R, width] -> what is added to them, the subjects' weights [B, L, S] in the video, the router's
    logits.

    known  [R, S] weights of the last R tokens, which are not the video's: of references it is known whose they are

    Without a router each subject has the same weight everywhere. Memory does not grow with the number of subjects.
    """
    logits = None
    video = hidden if known is None else hidden[:, : -len(known)]
    if router is None:
        share = identity.present / identity.present.sum(dim=1, keepdim=True).clamp(min=1)
        weights = share[:, None].expand(-1, video.shape[1], -1)
    else:
        logits = router(video, identity.router)
        weights = route(logits, identity.present, temperature)
    q = attention.to_q(attention.norm2(hidden))
    shares = weights.to(q.dtype)
    if known is not None:
        shares = torch.cat([shares, (known * identity.present[:, None]).to(q)], dim=1)
    mixed = q.new_zeros(1)
    for s in range(identity.present.shape[1]):
        seen = attend(q, identity.keys[:, s], identity.values[:, s], attention.heads)
        mixed = torch.addcmul(mixed, shares[:, :, s, None], seen)
    return attention.to_out(mixed.expand_as(q)), weights, logits
