"""What is in a folder of rollouts, for people: as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from .. import drawing
from .dataset import Group, Rollouts

ROWS = 16
WIDTH, ROW, HEAD, MARGIN = 960, 34, 64, 16
SHOWN_FRAMES = 4


def report(rollouts: Rollouts) -> str:
    """The folder in lines: how much there is, each group (the newest ROWS of them), and what was left out and why."""
    lines = [summary(rollouts), ""]
    first = max(0, len(rollouts.groups) - ROWS)
    if first:
        lines.append(f"The newest {ROWS} of {len(rollouts.groups)} groups:")
    lines.append("group  takes   mean  spread   best  worst  policy        prompt")
    for i, group in enumerate(rollouts.groups[first:], first):
        totals = group.totals
        lines.append(
            f"{i:5}  {len(group.takes):5}  {totals.mean():5.3f}  {group.spread:6.4f}  {totals.max():5.3f}  "
            f"{totals.min():5.3f}  {group.facts['hashes']['policy'][:12]}  {group.prompt[:60]}"
        )
    lines += _counted("Left out", [f"{skipped.what}: {skipped.reason}" for skipped in rollouts.skipped])
    lines += _counted("Damaged", [f"{damage.file}: {damage.reason}" for damage in rollouts.damages])
    return "\n".join(lines)


def summary(rollouts: Rollouts) -> str:
    takes = sum(len(group.takes) for group in rollouts.groups)
    mean = np.mean([group.spread for group in rollouts.groups]) if rollouts.groups else 0.0
    licences = sorted({str(entry["licence"]) for g in rollouts.groups for entry in g.facts["licences"]})
    return (
        f"{len(rollouts.groups)} groups, {takes} takes, {len(rollouts.policies)} policies, mean spread {mean:.4f}; "
        f"{len(rollouts.skipped)} left out, {len(rollouts.damages)} damaged. Rewards: "
        f"{', '.join(rollouts.reward_names) or 'none'}. Licences: {'; '.join(licences) or 'none'}."
    )


def draw(rollouts: Rollouts, shown: int | None = None, frames: torch.Tensor | None = None) -> torch.Tensor:
    """The page as IMAGE [1, H, W, 3]: a strip of rewards a group, and below it a group's best and worst take.

    shown   the place of the group below among `rollouts.groups`
    frames  what `side_by_side` made of it
    """
    first = max(0, len(rollouts.groups) - ROWS)
    groups = rollouts.groups[first:]
    strip = _film(frames) if frames is not None else None
    height = HEAD + ROW * max(len(groups), 1) + MARGIN + (strip.height + 40 if strip else 0)
    image = Image.new("RGB", (WIDTH, height), drawing.BACKGROUND)
    canvas = ImageDraw.Draw(image)
    drawing.draw_text(canvas, (MARGIN, 12), f"Rollouts: {rollouts.folder.name}", 18, width=WIDTH - 2 * MARGIN)
    drawing.draw_text(canvas, (MARGIN, 38), summary(rollouts), 12, drawing.MUTED, width=WIDTH - 2 * MARGIN)
    totals = np.concatenate([group.totals for group in groups]) if groups else np.zeros(1)
    for row, group in enumerate(groups):
        _draw_group(canvas, HEAD + ROW * row, first + row, group, (totals.min(), totals.max()), first + row == shown)
    if strip:
        top = HEAD + ROW * len(groups) + MARGIN
        group = rollouts.groups[shown]
        for take, what, x in ((group.best, "best", MARGIN), (group.worst, "worst", WIDTH // 2)):
            text = f"group {shown}, {what}: seed {group.takes[take].seed}, reward {group.totals[take]:.3f}"
            drawing.draw_text(canvas, (x, top), text, 13, width=WIDTH // 2 - MARGIN)
        image.paste(strip, (MARGIN, top + 24))
    return torch.from_numpy(np.asarray(image, np.float32) / 255).unsqueeze(0)


def side_by_side(best: torch.Tensor, worst: torch.Tensor) -> torch.Tensor:
    """Two clips [T, H, W, 3] -> [T, H, 2 W + 4, 3], the better one on the left."""
    gap = best.new_zeros((best.shape[0], best.shape[1], 4, 3))
    return torch.cat([best, gap, worst], 2)


def _draw_group(canvas, top: int, number: int, group: Group, limits: Sequence[float], marked: bool) -> None:
    if marked:
        canvas.rectangle((0, top, WIDTH, top + ROW - 2), fill=drawing.PANEL)
    middle, left, right = top + ROW // 2, 470, WIDTH - 90
    drawing.draw_text(canvas, (MARGIN, middle), f"{number}", 13, anchor="lm")
    drawing.draw_text(canvas, (56, middle), group.prompt or "(no prompt noted)", 13, anchor="lm", width=left - 72)
    canvas.line((left, middle, right, middle), fill=drawing.LINE)
    low, high = limits
    for place, total in enumerate(group.totals):
        x = left + (right - left) * (total - low) / max(high - low, 1e-9)
        colour = {group.best: drawing.GOOD, group.worst: drawing.BAD}.get(place, drawing.TEXT)
        canvas.ellipse((x - 4, middle - 4, x + 4, middle + 4), fill=colour)
    drawing.draw_text(canvas, (WIDTH - MARGIN, middle), f"{group.spread:.3f}", 13, drawing.MUTED, anchor="rm")


def _film(frames: torch.Tensor) -> Image.Image:
    """Some frames of [T, H, W, 3] below each other, as wide as the page."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(SHOWN_FRAMES, len(frames))).round().astype(int).tolist()]
    pixels = (chosen.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    pictures = [Image.fromarray(each) for each in pixels]
    width = WIDTH - 2 * MARGIN
    height = round(pictures[0].height * width / pictures[0].width)
    film = Image.new("RGB", (width, height * len(pictures)), drawing.BACKGROUND)
    for i, picture in enumerate(pictures):
        film.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (0, height * i))
    return film


def _counted(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return []
    more = [f"... and {len(lines) - ROWS} more"] if len(lines) > ROWS else []
    return ["", f"{title} ({len(lines)}):", *lines[:ROWS], *more]
