"""The released Ingredients checkpoint: an identity adapter beside the tensors of its CogVideoX, in ConsisID's names.

Sizes are read from the tensors. What shapes don't tell is fixed in the released code (feizc/Ingredients,
models/local_facial_extractor.py): heads are 64 wide in the extractor and 128 in the cross-attention. Its config.json
has three entries for the extractor (LFE_*) that the code ignores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..idcrafter.modules.identity_adapter import AdapterConfig

EXTRACTOR_HEAD, ATTENTION_HEAD = 64, 128
_EXTRACTOR, _ATTENTION = "local_facial_extractor", "perceiver_cross_attention"


def config_of(tensors: Mapping[str, torch.Tensor], config: Mapping | None) -> AdapterConfig:
    """The adapter's sizes, from its tensors and, where there is one, the config.json beside them.

    Raises ValueError that names the tensor that is missing, or says which numbers do not go together.
    """
    try:
        _, tokens, width = tensors[f"{_EXTRACTOR}.latents"].shape
        token_width = tensors[f"{_EXTRACTOR}.proj_out"].shape[1]
        id_width = tensors[f"{_EXTRACTOR}.id_embedding_mapping.0.weight"].shape[1]
        id_tokens = tensors[f"{_EXTRACTOR}.id_embedding_mapping.6.weight"].shape[0] // width
        visual_width = tensors[f"{_EXTRACTOR}.mapping_0.0.weight"].shape[1]
        inner = tensors[f"{_EXTRACTOR}.layers.0.0.to_q.weight"].shape[0]
        attention, video_width = tensors[f"{_ATTENTION}.0.to_q.weight"].shape
    except KeyError as error:
        raise ValueError(f"of an identity adapter in Ingredients' names the tensor {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"a tensor of its identity adapter has another number of axes ({error})") from error
    insertions = _count(tensors, rf"{_ATTENTION}\.(\d+)\.")
    blocks, every = _interval(tensors, config, insertions)
    return AdapterConfig(
        "cogvideox",
        video_width,
        blocks,
        every=every,
        id_width=id_width,
        visual_width=visual_width,
        scales=_count(tensors, rf"{_EXTRACTOR}\.mapping_(\d+)\."),
        extractor_width=width,
        extractor_depth=_count(tensors, rf"{_EXTRACTOR}\.layers\.(\d+)\."),
        extractor_heads=max(1, inner // EXTRACTOR_HEAD),
        extractor_head_width=min(inner, EXTRACTOR_HEAD),
        tokens=tokens,
        id_tokens=id_tokens,
        token_width=token_width,
        heads=max(1, attention // ATTENTION_HEAD),
        head_width=min(attention, ATTENTION_HEAD),
    )


def _count(tensors: Mapping, pattern: str) -> int:
    """One more than the highest number in these names."""
    return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)


def _interval(tensors: Mapping, config: Mapping | None, insertions: int) -> tuple[int, int]:
    """(blocks of the DiT, how many of them an insertion serves)."""
    # An adapter that was cut out of the release has no blocks beside it.
    blocks = _count(tensors, r"transformer_blocks\.(\d+)\.") or (config or {}).get("num_layers") or 2 * insertions
    every = (config or {}).get("cross_attn_interval") or -(-blocks // insertions)
    if -(-blocks // every) != insertions:
        raise ValueError(
            f"it has {insertions} insertions, but one after every {every} of {blocks} blocks are {-(-blocks // every)}"
        )
    return blocks, every
