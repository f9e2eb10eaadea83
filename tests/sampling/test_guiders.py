"""Guidance is core's, with the released formula."""

import pytest
import torch


@pytest.fixture(scope="module")
def make_guider(pack):
    return pack.submodule("idcrafter.sampling.guiders").make_guider


def sample(guider, shot):
    noise = torch.randn(shot.latent["samples"].shape, generator=torch.Generator().manual_seed(0))
    return guider.sample(noise, shot.latent["samples"], shot.sampler, shot.sigmas, seed=0)


def test_what_is_connected_decides(make_guider, stack, shot):
    from comfy.samplers import CFGGuider
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

    assert type(make_guider(stack.model, shot.positive)) is Guider_Basic
    assert type(make_guider(stack.model, shot.positive, shot.negative_text)) is CFGGuider
    assert type(make_guider(stack.model, shot.positive, shot.negative_text, shot.negative_images)) is Guider_DualCFG
    with pytest.raises(ValueError, match="negative_text is not"):
        make_guider(stack.model, shot.positive, negative_images=shot.negative_images)


def test_one_step_follows_the_released_formula(make_guider, stack, shot):
    """neg + g_img * (pos_i - neg) + g_text * (pos_it - pos_i), on predictions of the plain model."""
    from comfy_extras.nodes_custom_sampler import Guider_Basic

    one_step = type(shot)(**{**vars(shot), "sigmas": shot.sigmas[[0, -1]]})

    def branch(conditioning):
        guider = Guider_Basic(stack.model)
        guider.set_conds(conditioning)
        return sample(guider, one_step)

    guided = sample(
        make_guider(stack.model, shot.positive, shot.negative_text, shot.negative_images, 7.5, 5.0), one_step
    )
    # From sigma 1 to 0 in one Euler step the sample is the prediction, and process_latent_out is affine, so the formula
    # holds for latents as well.
    neg, pos_i, pos_it = branch(shot.negative_images), branch(shot.negative_text), branch(shot.positive)
    assert torch.allclose(guided, neg + 5.0 * (pos_i - neg) + 7.5 * (pos_it - pos_i), atol=1e-4)
    assert (guided - pos_it).abs().max() > 1e-2
    # Scales of 1 leave the prompt with the references.
    plain = make_guider(stack.model, shot.positive, shot.negative_text, shot.negative_images, 1.0, 1.0)
    assert torch.allclose(sample(plain, one_step), pos_it, atol=1e-5)


def test_equals_cores_dual_cfg_node(make_guider, stack, shot):
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    node = DualCFGGuider.execute(
        stack.model, shot.positive, shot.negative_text, shot.negative_images, 6.0, 4.0, "regular"
    ).args[0]
    ours = make_guider(stack.model, shot.positive, shot.negative_text, shot.negative_images, 6.0, 4.0)
    assert torch.equal(sample(ours, shot), sample(node, shot))
