"""Fixtures: a tiny model, text encoder and VAE, live, and a cast of two. Imported by the conftest of a test folder."""

from types import SimpleNamespace

import pytest
import torch

from . import tiny_models


@pytest.fixture(autouse=True)
def inference_mode():
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def tiny_files(pack, tmp_path_factory):
    """Paths of a tiny model, vae and text encoder, in model folders of their own."""
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        root=root,
        dit=tiny_models.write_dit(root / "diffusion_models" / "tiny_dit.safetensors"),
        vae=tiny_models.write_vae(root / "vae" / "tiny_vae.safetensors"),
        text_encoder=tiny_models.write_umt5(root / "text_encoders" / "tiny_umt5.safetensors"),
    )


@pytest.fixture(scope="session")
def stack(pack, tiny_files):
    """model, clip, vae as the nodes get them; `encode(text)` gives CONDITIONING."""
    with torch.inference_mode():
        clip = pack.submodule("model_loaders.text_encoder").load_text_encoder(tiny_files.text_encoder)
        return SimpleNamespace(
            model=pack.submodule("model_loaders.video_dit").load_video_dit(tiny_files.dit),
            clip=clip,
            vae=pack.submodule("model_loaders.vae").load_vae(tiny_files.vae),
            encode=lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)),
        )


@pytest.fixture(scope="session")
def cast(pack):
    """Two subjects with one photo each, of different shapes and colours."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    generator = torch.Generator().manual_seed(5)
    photos = [torch.rand((1, 48, 40, 3), generator=generator), torch.rand((1, 40, 64, 3), generator=generator) ** 3]
    return subjects.make_cast(
        [
            subjects.make_subject("Ada", "person", "a teal puppet with red hair", photos[0]),
            subjects.make_subject("Bo", "person", "a brown dog", photos[1]),
        ]
    )


@pytest.fixture(scope="session")
def shot(pack, stack, cast):
    """The cast's conditioning for 64x48 px, 5 frames: positive, negative_text, negative_images, latent, sigmas."""
    import comfy.samplers

    with torch.inference_mode():
        shot = pack.submodule("idcrafter.conditioning.shot").Shot(
            stack.encode("The first waves."), stack.encode(""), stack.vae, cast, 64, 48, 5
        )
        conditioned = pack.submodule("idcrafter.conditioning.phantom").condition(shot)
        sampling = stack.model.get_model_object("model_sampling")
        return SimpleNamespace(
            positive=conditioned.positive,
            negative_text=conditioned.negative_text,
            negative_images=conditioned.negative_images,
            latent=conditioned.latent,
            references=conditioned.references,
            sigmas=comfy.samplers.calculate_sigmas(sampling, "simple", 4),
            sampler=comfy.samplers.sampler_object("euler"),
        )
