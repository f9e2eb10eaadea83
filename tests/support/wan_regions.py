"""Four subjects in a video of Wan 1.3B's shape, and what attention over it costs."""

from dataclasses import dataclass

import torch

from .storage import PeakStorage

WIDTH, HEAD = 1536, 128  # 12 heads
SUBJECTS = 4  # with one reference each
KINDS = ("quarters", "overlapping")


@dataclass(frozen=True)
class Geometry:
    """rows x columns patches, 21 latent frames (81 frames), and the references behind them."""

    rows: int
    columns: int
    frames: int = 21

    @property
    def frame(self):
        return self.rows * self.columns

    @property
    def video(self):
        return self.frame * self.frames

    @property
    def total(self):
        return self.frame * (self.frames + SUBJECTS)

    @property
    def references(self):
        return [range(start, start + self.frame) for start in range(self.video, self.total, self.frame)]

    def regions(self, kind):
        """[4, video] bool: upright quarters of the frame, or halves that overlap."""
        share = torch.arange(self.columns).repeat(self.frames * self.rows) / self.columns
        if kind == "quarters":
            return torch.stack([(share * 4).int() == s for s in range(4)])
        return torch.stack([(share >= 0.1 * s) & (share < 0.1 * s + 0.5) for s in range(4)])


FULL = Geometry(30, 52)  # 832x480
HALF = Geometry(15, 26)  # 416x240


def peak_of(attention, dtype, batch, geometry=FULL):
    """Bytes alive at the worst moment of attention(attend, q, k, v), without q, k and v.

    Counted on the meta device, with an `attend` that takes nothing but its result, as flash kernels do.
    """
    q, k, v = (torch.empty((batch, geometry.total, WIDTH), dtype=dtype, device="meta") for _ in range(3))
    with PeakStorage() as storage:
        attention(lambda q, k, v: torch.empty_like(q), q, k, v)
    return storage.peak
