"""Multi-head attention over projected tokens, and the masks that keep padding out of it."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, keys: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention with heads side by side in the last axis.

    q [B, Q, C], k and v [B, K, C]
    keys  [B, K] bool, the keys that exist; None for all. A row without a key gives zeros.
    -> [B, Q, C]
    """

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    mask = None
    if keys is not None:
        # An empty row would be 0/0; it sees everything and is then put to zero.
        some = keys.any(dim=1)
        mask = (keys | ~some[:, None])[:, None, None, :]
    out = scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask).transpose(1, 2).flatten(2)
    return out if keys is None else out * some[:, None, None]
