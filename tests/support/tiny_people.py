"""A tiny identity adapter for each family of tiny models, and people in a shot's conditioning."""

import pytest
import torch

from . import tiny_families
from .composition import noise

TOKENS, TOKEN_WIDTH = 4, 24
SMALL = {
    "every": 1,
    "id_width": 8,
    "visual_width": 8,
    "scales": 1,
    "extractor_width": 8,
    "extractor_depth": 1,
    "extractor_heads": 2,
    "extractor_head_width": 4,
    "tokens": TOKENS,
    "id_tokens": 2,
    "token_width": TOKEN_WIDTH,
    "heads": 2,
    "head_width": 8,
    "hierarchy": 2,
    "hierarchy_heads": 2,
    "context_width": 32,
}


@pytest.fixture(scope="module")
def model_of(pack, tmp_path_factory):
    load = pack.submodule("model_loaders.video_dit").load_video_dit
    loaded = {}

    def model_of(family):
        if family not in loaded:
            path = tiny_families.write(tmp_path_factory.mktemp("identity") / family / f"{family}.safetensors", family)
            with torch.inference_mode():
                loaded[family] = load(path)
        return loaded[family]

    return model_of


@pytest.fixture
def adapter_of(pack, model_of):
    """A ModelPatcher of an adapter with random weights that fits the family's tiny model."""
    import comfy.model_patcher
    import comfy.ops

    modules = pack.submodule("idcrafter.modules.identity_adapter")

    def adapter_of(family, seed=0, **changes):
        dit = model_of(family).get_model_object("diffusion_model")
        config = modules.AdapterConfig(
            "cogvideox" if family.startswith("cog") else "wan",
            dit.dim,
            len(dit.blocks),
            **{**SMALL, **changes},
        )
        adapter = modules.IdentityAdapter(config, comfy.ops.manual_cast).eval().requires_grad_(False)
        modules.initialise(adapter, seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return comfy.model_patcher.ModelPatcher(adapter, torch.device("cpu"), torch.device("cpu"))

    return adapter_of


def people(lib, shot, key, subjects=2, order=None, padding=(0, 0)):
    order = list(order or range(subjects))
    tokens = torch.zeros(subjects + padding[0], 2 + padding[1], TOKENS, TOKEN_WIDTH)
    photos = torch.zeros(subjects + padding[0], 2 + padding[1])
    for place, subject in enumerate(order):
        count = 1 + subject % 2
        tokens[place, :count] = noise(count, TOKENS, TOKEN_WIDTH, seed=50 + subject)
        photos[place, :count] = 1
    positive = lib.attach_subjects(shot.positive, key, tokens, photos)
    negative = lib.attach_subjects(shot.negative, key, torch.zeros_like(tokens), torch.zeros_like(photos))
    return positive, negative
