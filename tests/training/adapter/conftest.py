"""Fixtures: the data set encoded once by tiny models."""

from types import SimpleNamespace

import pytest
import torch

from support.tiny_adapters import TinyAnalyzer

SIZE = {"width": 48, "height": 32, "frames": 5}


@pytest.fixture(scope="session")
def encoder_of(pack, stack):
    """An Encoder of the tiny models, with changes."""
    encode = pack.submodule("idcrafter.training.adapter.encode")
    rules = pack.submodule("idcrafter.conditioning.rules").RULES

    def encoder_of(rule="phantom", **changes):
        values = {
            "model": stack.model, "vae": stack.vae, "clip": stack.clip, "analyzer": TinyAnalyzer(),
            "rule": rules.get(rule), "wording": "descriptions", "crop": 16, **SIZE, **changes,
        }  # fmt: skip
        return encode.Encoder(**values)

    return encoder_of


@pytest.fixture(scope="session")
def encoded(pack, encoder_of, clips, tmp_path_factory):
    """dataset, encoder, folder and paths of the encoded data set; not to be changed."""
    dataset = pack.submodule("idcrafter.training.dataset.reader").read_dataset(clips)
    encode = pack.submodule("idcrafter.training.adapter.encode")
    folder, encoder, told = tmp_path_factory.mktemp("encoded"), encoder_of(), []
    with torch.inference_mode(False):
        paths = encode.encode_dataset(dataset, encoder, folder, lambda *done: told.append(done))
    return SimpleNamespace(dataset=dataset, encoder=encoder, folder=folder, paths=paths, told=told)
