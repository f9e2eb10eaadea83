"""What one training step of an identity adapter sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import pad

# An input of the model: a tensor [B, ...], a list of such, or a constant.
Cond = torch.Tensor | list | float | int


@dataclass(frozen=True, eq=False)
class AdapterBatch:
    """B clips of one shape, in the model's space.

    clean    [B, C, T, h, w] latents
    context  [B, M, D] of the prompts, zeros where a prompt has ended
    faces    [B, S, P, id_width] embeddings of photos, zeros where there is none
    maps     [B, S, P, M, visual_width] hidden maps each, of the same photos
    photos   [B, S, P] 1 for a photo, 0 for padding; a subject without a photo is not there
    owners   [B, T * H * W] int64, which subject (from 0) a token of the video shows; -1 where nobody or more than one
    weights  [B, 1, T, h, w], how much each place counts; None for all the same
    conds    further inputs of the model by their names in `apply_model`: references, for instance
    absent   the same inputs without the people, by name; one that is not here is zeros then
    references  the subject of each reference token group, in their order, the same in all rows; None for nobody's. Only
             an adapter with gates for references asks for it
    """

    clean: torch.Tensor
    context: torch.Tensor
    faces: torch.Tensor
    maps: tuple[torch.Tensor, ...]
    photos: torch.Tensor
    owners: torch.Tensor
    weights: torch.Tensor | None = None
    conds: dict[str, Cond] = field(default_factory=dict)
    absent: dict[str, Cond] = field(default_factory=dict)
    references: tuple[int | None, ...] = ()

    def without(self, text: torch.Tensor, people: torch.Tensor, empty: torch.Tensor) -> AdapterBatch:
        """The same where rows have lost their text or their people, as the branches of guidance are without them.

        text, people  [B] bool, the rows that lose them
        empty         [m, D], the context of the empty prompt, m <= M
        """
        empty = pad(empty, (0, 0, 0, self.context.shape[1] - len(empty)))
        return replace(
            self,
            context=torch.where(_rows(text, self.context), empty.to(self.context), self.context),
            photos=self.photos * ~_rows(people, self.photos),
            # Without its text a clip does not say who stands where.
            owners=torch.where(_rows(text | people, self.owners), -1, self.owners),
            conds={name: _without(cond, self.absent.get(name), people) for name, cond in self.conds.items()},
        )


def _without(cond: Cond, absent: Cond | None, people: torch.Tensor) -> Cond:
    if isinstance(cond, list):
        return [_without(each, absent and absent[i], people) for i, each in enumerate(cond)]
    if not torch.is_tensor(cond):
        return cond
    return torch.where(_rows(people, cond), torch.zeros_like(cond) if absent is None else absent.to(cond), cond)


def _rows(lost: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return lost.view(-1, *[1] * (like.ndim - 1))
