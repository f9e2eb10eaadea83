"""Drawing puppets with OpenCV polygons at sub-pixel precision, back to front.

A head is described in head units: the origin is its centre, x to the right, y down, and its height is 1.
:class:`Pose` places it in the picture. Turning the head (yaw) moves each feature sideways by its depth, which is
enough for a profile to look turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .identity import RGB, Identity

SUPERSAMPLE = 2
_SHIFT = 5  # fractional bits of the coordinates that OpenCV takes
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 25)[:-1])], axis=1)


@dataclass(frozen=True)
class Pose:
    """Where a puppet is in one picture. Lengths in pixels, angles in radians."""

    x: float
    y: float
    size: float
    yaw: float = 0.0
    roll: float = 0.0
    smile: float = 0.3
    mouth_open: float = 0.0
    blink: float = 0.0
    wave: float | None = None  # angle of a raised arm; None is an arm that hangs down
    wave_side: int = 1
    away: bool = False  # seen from behind: no face


@dataclass(frozen=True)
class Face:
    """Ground truth of one face: ``box`` xyxy and five ``landmarks`` (image-left eye, right eye, nose, left and right
    mouth corner), pixels.
    """

    box: np.ndarray
    landmarks: np.ndarray


class _Canvas:
    def __init__(self, image: np.ndarray, pose: Pose):
        self.image = image
        self.pose = pose
        self.cos, self.sin = np.cos(pose.roll), np.sin(pose.roll)
        self.turn, self.facing = np.sin(pose.yaw), np.cos(pose.yaw)

    def place(self, points: np.ndarray, depth: float = 0.0) -> np.ndarray:
        """Head units -> pixels (not supersampled). ``depth`` is how far a feature stands out of the head's axis."""
        points = np.asarray(points, np.float64)
        x = points[:, 0] * (self.facing if depth else 1.0) + depth * self.turn
        y = points[:, 1]
        return np.stack(
            [
                self.pose.x + self.pose.size * (x * self.cos - y * self.sin),
                self.pose.y + self.pose.size * (x * self.sin + y * self.cos),
            ],
            axis=1,
        )

    def fill(self, points: np.ndarray, colour: RGB, depth: float = 0.0) -> None:
        import cv2

        pixels = self.place(points, depth) * SUPERSAMPLE - 0.5
        cv2.fillPoly(
            self.image,
            [np.round(pixels * (1 << _SHIFT)).astype(np.int32)],
            [255 * c for c in colour],
            cv2.LINE_AA,
            _SHIFT,
        )

    def stroke(self, points: np.ndarray, colour: RGB, width: float, depth: float = 0.0, closed: bool = False) -> None:
        import cv2

        pixels = self.place(points, depth) * SUPERSAMPLE - 0.5
        thickness = max(1, round(width * self.pose.size * SUPERSAMPLE))
        cv2.polylines(
            self.image,
            [np.round(pixels * (1 << _SHIFT)).astype(np.int32)],
            closed,
            [255 * c for c in colour],
            thickness,
            cv2.LINE_AA,
            _SHIFT,
        )


def _ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _CIRCLE * (rx, ry) + (x, y)


def _shade(colour: RGB, gain: float) -> RGB:
    return tuple(min(1.0, c * gain) for c in colour)


def _head_outline(who: Identity) -> np.ndarray:
    """A superellipse whose lower half widens or narrows with the jaw."""
    power = 2.0 / who.head_squareness
    points = np.sign(_CIRCLE) * np.abs(_CIRCLE) ** power * (who.head_width / 2, 0.5)
    points[:, 0] *= 1 + who.jaw * (points[:, 1] + 0.5)
    return points


def _draw_body(canvas: _Canvas, who: Identity) -> None:
    canvas.fill([(-0.13, 0.3), (0.13, 0.3), (0.15, 0.7), (-0.15, 0.7)], _shade(who.skin, 0.8))
    canvas.fill(
        [(-0.22, 0.56), (0.22, 0.56), (0.5, 0.68), (0.62, 1.0), (0.66, 2.2), (-0.66, 2.2), (-0.62, 1.0), (-0.5, 0.68)],
        who.clothes,
    )
    canvas.fill([(-0.63, 0.98), (0.63, 0.98), (0.64, 1.12), (-0.64, 1.12)], who.stripe)
    if canvas.pose.wave is not None:
        side = canvas.pose.wave_side
        shoulder, elbow = np.array((0.5 * side, 0.8)), np.array((0.78 * side, 0.62))
        hand = elbow + 0.52 * np.array((side * np.sin(canvas.pose.wave), -np.cos(canvas.pose.wave)))
        canvas.stroke([shoulder, elbow, hand], who.clothes, 0.17)
        canvas.fill(_ellipse(*hand, 0.12, 0.13), who.skin)


