"""What changes a MODEL so that it keeps the cast apart."""

import logging

from comfy_api.latest import io

from ..idcrafter.backbones.regions import OUTSIDE, RegionBinding
from ..idcrafter.backbones.schedule import check_percents
from ..idcrafter.rewards.scorecard import validate_report
from ..idcrafter.subjects.regions import make_mask_region, parse_tracks, tracks_from_report
from ..idcrafter.subjects.subject import MAX_SUBJECTS
from .types import CastType, ScorecardType

log = logging.getLogger(__name__)


class BindRegions(io.ComfyNode):
    """MODEL + cast + where each subject is -> MODEL."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IDCrafterBindRegions",
            display_name="Bind Regions (IDCrafter)",
            category="IDCrafter/inject",
            is_experimental=True,
            description="In each subject's place, the model sees the references of that subject only. Nothing is "
            "trained, and no model was trained for it: unproven on quality, so compare with and without at the same "
            "seed. For Wan models that take references as tokens (Phantom and relatives, HuMo, Bernini); not VACE, not "
            "CogVideoX.",
            search_aliases=[
                "idcrafter",
                "regional attention",
                "attention couple",
                "mask",
                "bounding box",
                "track",
                "identity swap",
                "phantom",
            ],
            inputs=[
                io.Model.Input("model", tooltip="A Wan model that takes references as tokens; others are refused."),
                CastType.Input("cast", tooltip="The cast that Cast to Video gets; it tells whose reference is whose."),
                io.Combo.Input(
                    "outside",
                    options=list(OUTSIDE),
                    default=OUTSIDE[0],
                    tooltip="What places in no region see. 'all references': as without binding. 'no references': the "
                    "video only, which keeps people out of the background, but also their light and shadow.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Of the attention that a place gives to other subjects' references, the share that is "
                    "taken away. 1 hides them, 0 is off. Between 0 and 1 self-attention takes twice the time.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the schedule after which binding is on. Who stands where is decided early.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Share of the schedule after which binding is off; the last steps then blend its borders.",
                ),
                io.Boolean.Input(
                    "fade",
                    default=False,
                    tooltip="On: the strength falls to 0 between start and end, in a straight line over sigma, and "
                    "self-attention takes twice the time. Off: it stays the same.",
                ),
                io.String.Input(
                    "boxes",
                    default="",
                    multiline=True,
                    placeholder="Ada: 0.05 0.1 0.5 1\nBo @ 1: 0.5 0.1 0.9 1\nBo @ 81: 0.3 0.1 0.7 1",
                    tooltip="One line a box: name, colon, left top right bottom as fractions of the frame. With "
                    "'@ FRAME' (from 1) it is a keyframe, and the box moves straight to the next one; 'none' for away.",
                ),
                *(
                    io.MultiType.Input(
                        f"region{i}",
                        types=[io.Mask, io.Image],
                        optional=True,
                        tooltip=f"Where subject {i} of the cast is: white on black, one for all frames or one for each "
                        "frame of the video. Stretched to the video's size. Without it and without a box, this "
                        "subject's references are seen everywhere.",
                    )
                    for i in range(1, MAX_SUBJECTS + 1)
                ),
                ScorecardType.Input(
                    "scorecard",
                    optional=True,
                    tooltip="For subjects without a box and a mask: where its best take has their faces, and what is "
                    "below. From Score Takes or Score Video, of a video of the same size and length.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Unchanged when no region is given or the strength is 0.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        cast,
        outside=OUTSIDE[0],
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
        fade=False,
        boxes="",
        region1=None,
        region2=None,
        region3=None,
        region4=None,
        region5=None,
        region6=None,
        region7=None,
        region8=None,
        scorecard=None,
    ) -> io.NodeOutput:
        regions = dict(parse_tracks(boxes, cast))
        for i, image in enumerate((region1, region2, region3, region4, region5, region6, region7, region8)):
            if image is None:
                continue
            if i >= len(cast.subjects):
                raise ValueError(
                    f"region{i + 1} is connected, but the cast has {len(cast.subjects)} subjects; disconnect it."
                )
            name = cast.subjects[i].name
            if i in regions:
                raise ValueError(f"Subject '{name}' has a box and a mask (region{i + 1}); remove one of them.")
            regions[i] = make_mask_region(name, image)
        if scorecard is not None:
            validate_report(scorecard.report)
            regions = {**tracks_from_report(scorecard.report, cast), **regions}
        check_percents(start_percent, end_percent, "binding")
        if not regions or strength == 0.0:
            return io.NodeOutput(model)
        regions = dict(sorted(regions.items()))
        free = [subject.name for i, subject in enumerate(cast.subjects) if i not in regions]
        if free:
            log.info("Without a region, so seen everywhere: %s.", ", ".join(free))
        binding = RegionBinding(cast, regions, outside, strength, start_percent, end_percent, fade)
        return io.NodeOutput(binding.bind(model))


NODES = [BindRegions]
