"""Seeded weights in the layout of glint360k_curricular_face_r101_backbone.bin, without the network that they are for.

The names and shapes are written down here from the released layout, apart from the module under test.
"""

import functools
import math

import torch

# (channels in, channels out, stride) of the 49 blocks.
BLOCKS = [
    (width if i == 0 else channels, channels, 2 if i == 0 else 1)
    for width, channels, count in ((64, 64, 3), (64, 128, 13), (128, 256, 30), (256, 512, 3))
    for i in range(count)
]


def released_layout() -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, the counters of the normalisations left out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name, channels, affine=True):
        for part in ("weight", "bias") if affine else ():
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.running_mean"] = shapes[f"{name}.running_var"] = (channels,)

    shapes["input_layer.0.weight"] = (64, 3, 3, 3)
    norm("input_layer.1", 64)
    shapes["input_layer.2.weight"] = (64,)
    for i, (inner, outer, _) in enumerate(BLOCKS):
        if inner != outer:
            shapes[f"body.{i}.shortcut_layer.0.weight"] = (outer, inner, 1, 1)
            norm(f"body.{i}.shortcut_layer.1", outer)
        norm(f"body.{i}.res_layer.0", inner)
        shapes[f"body.{i}.res_layer.1.weight"] = (outer, inner, 3, 3)
        norm(f"body.{i}.res_layer.2", outer)
        shapes[f"body.{i}.res_layer.3.weight"] = (outer,)
        shapes[f"body.{i}.res_layer.4.weight"] = (outer, outer, 3, 3)
        norm(f"body.{i}.res_layer.5", outer)
    norm("output_layer.0", 512)
    shapes["output_layer.3.weight"], shapes["output_layer.3.bias"] = (512, 512 * 7 * 7), (512,)
    norm("output_layer.4", 512, affine=False)
    return shapes


def empty_weights() -> dict[str, torch.Tensor]:
    """Zeros in the released layout that take next to no memory, in a file either."""
    return {name: torch.zeros(()).expand(shape) for name, shape in released_layout().items()}


@functools.cache
def seeded_weights() -> dict[str, torch.Tensor]:
    """Weights that keep the signal's size over all blocks; every tensor matters for the result."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for name, shape in sorted(released_layout().items()):
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = noise * math.sqrt(1.0 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            weights[name] = 1 + 0.1 * noise.abs()
        elif name.endswith(("running_mean", "bias")):
            weights[name] = 0.1 * noise
        else:  # the scales of normalisations, and the slopes of PReLU
            weights[name] = (0.25 if name.endswith(("layer.3.weight", "layer.2.weight")) else 0.7) + 0.05 * noise
    return weights


def crops(count: int = 2, seed: int = 11) -> torch.Tensor:
    """[N, 3, 112, 112] in -1..1."""
    return torch.rand((count, 3, 112, 112), generator=torch.Generator().manual_seed(seed)) * 2 - 1
