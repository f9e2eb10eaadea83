"""Aligners from files: this pack's, and BindWeave's projector out of its video model, in every name it has."""

import logging

import pytest
import safetensors.torch
import torch
from torch import nn

from support import tiny_adapters, tiny_aligners, tiny_models

IN, OUT = 10, 6


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.aligner")


@pytest.fixture(scope="module")
def nets(pack):
    return pack.submodule("idcrafter.modules.aligner")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


KEYS = torch.tensor([[True] * 4 + [False]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_aligner_gives_what_its_weights_give(loader, nets, tmp_path, dtype, caplog):
    config = tiny_aligners.config(IN, OUT, reading={"layer": -2, "use": "append"})

    def cast(weights):
        for name in weights:
            weights[name] = weights[name].to(dtype)

    path = tiny_aligners.write_own(tmp_path / "a.safetensors", config, 3, cast, licence="MIT", vlm="Qwen-tiny")
    with caplog.at_level(logging.INFO):
        aligner = loader.load_aligner(path)
    net = nets.Aligner(nets.AlignerConfig.loads(config.dumps()), nn)
    net.load_state_dict({name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()})
    states = noise(1, 5, IN)
    tokens, keys = aligner.tokens(states, KEYS)
    torch.testing.assert_close(tokens, net(states, KEYS)[0], rtol=1e-5, atol=1e-5)
    assert tokens.shape == (1, 5, OUT) and keys.all() and tokens.dtype == torch.float32
    assert (aligner.in_width, aligner.out_width, aligner.reading.layer) == (IN, OUT, -2)
    assert aligner.facts["licence"] == "MIT" and aligner.facts["vlm"] == "Qwen-tiny"
    told = "hidden states of width 10 to 5 tokens of width 6, layer -2, use: append, trained with Qwen-tiny"
    assert told in aligner.describe() and told in caplog.text


def test_what_is_saved_is_what_is_loaded(loader, nets, tmp_path):
    net = nets.Aligner(nets.AlignerConfig(IN, OUT, **tiny_aligners.SIZES, reading=nets.Reading(use="prepend")), nn)
    nets.initialise(net, 6)
    path = loader.save_aligner(net, tmp_path / "new.safetensors", "Apache-2.0", vlm="nano")
    assert [each.name for each in tmp_path.iterdir()] == ["new.safetensors"]
    aligner = loader.load_aligner(path)
    assert aligner.patcher.model.config == net.config and aligner.facts["vlm"] == "nano"
    states = noise(1, 5, IN)
    torch.testing.assert_close(aligner.tokens(states, KEYS)[0], net(states, KEYS)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", tiny_aligners.BINDWEAVE)
def test_bindweaves_projector_is_read_out_of_its_video_model(loader, nets, tmp_path, layout):
    aligner = loader.load_aligner(tiny_aligners.write_bindweave(tmp_path / "BindWeave", IN, OUT, layout))
    held = tiny_aligners.projector_weights(IN, OUT)
    states = noise(1, 5, IN)
    hidden = nn.functional.gelu(states @ held["1.weight"].T + held["1.bias"], approximate="tanh")
    wanted = hidden @ held["2.weight"].T + held["2.bias"]
    tokens, keys = aligner.tokens(states, KEYS)
    torch.testing.assert_close(tokens[KEYS], wanted[KEYS], rtol=1e-5, atol=1e-5)
    assert torch.equal(keys, KEYS) and not tokens[~KEYS].any()
    assert aligner.reading == nets.BINDWEAVE and aligner.facts["layout"] == "bindweave"
    assert aligner.facts["size"] == OUT * (IN + OUT + 2) and aligner.facts["vlm"] == "Qwen2.5-VL-7B-Instruct"
    assert "Apache-2.0" in aligner.describe()


@pytest.mark.parametrize("layout", tiny_aligners.BINDWEAVE)
def test_the_released_sizes_pass_the_check_without_a_weight_read(loader, nets, tmp_path, layout, monkeypatch):
    """A file of the released shapes, sparse on the disk; its values are zeros."""
    first, second = loader.BINDWEAVE_NAMES[layout]
    assert (first, second) == tiny_aligners.BINDWEAVE[layout]
    table = {
        f"{first}.weight": (4096, 3584),
        f"{first}.bias": (4096,),
        f"{second}.weight": (4096, 4096),
        f"{second}.bias": (4096,),
        "patch_embedding.weight": (5120, 36, 1, 2, 2),
    }
    path = tiny_models.write_header(tmp_path / "bindweave.safetensors", table)
    seen = {}

    def instead(net, weights, *rest):
        seen.update({name: (tuple(w.shape), w.dtype) for name, w in weights.items()})
        assert {name: tuple(t.shape) for name, t in net.state_dict().items()} == {n: s for n, (s, _) in seen.items()}
        return "loaded"

    monkeypatch.setattr(loader, "_finish", instead)
    monkeypatch.setattr(loader, "_read", lambda header, names: {name: header.tensors[name] for name in names})
    assert loader.load_aligner(path) == "loaded"
    assert seen == {name: (tuple(shape), torch.bfloat16) for name, shape in nets.projector_layout().items()}


def test_states_of_another_width(loader, tmp_path):
    own = loader.load_aligner(tiny_aligners.write_own(tmp_path / "a.safetensors", tiny_aligners.config(IN, OUT)))
    with pytest.raises(ValueError, match="reads hidden states of width 10, but the VLM's are 8 wide; connect the VLM"):
        own.tokens(noise(1, 5, 8), KEYS)
    released = loader.load_aligner(tiny_aligners.write_bindweave(tmp_path / "b", IN, OUT))
    with pytest.raises(ValueError, match="trained with \\(Qwen2.5-VL-7B-Instruct\\)"):
        released.tokens(noise(1, 5, 8), KEYS)


def drop(name):
    return lambda weights: weights.pop(name)


def put(name, tensor):
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("layers.1.attention.to_q.weight"), "1 of its .* tensors are missing .*layers.1.attention.to_q.weight"),
        (put("proj_out.weight", torch.zeros(6, 11)), r"proj_out.weight has the shape \[6, 11\] instead of \[6, 12\]"),
        (put("layers.2.attention.to_q.weight", torch.zeros(2)), "has 1 tensors that such a model does not have"),
        (put("latents", torch.full((5, 12), torch.inf)), "holds NaN or infinite weights .*latents"),
    ],
)
def test_damaged_aligners(loader, tmp_path, edit, message):
    path = tiny_aligners.write_own(tmp_path / "a.safetensors", tiny_aligners.config(IN, OUT), edit=edit)
    with pytest.raises(ValueError, match=message):
        loader.load_aligner(path)


