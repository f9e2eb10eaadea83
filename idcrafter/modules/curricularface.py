"""CurricularFace's IR-101, the face recogniser that OpenS2V's FaceSim-Cur and Identity-GRPO measure with.

Layout of glint360k_curricular_face_r101_backbone.bin (BasicBlockIR of TFace's torchkit/backbone/model_irse.py, as in
junjiehe96/UniPortrait): a 3x3 stem of 64 channels, 49 residual blocks in four stages, of which each first one halves
the picture, and a linear layer from the last 7x7 cells. The file of HuangYG123/CurricularFace, the paper's authors,
lacks the normalisation between the two convolutions of each block and is another network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

CROP = 112
DIMENSIONS = 512
# (channels, blocks) of the stages.
IR101 = ((64, 3), (128, 13), (256, 30), (512, 3))


class ResidualBlock(nn.Module):
    """[N, inner, H, W] -> [N, outer, H / stride, W / stride]; the second convolution does the stride."""

    def __init__(self, inner: int, outer: int, stride: int, operations: Any):
        super().__init__()
        conv, norm = operations.Conv2d, operations.BatchNorm2d
        if inner == outer:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(conv(inner, outer, 1, stride, bias=False), norm(outer))
        self.res_layer = nn.Sequential(
            norm(inner),
            conv(inner, outer, 3, 1, 1, bias=False),
            norm(outer),
            nn.PReLU(outer),
            conv(outer, outer, 3, stride, 1, bias=False),
            norm(outer),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class CurricularFace(nn.Module):
    """Crops [N, 3, 112, 112] RGB in -1..1 -> embeddings [N, 512] of any length.

    stages      (channels, blocks) a stage; another depth or width is for tests
    operations  has Conv2d, BatchNorm2d and Linear: torch.nn, or comfy.ops for memory management
    """

    def __init__(self, operations: Any, stages: tuple[tuple[int, int], ...] = IR101, dimensions: int = DIMENSIONS):
        super().__init__()
        width = stages[0][0]
        self.input_layer = nn.Sequential(
            operations.Conv2d(3, width, 3, 1, 1, bias=False), operations.BatchNorm2d(width), nn.PReLU(width)
        )
        blocks = []
        for channels, count in stages:
            blocks.append(ResidualBlock(width, channels, 2, operations))
            blocks += [ResidualBlock(channels, channels, 1, operations) for _ in range(count - 1)]
            width = channels
        self.body = nn.Sequential(*blocks)
        cells = (CROP >> len(stages)) ** 2
        self.output_layer = nn.Sequential(
            operations.BatchNorm2d(width),
            nn.Dropout(0.4),  # in the file's layout it has the number 1; off in evaluation
            nn.Flatten(),
            operations.Linear(width * cells, dimensions),
            nn.BatchNorm1d(dimensions, affine=False),
        )

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return self.output_layer(self.body(self.input_layer(crops)))


def layout() -> dict[str, torch.Size]:
    """Tensor name -> shape of the released file; the counters of the normalisations may be missing from a file."""
    with torch.device("meta"):
        weights = CurricularFace(nn).state_dict()
    return {name: tensor.shape for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
