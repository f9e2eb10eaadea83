"""Tiny YuNet and SFace: ONNX files with the inputs, outputs and value ranges of opencv_zoo's, for OpenCV's own classes.

The detector finds squares that fill a cell of its 32 px grid and are red rather than green, as that of `onnx_faces`
does; the recogniser embeds the mean colour of its crop. Neither has learned anything.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .onnx_faces import MARKS, STRIDES

SIZE = 640


def write_yunet(path: Path, outputs: tuple[str, ...] = ("cls", "obj", "bbox", "kps")) -> Path:
    """face_detection_yunet_2023mar.onnx: "input" [1, 3, 640, 640] BGR 0..255, and for each stride s
    cls_s, obj_s [1, N, 1], bbox_s [1, N, 4] and kps_s [1, N, 10] with N = (640 / s)^2."""
    widths = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    nodes, tensors, infos = [], [], []
    for head in outputs:
        for stride in STRIDES:
            width = widths[head]
            weight = np.zeros((width, 3, stride, stride), np.float32)
            bias = np.zeros(width, np.float32)
            if head in ("cls", "obj"):
                bias[:] = -8
                if stride == 32:  # the logit is 8 for red (the third channel) and -8 without
                    weight[0, 2], weight[0, 1] = 16 / 255 / stride**2, -16 / 255 / stride**2
            if head == "bbox":  # the middle of the cell; exp(0) cells wide
                bias[:2] = 0.5
            if head == "kps":
                bias[:] = MARKS.ravel()
            name = f"{head}_{stride}"
            tensors += [numpy_helper.from_array(weight, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
            tensors.append(numpy_helper.from_array(np.array([1, -1, width], np.int64), f"{name}.shape"))
            last = f"{name}.flat" if head in ("cls", "obj") else name
            nodes += [
                helper.make_node(
                    "Conv",
                    ["input", f"{name}.w", f"{name}.b"],
                    [f"{name}.conv"],
                    kernel_shape=[stride, stride],
                    strides=[stride, stride],
                ),
                helper.make_node("Transpose", [f"{name}.conv"], [f"{name}.last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}.last", f"{name}.shape"], [last]),
            ]
            if last != name:
                nodes.append(helper.make_node("Sigmoid", [last], [name]))
            cells = (SIZE // stride) ** 2
            infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, cells, width]))
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    return _write(path, nodes, tensors, source, infos)


def write_sface(path: Path, dimensions: int = 128) -> Path:
    """face_recognition_sface_2021dec.onnx: "data" [1, 3, 112, 112] RGB 0..255, normalised inside, "fc1" [1, 128]."""
    weight = np.random.default_rng(1).standard_normal((dimensions, 3)).astype(np.float32)
    tensors = [
        numpy_helper.from_array(np.array([127.5], np.float32), "middle"),
        numpy_helper.from_array(np.array([1 / 128], np.float32), "scale"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.full(dimensions, 0.1, np.float32), "bias"),
    ]
    nodes = [
        helper.make_node("Sub", ["data", "middle"], ["_minusscalar0"]),
        helper.make_node("Mul", ["_minusscalar0", "scale"], ["_mulscalar0"]),
        helper.make_node("GlobalAveragePool", ["_mulscalar0"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("Gemm", ["colour", "weight", "bias"], ["fc1"], transB=1),
    ]
    source = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 112, 112])
    output = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, dimensions])
    return _write(path, nodes, tensors, source, [output])


def _write(path: Path, nodes, tensors, source, outputs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(nodes, path.stem, [source], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
