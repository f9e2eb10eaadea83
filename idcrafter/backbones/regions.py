"""Region binding: in each place of the frame, only the references of the subjects who stand there are seen.

Self-attention of a model with reference tokens mixes every reference into every place. Bound, a video token in a
subject's region sees the video and that subject's references; `modules.region_attention` says who else sees what, and
what `strength` means. The same split serves all conds of a batch, those with references of zeros included, so that
guidance compares like with like. Nothing is trained, and that it helps a released model is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..modules.region_attention import QueryGroup, grouped_attention, query_groups
from ..subjects.references import order_photos
from ..subjects.regions import Region, check_region, token_regions
from ..subjects.subject import Cast
from . import wan
from .schedule import SigmaRange

KEY = "idcrafter_regions"
OUTSIDE = ("all references", "no references")


@dataclass(frozen=True, eq=False)
class RegionBinding:
    """How a cast is bound to its places.

    regions        {subject's index: region}; subjects without one are free, everybody sees their references
    outside        one of OUTSIDE: what video tokens in no region see besides the video and the free references
    strength       0..1, as in `grouped_attention`
    start, end     share of the schedule, 0..1, between which binding is on
    fade           whether the strength falls from there to there, in a straight line over sigma, to nothing
    """

    cast: Cast
    regions: Mapping[int, Region]
    outside: str = OUTSIDE[0]
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    fade: bool = False

    def bind(self, model):
        """A clone of the MODEL with this binding; ValueError when it is no model with reference tokens.

        What only the sampler knows (are there references, does a mask have the video's frames) is refused when it
        starts.
        """
        wan.require_wan(model, "Region binding")
        return wan.replace_self_attention(model, KEY, self._begin_run)

    def _begin_run(self, run: wan.Run) -> wan.BeginCall:
        owners = self._check_run(run)
        on = SigmaRange.of(run.to_sigma, self.start, self.end)
        plans: dict[wan.TokenLayout, list[QueryGroup]] = {}

        def begin_call(layout: wan.TokenLayout, sigma: float) -> wan.Attention | None:
            if sigma not in on:
                return None
            strength = self.strength
            if self.fade:
                strength *= min((sigma - on.last) / (on.first - on.last), 1.0)
            if layout not in plans:
                plans[layout] = self.groups(layout, owners[len(layout.references)])
            return self._attention(plans[layout], layout, strength)

        return begin_call

    def groups(self, layout: wan.TokenLayout, owners: tuple[int | None, ...]) -> list[QueryGroup]:
        """All tokens of a call, split by what they see (on the CPU)."""
        regions = token_regions(list(self.regions.values()), layout.frames, layout.rows, layout.columns, layout.patch)
        return query_groups(
            regions,
            list(self.regions),
            owners,
            layout.video.start,
            layout.references,
            layout.total,
            outside_sees_all=self.outside == OUTSIDE[0],
        )

    @staticmethod
    def _attention(groups: list[QueryGroup], layout: wan.TokenLayout, strength: float) -> wan.Attention:
        on_device: list[QueryGroup] = []

        def attention(attend: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: dict) -> torch.Tensor:
            if not on_device:
                on_device.extend(group.to(q.device) for group in groups)
            return grouped_attention(attend, q, k, v, on_device, layout.references, strength)

        return attention

    def _check_run(self, run: wan.Run) -> dict[int, tuple[int | None, ...]]:
        """{number of references: the subject of each}, for every number that a cond of this run has.

        Raises ValueError when there is nothing to bind or it does not fit.
        """
        for subject, region in self.regions.items():
            check_region(region, self.cast.subjects[subject].name, run.frames, run.rows, run.columns)
        named = any(name is not None for names in run.references for name in names)
        owners: dict[int, tuple[int | None, ...]] = {}
        for names in filter(None, run.references):
            found = self._owners_by_name(names) if named else self._owners_by_order(len(names))
            if owners.setdefault(len(names), found) != found:
                raise ValueError(
                    f"Two of the conditionings have {len(names)} references each, but of different subjects; connect "
                    "the outputs of one Cast to Video."
                )
        if not owners:
            where = (
                "a VACE model has its references inside of the video, so there is nothing to bind them by"
                if run.kind == "VaceWanModel"
                else "use the outputs of Cast to Video with a rule that gives references to the model"
            )
            raise ValueError(f"Region binding found no reference tokens in the conditioning: {where}.")
        present = {owner for found in owners.values() for owner in found}
        for subject in self.regions:
            if subject not in present:
                raise ValueError(
                    f"Subject '{self.cast.subjects[subject].name}' has a region, but none of the references in the "
                    "conditioning; connect the cast that Cast to Video got, or remove the region."
                )
        return owners

    def _owners_by_name(self, names: tuple[str | None, ...]) -> tuple[int | None, ...]:
        subjects = {subject.name: i for i, subject in enumerate(self.cast.subjects)}
        return tuple(subjects.get(name) for name in names)

    def _owners_by_order(self, count: int) -> tuple[int | None, ...]:
        """For conditioning that another node made: the first photos of all subjects, then the second ones."""
        photos = order_photos(self.cast)
        if count > len(photos):
            raise ValueError(
                f"The conditioning has {count} references, but the cast has {len(photos)} photos; connect the cast "
                "that these references were made from."
            )
        return tuple(photo.subject for photo in photos[:count])
