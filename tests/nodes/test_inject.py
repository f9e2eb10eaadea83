"""Bind Regions as a node: what it takes for a region, when it does nothing, and what it refuses."""

import logging
from types import SimpleNamespace

import pytest
import torch

from support.reports import make_report

BOXES = "Ada: 0 0 0.5 1\nBo: 0.5 0 1 1"


@pytest.fixture
def bind(pack, cast, stack, monkeypatch):
    """Run the node; gives the RegionBinding that it made, or None where the MODEL came out as it went in."""
    made = []
    binding = pack.submodule("idcrafter.backbones.regions").RegionBinding
    plain = binding.bind
    monkeypatch.setattr(binding, "bind", lambda self, model: (made.append(self), plain(self, model))[1])

    def bind(**inputs):
        model = pack.execute("IDCrafterBindRegions", model=stack.model, cast=cast, **inputs)[0]
        assert (model is stack.model) == (not made)
        return made.pop() if made else None

    return bind


def half(left):
    mask = torch.zeros((1, 32, 32))
    mask[:, :, :16] = 1.0
    return mask if left else 1 - mask


def scorecard():
    """Both stand still: Ada's face at 4..20 px, Bo's at 28..44 px of 72."""
    return SimpleNamespace(report=make_report(["Ada", "Bo"], [(0.9, 0.8)]))


def test_nothing_connected_is_off(bind):
    assert bind() is None and bind(boxes=BOXES, strength=0.0) is None


def test_boxes_masks_and_images(bind):
    tracks = bind(boxes=BOXES).regions
    assert list(tracks) == [0, 1] and tracks[1].box(3) == (0.5, 0.0, 1.0, 1.0)
    image = half(False)[..., None].expand(-1, -1, -1, 3)
    mixed = bind(boxes="Ada @ 1: 0 0 0.2 1\nAda @ 5: 0.5 0 0.7 1", region2=image).regions
    assert mixed[0].box(2) == pytest.approx((0.25, 0.0, 0.45, 1.0)) and torch.equal(mixed[1].mask, half(False) > 0.5)


def test_inputs_reach_the_binding(bind):
    made = bind(
        region1=half(True), outside="no references", strength=0.4, start_percent=0.1, end_percent=0.6, fade=True
    )
    assert (made.outside, made.strength, made.start, made.end, made.fade) == ("no references", 0.4, 0.1, 0.6, True)


def test_a_scorecard_places_whoever_has_no_region(bind, pack):
    regions = pack.submodule("idcrafter.subjects.regions")
    both = bind(scorecard=scorecard()).regions
    assert [type(region) for region in both.values()] == [regions.FaceTrack] * 2
    assert both[1].faces[0] == (0, (28.0, 12.0, 44.0, 28.0))
    mine = bind(scorecard=scorecard(), boxes="Ada: 0 0 1 1").regions
    assert isinstance(mine[0], regions.Track) and mine[1] == both[1]


def test_a_scorecard_of_another_version_is_refused(bind):
    card = scorecard()
    card.report["version"] = 1
    with pytest.raises(ValueError, match="score the takes again"):
        bind(scorecard=card)


def test_whoever_is_free_is_named(bind, caplog):
    caplog.set_level(logging.INFO)
    bind(region2=half(False))
    assert "Without a region, so seen everywhere: Ada." in caplog.text


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"region3": half(True)}, "region3 is connected, but the cast has 2 subjects"),
        ({"boxes": BOXES, "region2": half(False)}, r"'Bo' has a box and a mask \(region2\)"),
        ({"region1": torch.zeros((1, 64, 64))}, "'Ada' is empty"),
        ({"boxes": "Cy: 0 0 1 1"}, "does not begin with a name of the cast"),
        ({"boxes": BOXES, "start_percent": 0.5, "end_percent": 0.5}, r"start_percent \(0.5\) must be less"),
    ],
)
def test_refusals(bind, inputs, message):
    with pytest.raises(ValueError, match=message):
        bind(**inputs)


def test_it_says_that_it_is_unproven(pack):
    schema = pack.nodes["IDCrafterBindRegions"].GET_SCHEMA()
    assert "unproven" in schema.description and schema.is_experimental
