"""A LoRA beside the layers is the one that loaders put into the weights."""

import pytest
import torch

from support import tiny_training
from support.composition import Shot

FAMILIES = ("phantom", "vace", "cogvideox")


@pytest.fixture
def lora_of(pack):
    def lora_of(model, used=True):
        lora = pack.submodule("idcrafter.training.lora").LoRA(model.model.diffusion_model, 3, 5, alpha=6.0)
        if used:
            with torch.no_grad():
                for up in lora.lora_up:
                    up.copy_(tiny_training.noise(*up.shape, seed=8) * 0.2)
        return lora

    return lora_of


def call(model, family, pack):
    """One call of the MODEL as a sampler makes it, with its patches on the weights."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    batch = tiny_training.batch_for(pack, family)
    with torch.no_grad():
        return model.model.apply_model(
            batch.clean, torch.tensor([0.6, 0.3]), c_crossattn=batch.context, transformer_options={}, **batch.conds
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_its_file_gives_what_it_gave(pack, model_of, lora_of, family):
    import comfy.lora
    import comfy.sd

    model = model_of(family)
    plain = call(model, family, pack)
    lora = lora_of(model)
    with lora.attached(model.model.diffusion_model):
        attached = call(model, family, pack)
    assert not torch.allclose(attached, plain, atol=1e-3)
    tensors = lora.export(torch.float32)
    by_core, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
    assert len(by_core.patches) == len(lora.names)
    torch.testing.assert_close(call(by_core, family, pack), attached, rtol=1e-5, atol=1e-5)
    loaders = pack.submodule("model_loaders.lora")
    found = loaders.convert(tensors, model, "tiny.safetensors")
    assert not found.left_out and f"{len(lora.names)} modules of rank 3" in found.summary
    by_us = loaders.apply_lora(model, found.weights, 1.0)
    torch.testing.assert_close(call(by_us, family, pack), attached, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_one_changes_nothing(pack, model_of, lora_of, family):
    model = model_of(family)
    plain = call(model, family, pack)
    with lora_of(model, used=False).attached(model.model.diffusion_model):
        assert torch.equal(call(model, family, pack), plain)
    used = lora_of(model)
    with used.attached(model.model.diffusion_model):
        pass
    assert torch.equal(call(model, family, pack), plain)


def test_it_adapts_every_attention_and_feed_forward(model_of, lora_of):
    wan, cog = lora_of(model_of("phantom")), lora_of(model_of("cogvideox"))
    assert len(wan.names) == 2 * (4 + 4 + 2) and len(cog.names) == 2 * 6
    assert {name.split(".", 2)[2] for name in cog.names} == {"q", "k", "v", "attn_out", "ff_proj", "ff_out"}


def test_the_same_seed_gives_the_same(model_of, lora_of):
    first, second = (lora_of(model_of("phantom")).export() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["diffusion_model.blocks.0.ffn.0.lora_A.weight"].dtype == torch.float16


def test_a_model_without_such_layers_is_refused(pack):
    with pytest.raises(ValueError, match="has no layer that a LoRA could adapt"):
        pack.submodule("idcrafter.training.lora").LoRA(torch.nn.ReLU(), 1, 0)


def test_a_sampler_uses_the_file(pack, model_of, lora_of):
    """In float16, as it is saved, through core's node."""
    model = model_of("phantom")
    shot = Shot(pack, "phantom")
    lora = lora_of(model)
    with torch.inference_mode():
        plain = shot.ksampler(model)
        out = pack.execute("LoraModelLoader", model=model, lora=lora.export(), strength_model=1.0, bypass=False)
        with_it = shot.ksampler(out[0])
        assert not torch.allclose(with_it, plain, atol=1e-3)
        off = pack.execute("LoraModelLoader", model=model, lora=lora.export(), strength_model=0.0, bypass=False)
        assert torch.equal(shot.ksampler(off[0]), plain)
