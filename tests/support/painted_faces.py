"""Faces painted as flat rectangles, and an analyzer that reads them back exactly.

A face is a rectangle of one colour: red says who it is, green how well (the cosine to that identity's embedding), blue
is 0. Everything else has blue 1. So a test can put any similarity anywhere without a model.
"""

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from idcrafter.subjects.faces import DetectedFace

DIMENSIONS = 512
_NOISE = 256  # embeddings of noise use the upper half of the dimensions


def embedding(who: int, similarity: float = 1.0) -> np.ndarray:
    """Unit vector with this cosine to identity `who` and 0 to all others."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[who] = similarity
    vector[_NOISE + who] = np.sqrt(max(0.0, 1.0 - similarity**2))
    return vector


def blank(height: int = 48, width: int = 96, count: int | None = None) -> torch.Tensor:
    """Empty image [H, W, 3], or a clip of them; a dim stripe differs per frame so that a clip is not still."""
    if count is None:
        image = torch.full((height, width, 3), 0.5)
        image[..., 2] = 1.0
        return image
    clip = blank(height, width).repeat(count, 1, 1, 1)
    for t in range(count):
        clip[t, :8, :, 0] = 0.1 * (t % 3)
    return clip


def paint(image: torch.Tensor, who: int, x: int, similarity: float = 1.0, y: int = 12, size: int = 16) -> torch.Tensor:
    """Paint a face with its left upper corner at (x, y), in place."""
    image[y : y + size, x : x + size] = torch.tensor([who / 16, similarity, 0.0])
    return image


class PaintedFaceAnalyzer:
    name = "painted"
    licence = "none needed"

    def __init__(self):
        self.calls = 0

    def analyze(self, image: torch.Tensor) -> list[DetectedFace]:
        self.calls += 1
        pixels = image.numpy()
        found = []
        for code in np.unique(pixels[pixels[..., 2] < 0.5].reshape(-1, 3), axis=0):
            blobs, _ = ndimage.label((np.abs(pixels - code) < 1e-4).all(-1))
            for rows, columns in ndimage.find_objects(blobs):
                x1, y1, x2, y2 = columns.start, rows.start, columns.stop, rows.stop
                w, h = x2 - x1, y2 - y1
                marks = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)])
                found.append(
                    DetectedFace(
                        box=np.array([x1, y1, x2, y2], np.float32),
                        score=0.9,
                        landmarks=(marks * (w, h) + (x1, y1)).astype(np.float32),
                        embedding=embedding(round(float(code[0]) * 16), float(code[1])),
                    )
                )
        return sorted(found, key=lambda face: tuple(face.box.tolist()))

    def analyze_frames(self, frames: torch.Tensor, on_frame=None) -> list[list[DetectedFace]]:
        found = []
        for frame in frames:
            found.append(self.analyze(frame))
            if on_frame:
                on_frame()
        return found

    def embed(self, frames: torch.Tensor, faces) -> list[list[DetectedFace]]:
        """By the colour in the middle of each box."""
        embedded = []
        for frame, own in zip(frames, faces, strict=True):
            middles = [((face.box[:2] + face.box[2:]) / 2).astype(int) for face in own]
            pixels = [frame[y, x] for x, y in middles]
            vectors = [embedding(round(float(red) * 16), float(green)) for red, green, _ in pixels]
            embedded.append([replace(face, embedding=vector) for face, vector in zip(own, vectors, strict=True)])
        return embedded

    def describe(self) -> dict:
        return {"name": self.name, "licence": self.licence}
