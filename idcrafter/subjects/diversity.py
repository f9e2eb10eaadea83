"""Which photos of one subject say most about it: those that differ most from each other.

Farthest-point selection: the first photo stays, then again and again the one whose nearest chosen photo is farthest
away. Distances are between face embeddings where every photo has one, else between small pictures.
"""

from __future__ import annotations

import torch

from .faces import CastFaces
from .subject import Cast, Subject

# Side of the pictures that are compared: enough for pose, clothes and light, too little for noise to count.
THUMBNAIL = 16


def most_diverse(cast: Cast, subject: int, candidates: list[int], count: int) -> list[int]:
    """`count` of the candidate photos (indices of one subject), the first candidate among them, in their own order."""
    if count >= len(candidates):
        return list(candidates)
    points = photo_features(cast.subjects[subject], cast.faces, subject, candidates)
    chosen = farthest_points(points, count)
    return [candidates[i] for i in sorted(chosen)]


def farthest_points(points: torch.Tensor, count: int) -> list[int]:
    """Indices of `count` rows of [N, D], the first row first; among equals the earlier one."""
    chosen = [0]
    nearest = (points - points[0]).norm(dim=1)
    while len(chosen) < min(count, len(points)):
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).norm(dim=1))
    return chosen


def photo_features(subject: Subject, faces: CastFaces | None, index: int, photos: list[int]) -> torch.Tensor:
    """[N, D]: face embeddings of these photos when all of them have one, else thumbnails of the (masked) photos."""
    own = faces.subjects[index] if faces is not None else None
    found = [own.faces[i] for i in photos] if own is not None else []
    if found and all(face is not None for face in found):
        return torch.stack([torch.from_numpy(face.embedding) for face in found])
    return torch.stack([_thumbnail(subject.photos[i], subject.masks[i]) for i in photos])


def _thumbnail(photo: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is not None:
        photo = photo * mask.unsqueeze(-1) + (1.0 - mask.unsqueeze(-1))
    small = torch.nn.functional.interpolate(photo.movedim(-1, 0).unsqueeze(0), size=(THUMBNAIL, THUMBNAIL), mode="area")
    return small.flatten()
