"""Rendered clips of a crowd, and their true faces with embeddings that nobody can mistake."""

import sys
from itertools import islice

import numpy as np

from idcrafter.nano import world
from idcrafter.nano.world import crowd
from idcrafter.subjects.faces import DetectedFace

from .inprocess import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import _crowd_scores as scores  # noqa: E402

IDENTITIES = tuple(world.sample_identity(number) for number in islice(world.numbers_of_split("val"), 4))
GALLERY = np.linalg.qr(np.random.default_rng(0).standard_normal((512, 8)))[0].T


def rendered(count, move, seed):
    """The first clip from this seed on in which something moves."""
    clips = (crowd.render_crowd(crowd.sample_crowd_spec(IDENTITIES[:count], s, move)) for s in range(10 * seed, 1000))
    return next(clip for clip in clips if not scores.is_still(clip.frames / np.float32(255)))


def faces_of(clip, looks=None, truth=None):
    """The true faces of a clip, with the looks (rows of GALLERY) of `looks(frame)`, or everybody's own."""
    found = []
    for f, faces in enumerate(truth or clip.faces):
        who = looks(f) if looks else range(len(faces))
        shown = [(face, GALLERY[i]) for face, i in zip(faces, who, strict=True) if face is not None and i is not None]
        found.append([DetectedFace(face.box, 1.0, face.landmarks, embedding) for face, embedding in shown])
    return found
