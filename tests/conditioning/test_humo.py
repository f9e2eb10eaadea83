"""The HuMo rule against core's node, with several references and with sound."""

import comfy.samplers
import pytest
import torch


@pytest.fixture(scope="module")
def humo(pack):
    return pack.submodule("idcrafter.conditioning.humo")


def test_one_reference_equals_cores_node(humo, make_shot, cast_of, stack):
    from comfy_extras.nodes_wan import WanHuMoImageToVideo

    shot = make_shot(cast=cast_of(1))
    ours = humo.condition(shot)
    core = WanHuMoImageToVideo.execute(
        shot.positive, shot.negative, stack.vae, 64, 48, 9, 1, ref_image=ours.references
    ).args
    assert torch.equal(ours.positive[0][1]["reference_latents"][-1], core[0][0][1]["reference_latents"][-1])
    assert torch.equal(ours.latent["samples"], core[2]["samples"])
    # Core's silence has one frame too many for its own model; ours has the video's.
    assert ours.positive[0][1]["audio_embed"].shape == (1, 3, 8, 5, 1280)
    assert core[0][0][1]["audio_embed"].shape == (1, 4, 8, 5, 1280)


def test_several_references_are_frames_of_one_latent(humo, make_shot, cast_of, stack):
    ours = humo.condition(make_shot(cast=cast_of(2, 1)))
    latent = ours.positive[0][1]["reference_latents"][-1]
    assert latent.shape == (1, 16, 3, 6, 8) and ours.positive[0][1]["idcrafter_reference_names"] == ["S0", "S1", "S0"]
    for i in range(3):
        assert torch.equal(latent[:, :, i : i + 1], stack.vae.encode(ours.references[i : i + 1]))
    assert torch.equal(ours.negative_text[0][1]["reference_latents"][-1], latent)
    assert ours.negative_images[0][1]["reference_latents"][-1].shape == latent.shape


def test_none_is_zero_for_the_small_model_and_grey_for_the_large_one(humo, make_shot, cast_of, stack, model_of):
    """As in the release; core's node has zeros in the VAE's space, which are zero for neither."""

    def without(**changes):
        out = humo.condition(make_shot(cast=cast_of(2), **changes))
        return out.negative_images[0][1]["reference_latents"][-1]

    small = model_of("humo")
    assert small.model.process_latent_in(without(model=small)).abs().max() < 1e-6
    grey = stack.vae.encode(torch.full((9, 48, 64, 3), 0.5))
    for latents in (without(model=model_of("humo", in_dim=36)), without()):
        for frame in range(2):
            assert torch.equal(latents[:, :, frame], grey[:, :, 2])


def test_sound_that_is_there_stays(humo, make_shot, stack):
    """Core's node attaches the sound (without its image), ours the cast."""
    from comfy_extras.nodes_wan import WanHuMoImageToVideo

    generator = torch.Generator().manual_seed(6)
    layers = [torch.randn((1, 40, 1280), generator=generator) for _ in range(33)]
    sound = {"encoded_audio_all_layers": layers, "audio_samples": 640 * 9}
    core = WanHuMoImageToVideo.execute(
        stack.encode("a"), stack.encode(""), stack.vae, 64, 48, 9, 1, audio_encoder_output=sound
    ).args
    ours = humo.condition(make_shot(positive=core[0], negative=core[1]))
    assert torch.equal(ours.positive[0][1]["audio_embed"], core[0][0][1]["audio_embed"])
    assert torch.equal(ours.negative_text[0][1]["audio_embed"], core[1][0][1]["audio_embed"])
    assert ours.positive[0][1]["audio_embed"].shape == (1, 3, 8, 5, 1280) and core[0][0][1]["audio_embed"].any()
    assert ours.positive[0][1]["reference_latents"][-1].shape[2] == 2


@pytest.mark.parametrize("channels", [16, 36])  # 1.7B, 17B
@pytest.mark.parametrize("counts", [(1,), (1, 1), (2, 1)])
def test_the_model_takes_one_two_and_three(humo, make_shot, cast_of, model_of, denoised, counts, channels):
    model = model_of("humo", in_dim=channels)
    out = humo.condition(make_shot(cast=cast_of(*counts), model=model))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(out.positive, out.negative_images)
    video = denoised(guider, out.latent)
    assert video.shape == (1, 16, 3, 6, 8)
    without = comfy.samplers.CFGGuider(model)
    without.set_conds(out.negative_images, out.negative_images)
    assert (video - denoised(without, out.latent)).abs().max() > 1e-4
