"""The SkyReels-V3 rule: always four references, the missing ones zero for the model."""

import comfy.samplers
import torch


def test_missing_references_are_zeros_behind_the_real_ones(pack, model_of, make_shot):
    shot = make_shot(model=model_of("skyreels-v3"))
    ours = pack.submodule("idcrafter.conditioning.skyreels_v3").condition(shot)
    plain = pack.submodule("idcrafter.conditioning.phantom").condition(shot)
    for branch in ("positive", "negative_text", "negative_images"):
        latents = getattr(ours, branch)[0][1]["time_dim_concat"]
        assert latents.shape == (1, 16, 4, 6, 8)
        assert torch.equal(latents[:, :, :2], getattr(plain, branch)[0][1]["time_dim_concat"])
        assert shot.model.model.process_latent_in(latents)[:, :, 2:].abs().max() < 1e-6
    assert ours.positive[0][1]["idcrafter_reference_names"] == ["Ada", "Bo", None, None]
    assert ours.references.shape[0] == 2 and len(ours.used) == 2


def test_four_need_no_padding(pack, make_shot, cast_of):
    ours = pack.submodule("idcrafter.conditioning.skyreels_v3").condition(make_shot(cast=cast_of(2, 2)))
    latents = ours.positive[0][1]["time_dim_concat"]
    assert latents.shape[2] == 4 and latents.std(dim=(0, 1, 3, 4)).min() > 0.01


def test_padding_counts_for_the_model(pack, model_of, make_shot, denoised):
    """Zeros are tokens that are attended to, so leaving them out is another video."""
    model, videos = model_of("skyreels-v3"), []
    for rule in ("skyreels_v3", "phantom"):
        conditioned = pack.submodule(f"idcrafter.conditioning.{rule}").condition(make_shot(model=model))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioned.positive, conditioned.negative_text)
        videos.append(denoised(guider, conditioned.latent))
    assert videos[0].shape == (1, 16, 3, 6, 8)
    assert (videos[0] - videos[1]).abs().max() > 1e-4
