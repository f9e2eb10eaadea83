"""An ONNX network of the kind that ArcFace-style recognisers are, as a torch module: onnxruntime has no gradients.

Only what these networks are made of is known (InsightFace's w600k_r50 and glintr100, AuraFace, exports of torch's
convolutional networks); any other operator is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class _Step:
    run: Callable[..., torch.Tensor]
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


class OnnxModule(nn.Module):
    """The graph's one input -> its first output. The weights are float32 buffers, which have no gradients.

    Raises ValueError for an operator, or an attribute of one, that is not known.
    """

    def __init__(self, path: Path):
        super().__init__()
        import onnx

        graph = onnx.load(str(path)).graph
        steps, weights = [], {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
        for node in graph.node:
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            if node.op_type == "Constant":
                weights[node.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
                continue
            if node.op_type not in _OPERATORS:
                known = ", ".join(sorted(_OPERATORS))
                raise ValueError(
                    f"'{path.name}' has the operator {node.op_type}, which has no gradient here (known: {known}). Use "
                    "an ArcFace recogniser, such as the one in buffalo_l or antelopev2."
                )
            if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
                raise ValueError(f"'{path.name}' pads automatically in {node.name}; that is not known here.")
            steps.append(_Step(_OPERATORS[node.op_type], tuple(node.input), node.output[0], attributes))
        self._steps, self._output = tuple(steps), graph.output[0].name
        (self._input,) = (each.name for each in graph.input if each.name not in weights)
        # Names of ONNX have dots and slashes, which buffers may not have.
        self._buffer_of = {name: f"weight_{i}" for i, name in enumerate(weights)}
        for name, values in weights.items():
            tensor = torch.tensor(values)
            self.register_buffer(self._buffer_of[name], tensor.float() if tensor.is_floating_point() else tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = {name: getattr(self, buffer) for name, buffer in self._buffer_of.items()}
        found[self._input] = x
        for step in self._steps:
            inputs = [found[name] if name else None for name in step.inputs]
            found[step.output] = step.run(step.attributes, *inputs)
        return found[self._output]


def _conv(given: Mapping[str, Any], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
    padded = functional.pad(x, (left, right, top, bottom))
    return functional.conv2d(padded, weight, bias, tuple(strides), 0, tuple(dilations), given.get("group", 1))


def _batch_norm(given: Mapping[str, Any], x: torch.Tensor, weight, bias, mean, variance) -> torch.Tensor:
    return functional.batch_norm(x, mean, variance, weight, bias, eps=given.get("epsilon", 1e-5))


def _prelu(given: Mapping[str, Any], x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, x * slope, x)


def _gemm(given: Mapping[str, Any], a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    a, b = (each.T if given.get(name, 0) else each for name, each in (("transA", a), ("transB", b)))
    found = given.get("alpha", 1.0) * (a @ b)
    return found if c is None else found + given.get("beta", 1.0) * c


_OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "Add": lambda given, a, b: a + b,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Div": lambda given, a, b: a / b,
    "Flatten": lambda given, x: x.flatten(given.get("axis", 1)),
    "Gemm": _gemm,
    "Identity": lambda given, x: x,
    "MatMul": lambda given, a, b: a @ b,
    "Mul": lambda given, a, b: a * b,
    "PRelu": _prelu,
    "Relu": lambda given, x: x.relu(),
    "Reshape": lambda given, x, shape: x.reshape([size or x.shape[i] for i, size in enumerate(shape.tolist())]),
    "Sub": lambda given, a, b: a - b,
}
