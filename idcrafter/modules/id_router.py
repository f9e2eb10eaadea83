"""The ID router of Ingredients: which subject a video token shows, as weights that sum to 1.

Names and sizes are those of `router` in the released checkpoint (feizc/Ingredients, models/transformer_ingredients.py;
arXiv 2501.01790). Its softmax has neither a scale nor a temperature, and no identity for the background, which so gets
a mixture of the subjects as well. The null identity is this project's addition: a learned key that competes with the
subjects' and brings nothing.

A logit is (W_q h) . k = h . (W_q^T k), and the keys k do not depend on the video. So the projection goes into the keys
once a run, and a step compares the tokens with one vector a subject, without a product of the size of W_q for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class IDRouter(nn.Module):
    """Compares video tokens with one key a subject.

    operations  has Linear and LayerNorm: torch.nn, or comfy.ops for memory management
    width       of the video tokens
    id_width    of the identity tokens
    tokens      identity tokens a subject; they are merged with one learned weight each
    null        whether there is a null identity for the background
    """

    def __init__(self, operations: Any, width: int, id_width: int, tokens: int, null: bool = False, **factory):
        super().__init__()
        self.width = width
        self.norm1 = operations.LayerNorm(id_width, **factory)
        self.norm2 = operations.LayerNorm(width, **factory)
        self.id_merge = operations.Linear(tokens, 1, bias=False, **factory)
        self.to_q = operations.Linear(width, id_width, bias=False, **factory)
        self.to_kv = operations.Linear(id_width, id_width, bias=False, **factory)
        self.null = nn.Parameter(torch.empty(id_width, **factory)) if null else None

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """Identity tokens [B, S, K, id_width] -> keys [B, S, width], one more with a null identity."""
        keys = self.to_kv(self.id_merge(self.norm1(tokens).transpose(-1, -2)).squeeze(-1))
        if self.null is not None:
            keys = torch.cat([keys, self.null.to(keys).expand(len(keys), 1, -1)], dim=1)
        # Asked of the layer itself, because its weight may be quantised, patched, or on another device.
        projection = self.to_q(torch.eye(self.width, dtype=keys.dtype, device=keys.device))
        return keys @ projection.T

    def forward(self, hidden: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Video tokens [B, L, width] and `keys` -> logits [B, L, S], with a null identity [B, L, S + 1]."""
        return self.norm2(hidden) @ keys.transpose(1, 2)


def route(logits: torch.Tensor, present: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Logits [B, L, S], or [B, L, S + 1] with a null identity -> the subjects' weights [B, L, S], float32.

    present  [B, S] 1 for a subject, 0 for padding, whose weights are zero. The others' sum to 1, less what the null
             identity takes; a row in which nobody is present has zeros only.
    """
    subjects = present.shape[1]
    here = nn.functional.pad(present, (0, logits.shape[-1] - subjects), value=1.0)[:, None] > 0
    # Finite, so that a row without anybody is not 0/0.
    scores = (logits.float() / temperature).masked_fill(~here, torch.finfo(torch.float32).min)
    return scores.softmax(dim=-1)[..., :subjects] * present[:, None].float()