def _draw_hair_behind(canvas: _Canvas, who: Identity) -> None:
    half = who.head_width / 2
    if who.hair_style == "bob":
        canvas.fill(
            [
                (-half - 0.07, -0.1),
                (-half, -0.42),
                (0, -0.58),
                (half, -0.42),
                (half + 0.07, -0.1),
                (half + 0.1, 0.4),
                (-half - 0.1, 0.4),
            ],
            _shade(who.hair, 0.85),
        )
    elif who.hair_style == "curly":
        for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 8):
            canvas.fill(
                _ellipse(np.cos(angle) * (half + 0.01), np.sin(angle) * 0.46 - 0.03, 0.15, 0.15), _shade(who.hair, 0.85)
            )


def _draw_hair_front(canvas: _Canvas, who: Identity) -> None:
    if who.hair_style == "bald":
        return
    half = who.head_width / 2 + 0.015
    arc = np.stack(
        [half * np.cos(np.linspace(np.pi, 2 * np.pi, 13)), 0.53 * np.sin(np.linspace(np.pi, 2 * np.pi, 13)) - 0.02],
        axis=1,
    )
    arc = arc[(arc[:, 1] <= who.fringe + 0.06)]
    if who.hair_style == "spiky":
        top = [(x * 1.05, y - (0.13 if i % 2 else 0.0)) for i, (x, y) in enumerate(arc)]
        canvas.fill(
            np.array([*top, (half * 0.7, who.fringe), (0, who.fringe - 0.08), (-half * 0.7, who.fringe)]), who.hair
        )
    elif who.hair_style == "curly":
        for x in np.linspace(-half * 0.75, half * 0.75, 5):
            canvas.fill(_ellipse(x, who.fringe - 0.08 + 0.25 * x * x, 0.12, 0.11), who.hair, 0.12)
    else:
        part = 0.25 * half if who.hair_style == "short" else 0.0
        canvas.fill(
            np.array([*arc, (half * 0.75, who.fringe), (part, who.fringe - 0.1), (-half * 0.75, who.fringe)]), who.hair
        )


def _draw_eyes(canvas: _Canvas, who: Identity) -> None:
    for side in (-1, 1):
        x, y = side * who.eye_gap, who.eye_height
        openness = max(0.12, 1 - canvas.pose.blink)
        canvas.fill(_ellipse(x, y, who.eye_size, who.eye_size * openness), (0.98, 0.98, 0.98), 0.3)
        canvas.fill(_ellipse(x, y, who.eye_size * 0.62, who.eye_size * 0.62 * openness), who.iris, 0.33)
        canvas.fill(_ellipse(x, y, who.eye_size * 0.3, who.eye_size * 0.3 * openness), (0.03, 0.03, 0.03), 0.34)
        brow_y = y - who.eye_size - 0.05
        tilt = side * who.brow_tilt * 0.1
        brow = [(x - 0.1, brow_y - tilt), (x + 0.1, brow_y + tilt)]
        canvas.stroke(brow, _shade(who.hair, 0.6), who.brow_width, 0.3)


def _draw_mouth(canvas: _Canvas, who: Identity) -> None:
    pose = canvas.pose
    width, y = who.mouth_width, 0.27
    xs = np.linspace(-width, width, 9)
    curve = pose.smile * 0.08 * (1 - 2 * (xs / width) ** 2)
    gap = 0.035 + 0.07 * pose.mouth_open * (1 - (xs / width) ** 2)
    if who.beard_style == "full":
        half = who.head_width / 2 * (1 + who.jaw * 0.8)
        canvas.fill(
            [
                (-half * 0.98, 0.08),
                (-half * 0.55, 0.16),
                (0, 0.17),
                (half * 0.55, 0.16),
                (half * 0.98, 0.08),
                (half * 0.8, 0.42),
                (0, 0.57),
                (-half * 0.8, 0.42),
            ],
            who.hair,
            0.05,
        )
    upper, lower = np.stack([xs, y + curve - 0.03], axis=1), np.stack([xs, y + curve + gap], axis=1)
    canvas.fill(np.concatenate([upper, lower[::-1]]), who.mouth, 0.3)
    if who.beard_style == "moustache":
        canvas.fill(
            [
                (-width * 1.15, y - 0.02),
                (-width * 0.5, y - 0.1),
                (0, y - 0.07),
                (width * 0.5, y - 0.1),
                (width * 1.15, y - 0.02),
                (0, y - 0.015),
            ],
            who.hair,
            0.32,
        )


