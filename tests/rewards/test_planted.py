"""The scorer against the ground truth of the nano world: clips with planted events and clips that only look like them,
through the shipped face pack.

Its people are sealed identities, which no training has seen, and neither they nor these seeds took part when the
thresholds were chosen: that was done on validation identities and seeds below 10,000. A rule that is changed needs
other people and seeds here, because the errors on these have then been looked at.
"""

from pathlib import Path

import numpy as np
import pytest

from idcrafter.nano import world
from support.planted import KINDS, PLANS, compare, score_planted

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "idcrafter" / "nano" / "weights" / "insightface" / "models" / "idcrafter_nano"
CLIPS = 24 * len(PLANS)
FIRST_SEED = 3_000_000
FIRST_NUMBER = 20_000


@pytest.fixture(scope="module")
def scored(pack):
    """[(clip, ClipIdentity)] of all planted clips."""
    analyzer = pack.submodule("model_loaders.faces").load_face_analyzer(FOLDER, det_size=128, provider="cpu")
    return score_planted(analyzer, "sealed", FIRST_NUMBER, FIRST_SEED, CLIPS)


def test_events_are_found_and_none_is_made_up(scored):
    assert len(scored) >= 200
    figures, errors = compare(scored)
    assert all(figures[kind][2] >= 20 for kind in KINDS)
    for kind in ("missing", "swapped", "cloned", "extra"):
        precision, recall, _ = figures[kind]
        assert precision >= 0.95 and recall >= 0.95, (figures, errors)


def test_blends_are_found_more_often_than_not_and_seldom_made_up(scored):
    """A puppet that is half another one is not halfway between the two for a recogniser: some blends are nobody."""
    (precision, recall, _), errors = compare(scored)[0]["blended"], compare(scored)[1]
    assert precision >= 0.8 and recall >= 0.5, errors


def test_honest_clips_have_no_events(scored):
    """What looks like trouble and is none: covered and turned heads, people who cross, one bad frame."""
    clean = {p: [not result.events for clip, result in scored if clip.plan == p] for p in world.HONEST}
    assert np.mean(np.concatenate(list(clean.values()))) >= 0.95, clean
    assert all(np.mean(each) >= 0.9 for each in clean.values()), clean


def test_planted_clips_score_less(scored):
    """Each kind of trouble costs points on average, and the clips without any keep nearly all of theirs."""
    means = {plan: np.mean([result.score for clip, result in scored if clip.plan == plan]) for plan in PLANS}
    assert means["plain"] > 0.85
    assert all(means[plan] < means["plain"] - 0.1 for plan in world.PLANTED), means


def test_who_is_who(scored):
    """Wherever a face can be seen whole, the subject has the box of the puppet that is that identity."""
    right = wrong = 0
    for clip, result in scored:
        if clip.plan in ("twin", "clone", "flash", "blend"):
            continue  # one identity in two places, or one frame's identities, have no single answer
        for t, faces in enumerate(clip.faces):
            for face, who in zip(faces, clip.who[t], strict=True):
                if face is None or who is None:
                    continue
                box = result.boxes[t, who]
                middle = (box[:2] + box[2:]) / 2
                near = not np.isnan(middle).any() and (face.box[:2] < middle).all() and (middle < face.box[2:]).all()
                right, wrong = right + near, wrong + (not near)
    assert right / (right + wrong) >= 0.97, (right, wrong)
