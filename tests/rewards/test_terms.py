"""Terms of a reward: what can be composed, what each needs, and what never changes a value."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idcrafter.rewards import naturalness
from idcrafter.rewards.subject_crops import crop_around, pairwise_consistency
from idcrafter.rewards.terms import KINDS, RewardSpec, RewardTerm, default_reward, measure_terms, recommended_reward
from support.clips import evidence_of, painted_cast, painted_clip


class ColourModel:
    """Stands in for every model of a term: it answers by mean colours, and notes what it was shown."""

    def __init__(self, answer=None):
        self.answer = answer
        self.shown = []

    def embed(self, images):
        self.shown += list(images)
        colours = np.array([image.mean((0, 1)).numpy() for image in images], np.float64)
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)

    def rate(self, images):
        self.shown += list(images)
        return np.array([4 + 3 * float(image[..., 1].mean()) for image in images])

    def yes_probability(self, images, question):
        self.shown += list(images)
        return 0.75 if question == naturalness.QUESTION else 0.25

    def score(self, source, references, on_frame=None):
        self.shown += list(references)
        return self.answer if self.answer is not None else float(source.length)

    def describe(self):
        return {"name": "colours", "licence": "none needed"}


def term(kind, **fields):
    model = ColourModel() if KINDS[kind].model else None
    return RewardTerm(kind, **{"model": model, **fields})


EVERY = RewardSpec(tuple(term(kind, weight=0.5) for kind in KINDS))
# Flow is slow, and motion.py looks at no subject.
OF_SUBJECTS = RewardSpec(tuple(each for each in EVERY.terms if each.kind != "motion"))
TWO_PHOTOS = ((1.0, 0.8), (0.9, 0.7))
RANGES = {
    "distinct_faces": (0.0, 2.0), "copy_paste": (-1.0, 1.0), "motion": (0.0, np.inf), "judge": (0.0, np.inf),
}  # fmt: skip

faces = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 9]), st.sampled_from([0.1, 0.4, 0.8, 1.0]), st.integers(0, 2)),
    max_size=3,
    unique_by=lambda face: face[2],
)
clips = st.lists(faces, min_size=4, max_size=6)


def test_names_number_what_comes_twice():
    spec = RewardSpec((term("motion"), term("identity"), term("motion"), term("motion", weight=0.0, floor=2.0)))
    assert spec.names == ("motion", "identity", "motion 2", "motion 3")
    assert spec.gates == (("motion 3", 2.0),)


def test_description_is_json_with_models_and_defaults():
    text = json.loads(json.dumps(EVERY.describe()))
    assert text["combine"] == "sum" and set(text["terms"]) == set(KINDS)
    assert text["terms"]["subject_crops"]["model"]["licence"] == "none needed"
    assert text["terms"]["id_crafter_face"]["options"] == {"worst_share": 0.5}
    assert text["terms"]["identity"]["model"] is None


def test_default_reward_is_the_identity_score():
    evidence = evidence_of(painted_clip([[(0, 0.8, 0), (1, 0.6, 2)]] * 4), painted_cast())
    assert measure_terms(evidence, default_reward()) == {"identity": evidence.identity.score}


def test_recommended_reward_gates_motion_and_charges_copies():
    spec = recommended_reward(2.0, floor=0.4)
    assert spec.names == ("identity", "copy_paste", "motion") and spec.combine == "sum"
    assert [each.weight for each in spec.terms] == [2.0, -1.0, 0.0]
    assert dict(spec.gates) == {"identity": 0.4, "motion": 0.3} and recommended_reward().gates == (("motion", 0.3),)


def test_recommended_reward_takes_subjects_with_one_photo():
    evidence = evidence_of(painted_clip([[(0, 0.8, 0), (1, 0.6, 2)]] * 4), painted_cast())
    assert measure_terms(evidence, recommended_reward())["copy_paste"] == 0.0


def test_known_values_of_a_clip():
    clip = painted_clip([[(0, 0.8, 0), (1, 0.6, 2)], [(0, 0.8, 0)], [(0, 0.8, 0), (1, 0.6, 2)], []])
    evidence = evidence_of(clip, painted_cast())
    got = measure_terms(
        evidence, RewardSpec(tuple(term(kind) for kind in ("id_crafter_face", "distinct_faces", "exact_count")))
    )
    q = (0.8 * 3 / 4, 0.6 * 2 / 4)
    assert got["id_crafter_face"] == pytest.approx(0.5 * np.mean(q) + 0.5 * min(q), abs=1e-2)
    assert got["distinct_faces"] == pytest.approx((1.0 + 0.5 + 1.0 + 0.5) / 4, abs=1e-6)
    assert got["exact_count"] == 0.5


def test_options_reach_the_term():
    evidence = evidence_of(painted_clip([[(0, 0.8, 0), (1, 0.4, 2)]] * 4), painted_cast())
    terms = [term("id_crafter_face", options=(("worst_share", share),)) for share in (0.0, 1.0)]
    mean, worst = measure_terms(evidence, RewardSpec(tuple(terms))).values()
    assert mean == pytest.approx(0.6, abs=1e-2) and worst == pytest.approx(0.4, abs=1e-2)


def test_models_see_what_they_should():
    cast = painted_cast(similarities=TWO_PHOTOS)
    evidence = evidence_of(painted_clip([[(0, 0.8, 0), (1, 0.6, 2)]] * 6), cast)
    asked = [term("aesthetics"), term("naturalness", options=(("frames", 3), ("question", "Odd?"))), term("judge")]
    got = measure_terms(evidence, RewardSpec(tuple(asked)))
    assert len(asked[0].model.shown) == 6 and 0.0 <= got["aesthetics"] <= 1.0
    assert len(asked[1].model.shown) == 3 and got["naturalness"] == 0.25
    assert got["judge"] == 6.0  # the whole clip, not only what was scored
    shown = asked[2].model.shown
    assert [image is subject.photos[0] for image, subject in zip(shown, cast.subjects, strict=True)] == [True, True]


def test_subject_crops_compare_each_person_with_the_own_photos():
    cast = painted_cast((1, 14))
    right = evidence_of(painted_clip([[(1, 1.0, 0), (14, 1.0, 2)]] * 4), cast)
    gone = evidence_of(painted_clip([[(1, 1.0, 0)]] * 4), cast)
    spec = RewardSpec((term("subject_crops", options=(("margin", 0.0),)),))
    assert measure_terms(right, spec)["subject_crops"] == pytest.approx(1.0, abs=1e-3)
    assert measure_terms(gone, spec)["subject_crops"] == pytest.approx(0.5, abs=1e-3)


def test_crops_stay_inside_the_picture():
    image = torch.zeros(20, 30, 3)
    assert crop_around(image, np.array([5, 5, 10, 10]), 0.0).shape == (5, 5, 3)
    assert crop_around(image, np.array([5, 5, 10, 10]), 1.0).shape == (15, 15, 3)
    assert crop_around(image, np.array([-9, -9, 60, 60]), 1.0).shape == (20, 30, 3)
    assert crop_around(image, np.array([40, 40, 41, 41]), 0.0).numel() > 0  # a box beyond the edge
    with pytest.raises(ValueError, match="finite similarities"):
        pairwise_consistency(np.array([[np.inf]]))


def test_frames_for_the_vlm_are_not_large():
    assert naturalness.fit(torch.zeros(100, 1024, 3)).shape == (50, 512, 3)
    assert naturalness.fit(torch.zeros(100, 200, 3)).shape == (100, 200, 3)


@settings(max_examples=10, deadline=None)
@given(clips)
def test_every_value_is_finite_and_in_range(frames):
    evidence = evidence_of(painted_clip(frames), painted_cast(similarities=TWO_PHOTOS))
    for name, value in measure_terms(evidence, EVERY).items():
        low, high = RANGES.get(name, (0.0, 1.0))
        assert low - 1e-6 <= value <= high + 1e-6, name


@settings(max_examples=25, deadline=None)
@given(clips)
def test_the_order_of_subjects_changes_nothing(frames):
    """FaceSim looks at the first subject only, so its value may change; that is its defect."""
    clip = painted_clip(frames)
    cast, turned = painted_cast((0, 1), TWO_PHOTOS), painted_cast((1, 0), TWO_PHOTOS[::-1])
    before, after = (measure_terms(evidence_of(clip, each), OF_SUBJECTS) for each in (cast, turned))
    for name in set(before) - {"opens2v_facesim"}:
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


@settings(max_examples=25, deadline=None)
@given(clips)
def test_the_order_of_photos_changes_nothing(frames):
    clip = painted_clip(frames)
    cast, turned = (painted_cast((0, 1), values) for values in (TWO_PHOTOS, tuple(v[::-1] for v in TWO_PHOTOS)))
    before, after = (measure_terms(evidence_of(clip, each), OF_SUBJECTS) for each in (cast, turned))
    for name in set(before) - {"opens2v_facesim"}:
        assert after[name] == pytest.approx(before[name], abs=1e-6), name


@settings(max_examples=15, deadline=None)
@given(clips, st.integers(1, 40), st.integers(1, 40))
def test_padding_changes_no_face_reward(frames, right, below):
    clip = painted_clip(frames)
    grey = torch.tensor([0.5, 0.5, 1.0])
    padded = grey.repeat(len(clip), clip.shape[1] + below, clip.shape[2] + right, 1)
    padded[:, : clip.shape[1], : clip.shape[2]] = clip
    cast = painted_cast(similarities=TWO_PHOTOS)
    kinds = ("identity", "id_crafter_face", "distinct_faces", "exact_count", "copy_paste", "ingredients_max")
    spec = RewardSpec(tuple(term(kind) for kind in kinds))
    before, after = (measure_terms(evidence_of(each, cast), spec) for each in (clip, padded))
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(("kind", "frames"), [("identity", 0), ("motion", 4), ("aesthetics", 4), ("subject_crops", 4)])
def test_every_frame_and_every_term_can_be_interrupted(kind, frames):
    seen = []
    evidence = evidence_of(painted_clip([[(0, 0.8, 0)]] * 4), painted_cast(similarities=TWO_PHOTOS))
    spec = RewardSpec((term(kind),))
    assert measure_terms(evidence, spec, lambda: seen.append(kind)) == measure_terms(evidence, spec)
    assert len(seen) == frames + 1


def test_the_judge_reads_the_clip_itself():
    """It goes by what a clip is, and calls back by itself."""
    evidence = evidence_of(painted_clip([[(0, 0.8, 0)]] * 4), painted_cast(similarities=TWO_PHOTOS))
    given = []
    judge = ColourModel()
    judge.score = lambda source, references, on_frame: given.extend((source, on_frame)) or 1.0
    on_step = lambda: None  # noqa: E731
    measure_terms(evidence, RewardSpec((RewardTerm("judge", model=judge),)), on_step)
    assert given == [evidence.source, on_step]


def test_a_model_that_answers_nan_is_an_error_that_names_the_term():
    evidence = evidence_of(painted_clip([[(0, 0.8, 0)]] * 4), painted_cast())
    judge = RewardTerm("judge", model=ColourModel(answer=float("nan")))
    with pytest.raises(RuntimeError, match="term 'judge' of take 2 came out as nan"):
        measure_terms(evidence, RewardSpec((judge,)), clip="take 2")
    broken = ColourModel()
    broken.embed = lambda images: np.full((len(images), 4), np.nan)
    with pytest.raises(ValueError, match="'subject_crops' cannot measure the clip. An image embedding is NaN"):
        measure_terms(evidence, RewardSpec((RewardTerm("subject_crops", model=broken),)))
    broken.rate = lambda images: np.full(len(images), np.nan)
    with pytest.raises(ValueError, match="'aesthetics' cannot measure the clip. An aesthetic rating is NaN"):
        measure_terms(evidence, RewardSpec((RewardTerm("aesthetics", model=broken),)))


def test_what_cannot_be_a_term_says_why():
    with pytest.raises(ValueError, match="is one of identity, .* got 'beauty'"):
        RewardTerm("beauty")
    with pytest.raises(ValueError, match="'motion' has no option 'margin'"):
        RewardTerm("motion", options=(("margin", 1.0),))
    with pytest.raises(ValueError, match="'subject_crops' needs a model; connect an image encoder"):
        RewardTerm("subject_crops")
    with pytest.raises(ValueError, match="floor -1"):
        RewardTerm("motion", floor=-1.0)
    with pytest.raises(ValueError, match="weight nan"):
        RewardTerm("motion", float("nan"))
    with pytest.raises(ValueError, match="at least one term"):
        RewardSpec(())
    with pytest.raises(ValueError, match="combined by one of sum, gdpo, max_group_std, got 'mean'"):
        RewardSpec((RewardTerm("identity"),), "mean")


def test_a_still_picture_has_no_identity_as_in_the_scorecard():
    """Otherwise a reward of identity alone would pick a frozen reference."""
    cast = painted_cast()
    still = painted_clip([[(0, 1.0, 0), (1, 1.0, 2)]]).repeat(3, 1, 1, 1)
    assert evidence_of(still, cast).identity.score > 0.9
    assert measure_terms(evidence_of(still, cast), default_reward()) == {"identity": 0.0}
