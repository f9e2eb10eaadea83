"""What a vision-language model has understood, in a CONDITIONING: among the prompt's tokens, or beside them.

Among them, every DiT that reads text reads it (`combine`). Beside them, only the identity hierarchy does: the tokens
ride in `model_conds` (`attach_relations`), and the cross-modal level takes them as further keys and values, as
ID-Crafter (arXiv 2511.00511) does in its hierarchical blocks. A DiT without an adapter leaves them alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.conds
import comfy.utils
import torch

from ..modules.aligner import join

KEY = "idcrafter_relations"


class RelationsCond(comfy.conds.CONDRegular):
    """[tokens [B, M, C], keys [B, M] 1 or 0] as one cond; a batch is padded to its longest.

    A list, because context windows cut tensors that happen to be as long as the video.
    """

    def process_cond(self, batch_size: int, **kwargs) -> RelationsCond:
        return RelationsCond([comfy.utils.repeat_to_batch_size(tensor, batch_size) for tensor in self.cond])

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        return isinstance(other, RelationsCond) and other.cond[0].shape[2] == self.cond[0].shape[2]

    def concat(self, others: Sequence[RelationsCond]) -> list[torch.Tensor]:
        conds = [self.cond, *(other.cond for other in others)]
        longest = max(cond[1].shape[1] for cond in conds)

        def pad(tensor: torch.Tensor) -> torch.Tensor:
            padded = tensor.new_zeros(tensor.shape[0], longest, *tensor.shape[2:])
            padded[:, : tensor.shape[1]] = tensor
            return padded

        return [torch.cat([pad(cond[i]) for cond in conds]) for i in range(2)]

    def size(self) -> list[int]:
        return list(self.cond[0].shape)


def attach_relations(conditioning: list, tokens: torch.Tensor, keys: torch.Tensor) -> list:
    """A copy of a CONDITIONING with tokens [1, M, C], keys [1, M] bool, beside the prompt's, for the hierarchy."""
    cond = RelationsCond([tokens, keys.to(tokens.dtype)])
    return [
        [embedding, {**values, "model_conds": {**values.get("model_conds", {}), KEY: cond}}]
        for embedding, values in conditioning
    ]


def combine(conditioning: list, tokens: torch.Tensor, keys: torch.Tensor, use: str) -> list:
    """A copy of a CONDITIONING with tokens [1, M, C], keys [1, M] bool, in the place of its own, behind or before them.

    use  replace, append or prepend
    Raises ValueError when the tokens are not as wide as the backbone's text.
    """
    tokens = tokens * keys[..., None].to(tokens)
    combined = []
    for embedding, values in conditioning:
        if embedding.shape[-1] != tokens.shape[-1]:
            raise ValueError(
                f"The aligner makes tokens of width {tokens.shape[-1]}, but the backbone's text has the width "
                f"{embedding.shape[-1]}; connect an aligner that was trained for this video model, and the "
                "conditioning of its own text encoder."
            )
        more = tokens.to(embedding).expand(len(embedding), -1, -1)
        mask = values.get("attention_mask")
        if mask is not None:
            also = keys.to(mask).expand(len(mask), -1)
            values = {**values, "attention_mask": join(mask, also, use)}
        combined.append([join(embedding, more, use), dict(values)])
    return combined


def readable(
    context: torch.Tensor, relations: Sequence[torch.Tensor] | None, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that a hierarchy for tokens of this width reads, [B, M, width], and which of them exist, [B, M] bool.

    context    [B, L, C], the prompt's; core pads it with zeros, which are no words
    relations  tokens and keys of a RelationsCond, or None
    A hierarchy that was trained on a VLM's bare states is as wide as those, so it reads no other prompt.
    Raises ValueError when nothing has this width.
    """
    parts = [(context, context.abs().amax(dim=-1) > 0)]
    if relations is not None:
        tokens, keys = relations
        if tokens.shape[-1] != width:
            raise ValueError(
                f"The VLM's tokens have the width {tokens.shape[-1]}, but the adapter's hierarchy reads tokens of "
                f"width {width}; connect the aligner that was trained with the adapter to Encode Relations."
            )
        parts.append((tokens.to(context.dtype), keys > 0.5))
    parts = [part for part in parts if part[0].shape[-1] == width]
    if not parts:
        raise ValueError(
            f"The prompt's tokens have the width {context.shape[-1]}, but the adapter's hierarchy reads tokens of "
            f"width {width}: it was trained on a VLM's hidden states. Connect Encode Relations with 'hierarchy'."
        )
    return torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], dim=1)
