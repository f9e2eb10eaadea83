"""The key of a run changes with everything that shapes a take, and with nothing else."""

import copy

import pytest
import torch

GRAPH = {
    "1": {"class_type": "Load", "inputs": {"file": "a.safetensors"}},
    "2": {"class_type": "Text", "inputs": {"clip": ["1", 1], "text": "hello"}},
    "3": {"class_type": "Seed", "inputs": {"value": 5}},
    "4": {"class_type": "Sample", "inputs": {"model": ["1", 0], "positive": ["2", 0], "seed": ["3", 0], "takes": 4}},
    "5": {"class_type": "Unrelated", "inputs": {"takes": ["4", 0]}},
}
IGNORE = frozenset({"seed", "takes"})


@pytest.fixture(scope="module")
def keys(pack):
    return pack.submodule("idcrafter.sampling.fingerprint")


@pytest.fixture(scope="module")
def signature(keys):
    return lambda graph, node="4": keys.graph_signature(graph.__getitem__, node, IGNORE)


def changed(edit):
    graph = copy.deepcopy(GRAPH)
    edit(graph)
    return graph


def test_the_number_of_takes_and_the_seed_do_not_count(signature):
    def edit(graph):
        graph["4"]["inputs"]["takes"] = 8
        graph["3"]["inputs"]["value"] = 6
        graph["5"]["inputs"]["more"] = 1

    assert signature(changed(edit)) == signature(GRAPH)


def test_node_ids_do_not_count(signature):
    names = {"1": "30", "2": "20", "3": "10", "4": "7", "5": "x"}
    renamed = {
        names[i]: {
            "class_type": node["class_type"],
            "inputs": {k: [names[v[0]], v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()},
        }
        for i, node in GRAPH.items()
    }
    assert signature(renamed, "7") == signature(GRAPH)


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g["2"]["inputs"].update(text="hullo"),
        lambda g: g["1"]["inputs"].update(file="b.safetensors"),
        lambda g: g["1"].update(class_type="Load2"),
        lambda g: g["4"]["inputs"].update(positive=["2", 1]),
        lambda g: g["4"]["inputs"].update(cfg=3.0),
        lambda g: g["2"]["inputs"].update(takes=1),  # only the sampling node's own seed and takes are ignored
    ],
)
def test_everything_upstream_counts(signature, edit):
    assert signature(changed(edit)) != signature(GRAPH)


def test_strings_of_the_graph(keys, signature):
    assert set(keys.graph_strings(signature(GRAPH))) == {"a.safetensors", "hello"}


@pytest.fixture
def key_of(keys, pack, stack, shot):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider

    def key(
        model=stack.model, sampler=shot.sampler, sigmas=shot.sigmas, latent=shot.latent, graph=(), files=(), **inputs
    ):
        inputs = {"positive": shot.positive, "negative_text": shot.negative_text, **inputs}
        return keys.run_key(make(model, **inputs), sampler, sigmas, latent, list(graph), files)

    return key


def test_the_key_is_stable(key_of):
    """Conditioning gets new random uuids every time; they must not reach the key."""
    assert key_of() == key_of()
    assert len(key_of()) == 32 and int(key_of(), 16) >= 0


def test_each_ingredient_changes_the_key(key_of, stack, shot):
    import comfy.samplers

    def scaled(conditioning, name):
        values = {**conditioning[0][1], name: conditioning[0][1][name] * 1.001}
        return [[conditioning[0][0], values]]

    latent = {"samples": shot.latent["samples"] + 1e-3}
    variants = [
        key_of(),
        key_of(sampler=comfy.samplers.sampler_object("heun")),
        key_of(sampler=comfy.samplers.ksampler("euler", {"s_noise": 1.1})),
        key_of(sigmas=shot.sigmas * 0.99),
        key_of(sigmas=shot.sigmas[1:]),
        key_of(latent=latent),
        key_of(latent={**shot.latent, "noise_mask": torch.ones((1, 1, 2, 6, 8))}),
        key_of(positive=scaled(shot.positive, "time_dim_concat")),
        key_of(positive=stack.encode("something else")),
        key_of(negative_text=None),
        key_of(negative_images=shot.negative_images),
        key_of(cfg_text=3.0),
        key_of(graph=[1]),
        key_of(files=[("lora.safetensors", (1, 2))]),
        key_of(files=[("lora.safetensors", (1, 3))]),
    ]
    assert len(set(variants)) == len(variants)


def test_a_missing_file_has_no_stamp(keys, tmp_path):
    path = tmp_path / "f"
    assert keys.file_stamp(str(path)) is None and keys.file_stamp("\0") is None
    path.write_text("abc")
    assert keys.file_stamp(str(path))[0] == 3
