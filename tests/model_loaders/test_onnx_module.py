"""Face recognisers in torch: the same answers as onnxruntime's and insightface's, and gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PACKS = ROOT / "idcrafter" / "nano" / "weights" / "insightface" / "models"


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("model_loaders.onnx_module")


def write(path, nodes, weights, shape):
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def run(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.parametrize("name", ["idcrafter_nano", "idcrafter_nano_monitor"])
def test_the_nano_recognisers_answer_as_in_insightface(pack, lib, name):
    analyzer = pack.submodule("model_loaders.faces").load_face_analyzer(PACKS / name, det_size=128, provider="cpu")
    rng = np.random.default_rng(1)
    crops = [rng.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(3)]
    with torch.inference_mode(False), torch.enable_grad():
        pixels = torch.from_numpy(np.stack(crops)).flip(-1).movedim(-1, 1) / 255
        pixels.requires_grad_(True)
        found = analyzer.recogniser.with_gradient()(pixels)
        found[0].sum().backward()
    np.testing.assert_allclose(found.detach().numpy(), analyzer.recogniser.embed(crops), atol=2e-4, rtol=1e-4)
    assert pixels.grad[0].abs().max() > 0 and not pixels.grad[1:].any()


def test_every_operator_is_onnxruntimes(lib, tmp_path):
    from onnx import helper

    rng = np.random.default_rng(2)

    def values(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = {
        "mean": np.float32(0.4), "scale": np.float32(1.7), "w.1": values(4, 3, 3, 3), "b/1": values(4),
        "w2": values(4, 1, 3, 2), "slope": values(4, 1, 1), "gamma": values(4), "beta": values(4),
        "average": values(4), "variance": values(4) ** 2 + 0.1, "shape": np.array([0, -1], np.int64),
        "m": values(32, 6), "g": values(5, 6), "c": values(5), "half": np.float32(2.0),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Sub", ["x", "mean"], ["a"]), node("Mul", ["a", "scale"], ["b"]), node("Identity", ["b"], ["c0"]),
        node("Conv", ["c0", "w.1", "b/1"], ["d"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("PRelu", ["d", "slope"], ["e"]),
        node("Conv", ["e", "w2"], ["f"], group=4, dilations=[1, 1], pads=[2, 0, 0, 1], kernel_shape=[3, 2]),
        node("BatchNormalization", ["f", "gamma", "beta", "average", "variance"], ["g0"], epsilon=1e-3),
        node("Add", ["g0", "e"], ["h"]), node("Relu", ["h"], ["i"]), node("Div", ["i", "half"], ["j"]),
        node("Flatten", ["j"], ["k"]), node("Reshape", ["k", "shape"], ["l"]), node("MatMul", ["l", "m"], ["n"]),
        node("Gemm", ["n", "g", "c"], ["y"], transB=1, alpha=0.5, beta=2.0),
    ]  # fmt: skip
    path = write(tmp_path / "net.onnx", nodes, weights, ["n", 3, 8, 4])
    x = values(3, 3, 8, 4)
    module = lib.OnnxModule(path)
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), run(path, x), atol=1e-4, rtol=1e-4)
    assert {each.op_type for each in nodes} == set(lib._OPERATORS)


def test_what_is_not_known_is_named(lib, tmp_path):
    from onnx import helper

    path = write(tmp_path / "odd.onnx", [helper.make_node("Softmax", ["x"], ["y"])], {}, [1, 3])
    with pytest.raises(ValueError, match=r"'odd.onnx' has the operator Softmax, which has no gradient here"):
        lib.OnnxModule(path)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="first", auto_pad="SAME_UPPER", kernel_shape=[3, 3])
    path = write(tmp_path / "auto.onnx", [node], {"w": np.zeros((1, 1, 3, 3), np.float32)}, [1, 1, 4, 4])
    with pytest.raises(ValueError, match="'auto.onnx' pads automatically in first"):
        lib.OnnxModule(path)


def test_opencvs_recogniser_has_no_gradient(pack):
    recogniser = pack.submodule("model_loaders.faces_opencv").SFaceRecogniser(None, 112, None)
    with pytest.raises(ValueError, match="no gradients; choose a recogniser of ArcFace's kind"):
        recogniser.with_gradient()
