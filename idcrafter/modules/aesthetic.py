"""The head of LAION's aesthetic predictor, in the key names of its released files.

christophschuhmann/improved-aesthetic-predictor (Apache-2.0): a CLIP-L/14 image embedding [768] of unit length goes
through linear layers 1024, 128, 64, 16, 1 with nothing but dropout between them. The released file
sac+logos+ava1-l14-linearMSE.pth holds layers.{0, 2, 4, 6, 7}.{weight, bias}: dropout stands at 1, 3 and 5, and does
nothing outside training.
"""

from __future__ import annotations

import torch

WIDTHS = (1024, 128, 64, 16, 1)
DIMENSIONS = 768


class AestheticHead(torch.nn.Module):
    """Unit embeddings [N, dimensions] -> ratings [N], mostly within 1..10.

    operations  a namespace with Linear, such as torch.nn or comfy.ops.disable_weight_init
    """

    def __init__(self, operations, dimensions: int = DIMENSIONS, widths: tuple[int, ...] = WIDTHS, **factory):
        super().__init__()
        sizes = (dimensions, *widths)
        linear = [operations.Linear(a, b, **factory) for a, b in zip(sizes, sizes[1:], strict=False)]
        layers: list[torch.nn.Module] = []
        for i, layer in enumerate(linear):
            layers.append(layer)
            if i < len(linear) - 2:
                layers.append(torch.nn.Identity())
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.layers(embeddings).squeeze(-1)