def _draw_glasses(canvas: _Canvas, who: Identity) -> None:
    radius = who.eye_size + 0.045
    for side in (-1, 1):
        x, y = side * who.eye_gap, who.eye_height
        if who.glasses_style == "round":
            rim = _ellipse(x, y, radius, radius)
        else:
            rim = np.array(
                [
                    (x - radius, y - radius * 0.8),
                    (x + radius, y - radius * 0.8),
                    (x + radius, y + radius * 0.8),
                    (x - radius, y + radius * 0.8),
                ]
            )
        canvas.stroke(rim, who.glasses, 0.035, 0.35, closed=True)
    canvas.stroke(
        [(-who.eye_gap + radius, who.eye_height), (who.eye_gap - radius, who.eye_height)], who.glasses, 0.035, 0.36
    )


def _draw_hat(canvas: _Canvas, who: Identity) -> None:
    half = who.head_width / 2
    dark = _shade(who.hat, 0.7)
    if who.hat_style == "cap":
        canvas.fill(
            [(-half - 0.03, -0.3), (-half * 0.8, -0.55), (0, -0.63), (half * 0.8, -0.55), (half + 0.03, -0.3)], who.hat
        )
        canvas.fill([(-half * 0.9, -0.33), (half * 0.9, -0.33), (half * 1.0, -0.25), (-half * 1.0, -0.25)], dark, 0.2)
    elif who.hat_style == "cone":
        canvas.fill([(-half * 0.95, -0.34), (0, -0.95), (half * 0.95, -0.34)], who.hat)
        canvas.fill([(-half - 0.02, -0.38), (half + 0.02, -0.38), (half + 0.02, -0.3), (-half - 0.02, -0.3)], dark)
    elif who.hat_style == "beanie":
        canvas.fill(
            [(-half - 0.02, -0.28), (-half * 0.85, -0.58), (0, -0.68), (half * 0.85, -0.58), (half + 0.02, -0.28)],
            who.hat,
        )
        canvas.fill([(-half - 0.04, -0.37), (half + 0.04, -0.37), (half + 0.04, -0.26), (-half - 0.04, -0.26)], dark)
        canvas.fill(_ellipse(0, -0.71, 0.08, 0.08), dark)


def draw_puppet(image: np.ndarray, who: Identity, pose: Pose) -> Face:
    """Paints a puppet over ``image`` (uint8 RGB, [H*SUPERSAMPLE, W*SUPERSAMPLE, 3]) and returns its face in output
    pixels.
    """
    canvas = _Canvas(image, pose)
    half = who.head_width / 2
    _draw_body(canvas, who)
    _draw_hair_behind(canvas, who)
    for side in (-1, 1):
        canvas.fill(
            _ellipse(side * (half + 0.01) - 0.05 * canvas.turn, who.eye_height + 0.06, who.ear, who.ear * 1.3),
            _shade(who.skin, 0.85),
        )
    outline = _head_outline(who)
    canvas.fill(outline, who.skin)
    if pose.away:
        _draw_back_of_head(canvas, who, outline)
    else:
        _draw_face(canvas, who)
    _draw_hat(canvas, who)

    corners = canvas.place(outline)
    box = np.array([*corners.min(0), *corners.max(0)], np.float32)
    eyes = canvas.place([(-who.eye_gap, who.eye_height), (who.eye_gap, who.eye_height)], 0.33)
    nose = canvas.place([(0, _nose_y(who) - who.nose_length * 0.2)], 0.42)
    corner_y = 0.27 - 0.08 * pose.smile
    mouth = canvas.place([(-who.mouth_width, corner_y), (who.mouth_width, corner_y)], 0.3)
    return Face(box, np.concatenate([eyes, nose, mouth]).astype(np.float32))


def _nose_y(who: Identity) -> float:
    return who.eye_height + 0.08 + who.nose_length


def _draw_back_of_head(canvas: _Canvas, who: Identity, outline: np.ndarray) -> None:
    if who.hair_style != "bald":
        canvas.fill(outline[outline[:, 1] <= 0.3], who.hair)


def _draw_face(canvas: _Canvas, who: Identity) -> None:
    half = who.head_width / 2
    if who.cheek:
        blush = tuple(s * (1 - who.cheek) + c * who.cheek for s, c in zip(who.skin, (0.95, 0.3, 0.35), strict=True))
        for side in (-1, 1):
            canvas.fill(_ellipse(side * half * 0.62, 0.16, 0.075, 0.06), blush, 0.2)
    _draw_hair_front(canvas, who)
    _draw_mouth(canvas, who)
    _draw_eyes(canvas, who)
    nose = _ellipse(0, _nose_y(who) - who.nose_length * 0.4, who.nose_width, who.nose_length * 0.55)
    canvas.fill(nose, who.nose, 0.42)
    if who.glasses_style != "none":
        _draw_glasses(canvas, who)