FIRST, SECOND = tiny_aligners.BINDWEAVE["release"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop(f"{SECOND}.bias"), "BindWeave's projector, but 1 of its 4 tensors are missing .*linear_2.bias"),
        (put(f"{SECOND}.weight", torch.zeros(6, 5)), r"linear_2.weight has the shape \[6, 5\] instead of \[6, 6\]"),
        (put(f"{FIRST}.weight", torch.zeros(6)), r"first layer of shape \[6\]"),
        (put(f"{FIRST}.weight", torch.zeros(6, 10).to(torch.float8_e4m3fn)), "is quantised, and its scales"),
        (put(f"{FIRST}.bias", torch.full((6,), torch.nan)), "holds NaN or infinite weights .*linear_1.bias"),
    ],
)
def test_damaged_releases(loader, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        loader.load_aligner(tiny_aligners.write_bindweave(tmp_path / "b", IN, OUT, edit=edit))


def test_files_that_are_something_else(loader, tmp_path):
    adapter = tiny_adapters.write_own(
        tmp_path / "i.safetensors", tiny_adapters.config("wan", 32, 2, **tiny_adapters.OWN)
    )
    with pytest.raises(
        ValueError, match="'i.safetensors' holds no aligner: it has an identity adapter, .* Load Adapter"
    ):
        loader.load_aligner(adapter)
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="neither the metadata 'idcrafter_aligner' of this pack's files nor BindWeave"):
        loader.load_aligner(tmp_path / "x.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "y.safetensors", {"idcrafter_aligner": "{}"})
    with pytest.raises(ValueError, match="'y.safetensors': this is not the description of an aligner"):
        loader.load_aligner(tmp_path / "y.safetensors")
