"""The two small nets of the nano face pack, in the shapes that insightface's runtime expects of SCRFD and ArcFace."""

from __future__ import annotations

import torch
from torch import nn

STRIDES = (8, 16, 32)
ANCHORS = 2


def initialise(model: nn.Module, seed: int) -> None:
    """He initialisation with a seed; core's ``disable_weight_init`` layers come uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim > 1:
            p.data.normal_(0, (2.0 / p[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            p.data.zero_()


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, PReLU."""

    def __init__(self, cin: int, cout: int, stride: int, operations):
        super().__init__(
            operations.Conv2d(cin, cout, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(cout), nn.PReLU(cout)
        )


class Residual(nn.Module):
    def __init__(self, width: int, operations):
        super().__init__()
        self.first = ConvBlock(width, width, 1, operations)
        self.second = nn.Sequential(operations.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x))


class Recogniser(nn.Module):
    """[B, 3, 112, 112] RGB in -1..1 -> [B, 512], not normalised (as ArcFace models are)."""

    def __init__(self, operations):
        super().__init__()
        widths = (16, 32, 64, 128)
        layers: list[nn.Module] = [ConvBlock(3, widths[0], 2, operations)]
        for cin, cout in zip(widths[:-1], widths[1:], strict=True):
            layers += [ConvBlock(cin, cout, 2, operations), Residual(cout, operations)]
        self.trunk = nn.Sequential(*layers)
        # one weight a place and channel before the fully connected layer, as in MobileFaceNet
        self.pool = operations.Conv2d(widths[-1], 256, 7, groups=widths[-1], bias=False)
        self.project = operations.Linear(256, 512)
        self.norm = nn.BatchNorm1d(512, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.project(self.pool(self.trunk(x)).flatten(1)))


class Detector(nn.Module):
    """[1, 3, H, W] RGB in about -1..1 -> scores, boxes and landmarks of three strides, each [H/s * W/s * 2, 1 | 4 |
    10].

    Boxes are distances from the anchor point to left, top, right and bottom, landmarks are offsets, both in units of
    the stride.
    """

    def __init__(self, operations):
        super().__init__()
        self.stem = nn.Sequential(ConvBlock(3, 12, 2, operations), ConvBlock(12, 24, 2, operations))
        self.levels = nn.ModuleList(
            nn.Sequential(ConvBlock(cin, 48, 2, operations), Residual(48, operations)) for cin in (24, 48, 48)
        )
        self.merge = nn.ModuleList(ConvBlock(48, 48, 1, operations) for _ in STRIDES)
        self.heads = nn.ModuleList(operations.Conv2d(48, ANCHORS * 15, 3, padding=1) for _ in STRIDES)

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Raw predictions [B, h, w, ANCHORS, 15] of each stride: score logit, 4 distances, 10 landmark offsets."""
        x, maps = self.stem(x), []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        outs, above = [], None
        for i in reversed(range(len(maps))):
            merged = (
                maps[i]
                if above is None
                else maps[i] + nn.functional.interpolate(above, scale_factor=2.0, mode="nearest")
            )
            above = self.merge[i](merged)
            out = self.heads[i](above).permute(0, 2, 3, 1)
            outs.insert(0, out.unflatten(-1, (ANCHORS, 15)))
        return outs

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = [f.reshape(-1, 15) for f in self.features(x)]
        return (*[f[:, :1].sigmoid() for f in flat], *[f[:, 1:5] for f in flat], *[f[:, 5:] for f in flat])
