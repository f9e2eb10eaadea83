"""The shipped nano weights: listed and loaded by ComfyUI's own nodes, and doing what the card says."""

import itertools
import json

import numpy as np
import pytest
import torch

from idcrafter.nano import install, world
from idcrafter.nano.recipes import text

SHARE_OF_MEGABYTES = 73


@pytest.fixture(scope="module")
def clip():
    """A clip of two sealed identities."""
    cast = tuple(world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("sealed"), 2))
    return world.render_clip(world.sample_clip_spec(cast, 11, ("left", "right")))


@pytest.fixture(scope="module")
def bundle(pack):
    return pack.execute("IDCrafterLoadBundle", bundle="nano.json")


def test_they_are_small_and_have_a_card():
    total = sum(path.stat().st_size for path in install.WEIGHTS.rglob("*") if path.is_file())
    assert total <= SHARE_OF_MEGABYTES * 2**20
    card = (install.WEIGHTS / "README.md").read_text("utf-8")
    assert all(word in card for word in ("Licence: Apache-2.0", "steps", "sealed", "psnr", "python -m idcrafter.nano"))


def test_the_manifest_has_the_digests_of_the_files():
    manifest = json.loads((install.WEIGHTS / "bundles" / "nano.json").read_text("utf-8"))
    for role in ("model", "vae", "text_encoder"):
        entry = manifest[role]
        assert install._digest(install.WEIGHTS / entry["folder"] / entry["file"]) == entry["sha256"]


def test_cores_loaders_list_and_load_the_model_and_the_vae(pack, clip):
    import comfy.model_base
    import folder_paths

    kind, name = install.FILES["model"]
    assert name in folder_paths.get_filename_list(kind)
    model = pack.execute("UNETLoader", unet_name=name, weight_dtype="default")[0]
    assert isinstance(model.model, comfy.model_base.WAN21)

    kind, name = install.FILES["vae"]
    assert name in folder_paths.get_filename_list(kind)
    vae = pack.execute("VAELoader", vae_name=name)[0]
    frames = torch.from_numpy(clip.frames).float() / 255
    latent = vae.encode(frames)
    assert latent.shape == (1, 16, 3, 8, 12)
    decoded = vae.decode(latent)[0]
    assert decoded.shape == frames.shape
    psnr = -10 * torch.log10((decoded - frames).pow(2).mean())
    assert psnr > 20


def test_latents_have_the_statistics_that_core_expects_of_wan(bundle):
    from comfy.latent_formats import Wan21

    vae = bundle[2]
    cast = [world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("sealed"), 8)]
    latents = [
        Wan21().process_in(
            vae.encode(torch.from_numpy(world.render_clip(world.sample_clip_spec((a, b), i)).frames).float() / 255)
        )
        for i, (a, b) in enumerate(itertools.pairwise(cast))
    ]
    latents = torch.cat(latents)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.5
    assert latents.std((0, 2, 3, 4)).sub(1).abs().max() < 0.4


def test_the_clip_node_encodes_as_the_dit_was_trained(bundle):
    prompt = "The first is a puppet in a red jumper. The second is a puppet. The first is on the left and nods."
    tokenizer, encoder = text.load(install.WEIGHTS / "text_encoders" / install.FILES["text_encoder"][1])
    wanted = text.encode(encoder, tokenizer([prompt]))
    clip = bundle[1]
    found = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]
    assert found.shape == wanted.shape == (1, text.LENGTH, text.CONFIG["d_model"])
    # core may run the encoder in half precision
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_insightface_itself_finds_both_faces_and_tells_them_apart(clip):
    from insightface.app import FaceAnalysis

    kind, name, _ = install.PACK
    app = FaceAnalysis(name=str(install.WEIGHTS / kind / name), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(128, 128))
    frame = np.ascontiguousarray(clip.frames[4][..., ::-1])
    faces = app.get(frame)
    assert len(faces) == 2
    for who, truth in zip(clip.spec.identities, clip.faces[4], strict=True):
        portrait, _ = world.render_photo(who, 5, 128)
        reference = app.get(np.ascontiguousarray(portrait[..., ::-1]))[0].normed_embedding
        nearest = max(faces, key=lambda face: face.normed_embedding @ reference)
        assert np.abs(nearest.kps - truth.landmarks).max() < 4
        assert nearest.normed_embedding @ reference > 0.5


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_the_dit_uses_its_references_and_their_order(bundle, pack, sides):
    """Denoising a sealed clip goes best with its own references in cast order, wherever the prompt puts each."""
    import comfy.sample
    import comfy.samplers

    cast = tuple(world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("sealed"), 2))
    clip = world.render_clip(world.sample_clip_spec(cast, 11, sides))
    model, encoder, vae, _ = bundle
    frames = torch.from_numpy(clip.frames).float() / 255
    latent = vae.encode(frames)
    prompt = encoder.encode_from_tokens_scheduled(encoder.tokenize(text.caption(clip.spec, 0)[0]))
    empty = encoder.encode_from_tokens_scheduled(encoder.tokenize(""))
    photos = [torch.from_numpy(world.render_photo(who, 21, 128)[0]).float() / 255 for who in clip.spec.identities]
    stranger = world.sample_identity(next(world.numbers_of_split("sealed", 5000)))
    strangers = [torch.from_numpy(world.render_photo(stranger, 21, 128)[0]).float() / 255] * 2

    def error(references):
        subjects = {
            f"subject{i}": pack.execute(
                "IDCrafterSubject", name=f"s{i}", kind="person", description="", images=photo[None]
            )[0]
            for i, photo in enumerate(references)
        }
        cast = pack.execute("IDCrafterCast", subjects=subjects)[0]
        positive, *_ = pack.execute(
            "IDCrafterCastToVideo", positive=prompt, negative=empty, vae=vae, cast=cast,
            width=96, height=64, length=9, rule="auto",
        )  # fmt: skip
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, positive)
        guider.set_cfg(1.0)
        # one Euler step from sigma 0.75 to 0 gives the model's x0
        noise = comfy.sample.prepare_noise(latent, 3)
        sampler = comfy.samplers.sampler_object("euler")
        x0 = guider.sample(noise, latent, sampler, torch.tensor([0.75, 0.0]), disable_pbar=True)
        return (x0 - latent).pow(2).mean().item()

    own = error(photos)
    assert error(photos[::-1]) > 1.05 * own
    assert error(strangers) > 1.05 * own
