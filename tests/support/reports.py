"""Small valid reports, made by the real code."""

import torch

from idcrafter.rewards.record import score_clip
from idcrafter.rewards.scorecard import build_scorecard
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


def make_report(names, takes, frames=4, extra_in=(), swap_at=None):
    """A report of clips in which subject i has the similarity takes[k][i] in take k (None: not there).

    extra_in  frames with a stranger; swap_at  the frame in which the first two subjects exchange their places
    """
    photos = [paint(blank(), i, 20) for i in range(len(names))]
    cast = make_cast([make_subject(n, "person", "", p[None]) for n, p in zip(names, photos, strict=True)])
    cast = cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "error", "error"))
    records = []
    for k, similarities in enumerate(takes):
        clip = blank(width=24 * (len(names) + 1), count=frames)
        for t, frame in enumerate(clip):
            places = list(range(len(names)))
            if swap_at is not None and t >= swap_at:
                places[0], places[1] = 1, 0
            for i, similarity in enumerate(similarities):
                if similarity is not None:
                    paint(frame, i, 4 + 24 * places[i], similarity)
            if t in extra_in:
                paint(frame, 15, 4 + 24 * len(names))
        record = score_clip(clip, range(frames), cast)
        records.append({"seed": 100 + k, "seconds": 1.0, "resumed": False, "latent_sha256": str(k), **record})
    return build_scorecard(cast, records, sampling={}, model={}, software={}).report


def as_pixels(picture: torch.Tensor):
    """[1, H, W, 3] -> [H, W, 3] integers 0..255."""
    return (picture[0].numpy() * 255).round().astype(int)
