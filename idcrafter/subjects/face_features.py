"""What an identity adapter sees of a face: a recogniser's embedding, and an image encoder's view of an upright crop.

The crop is facexlib's for face restoration (xinntao/facexlib, utils/face_restoration_helper.py): 512 px with hair and
neck, not the tight square of recognisers. Ingredients feeds this one crop to its recogniser and to its image encoder
(feizc/Ingredients, models/utils.py process_face_embeddings_split), so the embedding is not the one of scores, and it is
not of unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from .faces import to_uint8
from .subject import Cast

CROP = 512
# Eyes, nose and mouth corners in the crop.
CROP_TEMPLATE = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ],
    np.float32,
)
# What facexlib puts where the photo ends.
FILL = (132, 133, 135)
# Larger photos are first made this small (Ingredients' infer.py).
LONG_SIDE = 1024
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Recogniser(Protocol):
    """`crop_size` is the side of the pictures that it takes."""

    crop_size: int

    def embed(self, crops: list[np.ndarray]) -> np.ndarray:
        """Embeddings [N, D] of any length for pictures [crop_size, crop_size, 3] uint8 BGR."""


# Crops [CROP, CROP, 3] uint8 RGB -> (embeddings [N, D] or None, hidden maps, [N, M, C] each).
Look = Callable[[Sequence[np.ndarray]], tuple[torch.Tensor | None, list[torch.Tensor]]]


@dataclass(frozen=True, eq=False)
class FaceFeatures:
    """What a facial extractor takes of N faces: identity [N, id_width], maps [N, M, visual_width] each; float32."""

    identity: torch.Tensor
    maps: list[torch.Tensor]


def align_face(photo: torch.Tensor, landmarks: np.ndarray) -> np.ndarray:
    """The upright crop of a face in a photo [H, W, 3] (0..1) -> [CROP, CROP, 3] uint8 RGB.

    landmarks  [5, 2] x y in the photo's pixels
    """
    import cv2

    picture, points = to_uint8(photo), np.asarray(landmarks, np.float32)
    height, width = picture.shape[:2]
    shrink = LONG_SIDE / max(height, width)
    if shrink < 1:
        picture = cv2.resize(picture, (int(width * shrink), int(height * shrink)), interpolation=cv2.INTER_LANCZOS4)
        points = points * shrink
    matrix, _ = cv2.estimateAffinePartial2D(points, CROP_TEMPLATE, method=cv2.LMEDS)
    if matrix is None:
        raise ValueError("The face's landmarks lie in one place, so it cannot be set upright; use another photo.")
    return cv2.warpAffine(picture, matrix, (CROP, CROP), borderMode=cv2.BORDER_CONSTANT, borderValue=FILL)


def cast_crops(cast: Cast, on_photo: Callable[[], None] | None = None) -> tuple[list[np.ndarray], list[int]]:
    """The crops of all usable faces of a cast, and the subject (from 0) of each.

    on_photo  called after each crop, for progress and interruption
    Raises ValueError when nobody has a face, or none have been looked for.
    """
    if cast.faces is None:
        raise ValueError("The cast has no faces yet; connect the cast that comes out of Extract Faces or Load Faces.")
    crops, owners = [], []
    for s, (subject, own) in enumerate(zip(cast.subjects, cast.faces.subjects, strict=True)):
        for photo, face in zip(subject.photos, own.faces if own else (), strict=bool(own)):
            if face is None:
                continue
            crops.append(align_face(photo, face.landmarks))
            owners.append(s)
            if on_photo:
                on_photo()
    if not crops:
        raise ValueError("No subject of the cast has a usable face; use photos that show one.")
    return crops, owners


def face_features(crops: Sequence[np.ndarray], recogniser: Recogniser, look: Look) -> FaceFeatures:
    """Features of crops [CROP, CROP, 3] uint8 RGB; an image encoder's embedding stands behind the recogniser's."""
    seen, maps = look(crops)
    identity = recogniser_embeddings(crops, recogniser)
    if seen is not None:
        identity = torch.cat([identity, seen.float().cpu()], dim=1)
    return FaceFeatures(identity, [features.float().cpu() for features in maps])


def recogniser_embeddings(crops: Sequence[np.ndarray], recogniser: Recogniser) -> torch.Tensor:
    """What the recogniser makes of the crops as they are, [N, D], not of unit length."""
    import cv2

    size = (recogniser.crop_size, recogniser.crop_size)
    small = [np.ascontiguousarray(cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)[..., ::-1]) for crop in crops]
    found = torch.from_numpy(np.asarray(recogniser.embed(small), np.float32))
    if not found.isfinite().all():
        raise RuntimeError("The face recogniser returned NaN or infinity; its file may be damaged. Try provider cpu.")
    return found


def clip_pixels(crops: Sequence[np.ndarray], size: int) -> torch.Tensor:
    """Crops as a CLIP image encoder takes them: bicubic, normalised, [N, 3, size, size]."""
    pixels = torch.from_numpy(np.stack(crops)).movedim(-1, 1).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def vae_look(encode: Callable[[torch.Tensor], torch.Tensor], size: int) -> Look:
    """What a video model's own VAE makes of the crops, as one hidden map.

    encode  [1, size, size, 3] in 0..1 -> latent [1, C, 1, h, w], normalised as the model gets it
    size    px of the side to which crops are averaged down
    """
    import cv2

    def look(crops: Sequence[np.ndarray]) -> tuple[None, list[torch.Tensor]]:
        latents = []
        for crop in crops:
            small = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
            latents.append(encode(torch.from_numpy(small)[None].float() / 255))
        return None, [torch.cat(latents).flatten(2).transpose(1, 2)]

    return look


def by_subject(values: torch.Tensor, owners: Sequence[int], subjects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N, ...] of single photos -> [subjects, P, ...] and what of it exists, [subjects, P] 1 or 0."""
    photos = max(owners.count(s) for s in range(subjects))
    out = values.new_zeros(subjects, photos, *values.shape[1:])
    exist = values.new_zeros(subjects, photos)
    filled = [0] * subjects
    for value, s in zip(values, owners, strict=True):
        out[s, filled[s]] = value
        exist[s, filled[s]] = 1
        filled[s] += 1
    return out, exist
