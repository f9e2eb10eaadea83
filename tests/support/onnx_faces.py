"""A tiny insightface pack: real ONNX files with SCRFD's nine outputs and ArcFace's shape, and pictures for them.

The detector finds squares that fill a cell of its 32 px grid and are red rather than green; the recogniser embeds the
mean colour of the aligned crop. Both do so through ordinary convolutions, so the real FaceAnalysis runs them.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
# Offsets of the landmarks from a cell's corner, in cells.
MARKS = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)], np.float32)


def write_pack(folder: Path, size: int | None = None) -> Path:
    """Detector and recogniser files in `folder`; `size` fixes the detector's input."""
    folder.mkdir(parents=True, exist_ok=True)
    write_detector(folder / "det_tiny.onnx", size)
    write_recogniser(folder / "rec_tiny.onnx")
    return folder


def write_detector(path: Path, size: int | None = None, landmarks: bool = True) -> None:
    heads = {"score": (2, 1), "box": (8, 4), "marks": (20, 10)}
    if not landmarks:
        del heads["marks"]
    nodes, tensors, outputs = [], [], []
    for head, (channels, width) in heads.items():
        for stride in STRIDES:
            weight = np.zeros((channels, 3, stride, stride), np.float32)
            bias = np.zeros(channels, np.float32)
            if head == "score" and stride == 32:  # the first of the two anchors sees red minus green
                weight[0, 0], weight[0, 1] = 0.5 / stride**2, -0.5 / stride**2
            if head == "box":
                bias[:] = [0, 0, 1, 1] * 2
            if head == "marks":
                bias[:] = MARKS.ravel().tolist() * 2
            name = f"{head}_{stride}"
            tensors += [numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
            tensors.append(numpy_helper.from_array(np.array([-1, width], np.int64), f"{name}.shape"))
            nodes += [
                helper.make_node(
                    "Conv",
                    ["input", f"{name}.w", f"{name}.b"],
                    [f"{name}.conv"],
                    kernel_shape=[stride, stride],
                    strides=[stride, stride],
                ),
                helper.make_node("Transpose", [f"{name}.conv"], [f"{name}.last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.last", f"{name}.shape"], [name]),
            ]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"n_{name}", width]))
    shape = [1, 3, size or "height", size or "width"]
    _write(path, nodes, tensors, helper.make_tensor_value_info("input", TensorProto.FLOAT, shape), outputs)


def write_recogniser(path: Path, dimensions: int = 512) -> None:
    weight = np.random.default_rng(0).standard_normal((3, dimensions)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["embedding"]),
    ]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 112, 112])
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dimensions])
    _write(path, nodes, [numpy_helper.from_array(weight, "weight")], source, [output])


def picture(*faces: tuple[int, int, float], cell: int = 32, size: tuple[int, int] = (128, 128)) -> torch.Tensor:
    """Black image [H, W, 3] with a face at each (column, row) of the grid; the third value is how blue it is."""
    image = torch.zeros(*size, 3)
    for column, row, blue in faces:
        image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = torch.tensor([1.0, 0.0, blue])
    return image


def _write(path: Path, nodes, tensors, source, outputs) -> None:
    graph = helper.make_graph(nodes, path.stem, [source], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
