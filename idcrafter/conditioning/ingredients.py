"""The rule of Ingredients: the video begins with a white picture on which the faces stand side by side.

The faces are the upright crops that its adapter looks at, at three quarters of the height (360 of 480 px), in the
middle of a white canvas of the video's size (feizc/Ingredients, models/utils.py process_face_embeddings_split: two of
them fill 720 px). CogVideoX-I2V takes the canvas as the first frame; all branches of guidance get it. More than two
faces are made as much smaller as they must be, which is this project's addition.
"""

from __future__ import annotations

import comfy.utils
import numpy as np
import torch
from PIL import Image

from ..subjects.face_features import align_face
from ..subjects.references import PhotoRef
from ..subjects.subject import MAX_SUBJECTS
from .shot import Conditioned, Rule, Shot, check_size, check_vae, empty_latent, with_values

# Of the canvas' height.
FACE = 0.75


def condition(shot: Shot) -> Conditioned:
    """Encode the canvas as the first frame (inputs stay unchanged)."""
    check_size(shot.width, shot.height, shot.length)
    check_vae(shot.vae, RULE.title, "CogVideoX")
    used = first_faces(shot)
    progress = comfy.utils.ProgressBar(len(used) + 1)
    crops = []
    for ref in used:
        face = shot.cast.faces.subjects[ref.subject].faces[ref.photo]
        crops.append(align_face(shot.cast.subjects[ref.subject].photos[ref.photo], face.landmarks))
        progress.update(1)
    canvas = white_canvas(crops, shot.width, shot.height)
    # The frames behind it stay zero: core fills them up.
    values = {"concat_latent_image": shot.vae.encode(canvas)}
    progress.update(1)
    negative = with_values(shot.negative, values)
    return Conditioned(
        positive=with_values(shot.positive, values),
        negative_text=negative,
        negative_images=negative,
        latent=empty_latent(shot),
        references=canvas,
        used=used,
        left_out=[],
        model=shot.model,
    )


def first_faces(shot: Shot) -> list[PhotoRef]:
    """The first photo of each subject that shows a usable face; ValueError for a subject without one."""
    faces = shot.cast.faces
    if faces is None:
        raise ValueError(f"The {RULE.title} rule shows the faces; connect the cast that comes out of Extract Faces.")
    refs = []
    for s, own in enumerate(faces.subjects):
        photo = next((i for i, face in enumerate(own.faces) if face is not None), None) if own else None
        if photo is None:
            raise ValueError(
                f"Subject '{shot.cast.subjects[s].name}' has no usable face, which the {RULE.title} rule needs; use "
                "another photo, or leave the subject out."
            )
        refs.append(PhotoRef(s, photo, True))
    return refs


def white_canvas(crops: list[np.ndarray], width: int, height: int) -> torch.Tensor:
    """Crops [H, W, 3] uint8 RGB in a row on white -> [1, height, width, 3] in 0..1."""
    side = min(round(FACE * height), width // len(crops))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    left, top = (width - side * len(crops)) // 2, (height - side) // 2
    for i, crop in enumerate(crops):
        canvas.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC), (left + i * side, top))
    return torch.from_numpy(np.asarray(canvas, np.float32) / 255)[None]


RULE = Rule("ingredients", "Ingredients", limit=MAX_SUBJECTS, kind="cogvideox-i2v", condition=condition)
