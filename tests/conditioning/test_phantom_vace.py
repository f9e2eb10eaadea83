"""Phantom's references in a model with VACE's blocks."""

import comfy.samplers
import pytest
import torch


@pytest.fixture(scope="module")
def both(pack):
    return pack.submodule("idcrafter.conditioning.phantom_vace")


def sample(model, out, denoised, **values):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*([[c[0][0], {**c[0][1], **values}]] for c in (out.positive, out.negative_text)))
    return denoised(guider, out.latent)


def test_references_behind_and_control_beside_the_video(both, pack, make_shot, model_of):
    video = torch.rand((9, 48, 64, 3), generator=torch.Generator().manual_seed(1))
    shot = make_shot(model=model_of("vace"), control_video=video, strength=0.8)
    out = both.condition(shot)
    phantom = pack.submodule("idcrafter.conditioning.phantom").condition(shot)
    vace = pack.submodule("idcrafter.conditioning.vace").condition(shot)
    for branch in ("positive", "negative_text", "negative_images"):
        values = getattr(out, branch)[0][1]
        assert torch.equal(values["time_dim_concat"], getattr(phantom, branch)[0][1]["time_dim_concat"])
        frames, mask = values["vace_frames"][0], values["vace_mask"][0]
        assert frames.shape == (1, 32, 3 + 2, 6, 8) and mask.shape == (1, 64, 3 + 2, 6, 8)
        assert torch.equal(frames[:, :, :3], vace.positive[0][1]["vace_frames"][0][:, :, 2:])
        assert torch.equal(mask[:, :, :3], vace.positive[0][1]["vace_mask"][0][:, :, 2:])
        weight = values["vace_strength"][0]
        assert weight.shape == (1, 5 * 12, 1) and (weight[:, :36] == 0.8).all() and not weight[:, 36:].any()
    assert out.trim == 0 and torch.equal(out.latent["samples"], phantom.latent["samples"])


def test_the_model_takes_both(both, make_shot, model_of, denoised):
    model = model_of("vace")
    out = both.condition(make_shot(model=model))
    video = sample(model, out, denoised)
    assert video.shape == (1, 16, 3, 6, 8)
    swapped = out.positive[0][1]["time_dim_concat"].flip(2)
    assert (video - sample(model, out, denoised, time_dim_concat=swapped)).abs().max() > 1e-4
    other = [out.positive[0][1]["vace_frames"][0].flip(3)]
    assert (video - sample(model, out, denoised, vace_frames=other)).abs().max() > 1e-4


def test_strength_is_cores_number_where_there_is_a_video(both, make_shot, model_of, denoised):
    """A weight of one everywhere is core's strength 1.0; with zero on all tokens VACE adds nothing."""
    model = model_of("vace")
    out = both.condition(make_shot(model=model))
    weight = out.positive[0][1]["vace_strength"][0]
    ones = sample(model, out, denoised, vace_strength=[torch.ones_like(weight)])
    assert torch.equal(ones, sample(model, out, denoised, vace_strength=[1.0]))
    none = sample(model, out, denoised, vace_strength=[torch.zeros_like(weight)])
    assert torch.equal(none, sample(model, out, denoised, vace_strength=[0.0]))
    assert (none - ones).abs().max() > 1e-4


def test_three_branches_guide(both, pack, make_shot, model_of, denoised):
    model = model_of("vace")
    out = both.condition(make_shot(model=model, strength=0.5))
    guider = pack.submodule("idcrafter.sampling.guiders").make_guider(
        model, out.positive, out.negative_text, out.negative_images, 7.5, 5.0
    )
    assert torch.isfinite(denoised(guider, out.latent)).all()
