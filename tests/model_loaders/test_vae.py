"""The Wan 2.1 VAE, and what is none."""

import pytest
import safetensors.torch
import torch

from support import tiny_models


@pytest.fixture(scope="module")
def load_vae(pack):
    return pack.submodule("model_loaders.vae").load_vae


def test_encode_and_decode_like_cores_loader(load_vae, tiny_files):
    import comfy.sd

    vae = load_vae(tiny_files.vae)
    weights, metadata = safetensors.torch.load_file(tiny_files.vae), {}
    core = comfy.sd.VAE(sd=weights, metadata=metadata)
    pixels = torch.rand((5, 32, 48, 3), generator=torch.Generator().manual_seed(0))
    latent = vae.encode(pixels)
    assert latent.shape == (1, 16, 2, 4, 6)
    assert torch.equal(latent, core.encode(pixels))
    frames = vae.decode(latent)
    assert frames.shape == (1, 5, 32, 48, 3) and torch.equal(frames, core.decode(latent))


def test_the_full_size_layout_is_that_of_the_release(pack, tmp_path):
    """wan_2.1_vae.safetensors: 194 tensors, 126 892 531 parameters."""
    shapes = tiny_models.vae_shapes(96)
    header = pack.submodule("model_loaders.files").read_header(
        tiny_models.write_header(tmp_path / "v.safetensors", shapes)
    )
    assert len(header.tensors) == 194 and header.parameters == 126892531
    pack.submodule("model_loaders.vae").check(header)


def test_core_can_make_another_copy(load_vae, tiny_files):
    factory, arguments = load_vae(tiny_files.vae).patcher.cached_patcher_init
    copy = factory(*arguments)
    assert copy.model.state_dict().keys() == load_vae(tiny_files.vae).first_stage_model.state_dict().keys()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("decoder.middle.2.residual.0.gamma"), "1 of its .* tensors are missing"),
        (lambda w: w.update({"conv2.weight": torch.zeros(8, 8, 1, 1, 1)}), "conv2.weight has the shape"),
        (lambda w: w.update({"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.zeros(1)}), "Wan 2.2 VAE"),
        (lambda w: w.pop("encoder.conv1.weight"), "holds a VAE, not a Wan 2.1 VAE"),
    ],
)
def test_other_files_are_refused(load_vae, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        load_vae(tiny_models.write_vae(tmp_path / "v.safetensors", edit=edit))


def test_a_video_model_is_no_vae(load_vae, tiny_files):
    with pytest.raises(ValueError, match="'tiny_dit.safetensors' holds .*not a Wan 2.1 VAE"):
        load_vae(tiny_files.dit)
