"""How an aligner is trained: first to say what the text encoder says, then together with the video model.

CINEMA (arXiv 2503.10391) pre-trains its AlignerNet by the mean squared error and the cosine similarity to the text
encoder's tokens of the same prompt, and then goes on with the video model's own loss; an aligner that is not
pre-trained is worse. The weights of the two terms are not published; here both count once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, pad

from ..modules.aligner import Aligner, join


@dataclass(frozen=True, eq=False)
class AlignmentBatch:
    """What a VLM and a text encoder have made of the same prompts.

    states  [B, L, in_width], the VLM's hidden states; keys [B, L] bool, which of them exist
    text    [B, T, out_width], the text encoder's tokens, zero behind the words; words [B, T] bool, which are words
    """

    states: torch.Tensor
    keys: torch.Tensor
    text: torch.Tensor
    words: torch.Tensor


def pad_batch(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [L_i, C] -> [B, L, C] with zeros behind them, and which of it are theirs, [B, L] bool."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    padded = torch.stack([pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    return padded, torch.arange(longest)[None] < lengths[:, None]


def alignment_loss(
    tokens: torch.Tensor, text: torch.Tensor, words: torch.Tensor, cosine_weight: float = 1.0
) -> dict[str, torch.Tensor]:
    """How far an aligner's tokens [B, M, C] are from a text encoder's [B, T, C]: "mse", "cosine" and their "loss".

    words  [B, T] bool. Behind the words the text counts as zeros, as a video model gets it, so the aligner learns to
           be silent there: the error is over all M tokens. Zeros have no direction: the cosine is over words only.
    A text that is longer than the aligner's tokens is cut to them.
    """
    count = tokens.shape[1]
    missing = max(0, count - text.shape[1])
    words = pad(words[:, :count], (0, missing))
    text = pad(text[:, :count], (0, 0, 0, missing)) * words[..., None]
    tokens, text = tokens.float(), text.float()
    mse = (tokens - text).square().mean()
    near = cosine_similarity(tokens, text, dim=-1) * words
    cosine = 1 - near.sum() / words.sum().clamp(min=1)
    return {"loss": mse + cosine_weight * cosine, "mse": mse, "cosine": cosine}


def pretraining(
    batch_of: Callable[[int], AlignmentBatch], cosine_weight: float = 1.0
) -> Callable[[Aligner, int], dict[str, torch.Tensor]]:
    """The step of `training.loop.Trainer` that pre-trains an Aligner; `batch_of(n)` gives the n-th batch."""

    def step(aligner: Aligner, n: int) -> dict[str, torch.Tensor]:
        batch = batch_of(n)
        tokens, _ = aligner(batch.states.to(aligner.latents), batch.keys)
        return alignment_loss(tokens, batch.text.to(tokens.device), batch.words.to(tokens.device), cosine_weight)

    return step


def guided_text(aligner: Aligner, batch: AlignmentBatch) -> torch.Tensor:
    """What the video model reads in joint training, [B, M, out_width]: its loss reaches the aligner through this.

    The aligner's tokens in the place that `config.reading.use` gives them; for `hierarchy`, the tokens alone, which
    are the adapter's further context.
    """
    tokens, _ = aligner(batch.states.to(aligner.latents), batch.keys)
    use = aligner.config.reading.use
    return join(batch.text.to(tokens), tokens, "replace" if use == "hierarchy" else use)
