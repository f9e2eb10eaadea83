"""The RefAlign rule against the public reference code, and beside what else patches a MODEL."""

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch


@pytest.fixture(scope="module")
def refalign(pack):
    return pack.submodule("idcrafter.conditioning.refalign")


@pytest.mark.parametrize("timestep", [900, 400])
def test_guided_velocity_equals_the_published_code(refalign, published_shot, numbers, velocity, timestep):
    conditioned = refalign.condition(published_shot)
    theirs = numbers("refalign")[f"velocity_{timestep}"]
    assert theirs.std() > 0.5
    assert (velocity(conditioned, conditioned.model, timestep / 1000) - theirs).abs().max() < 1e-4
    # And it is not what the unpatched model gives.
    assert (velocity(conditioned, published_shot.model, timestep / 1000) - theirs).abs().max() > 1e-2


def test_without_guidance_too(refalign, published_shot, numbers, velocity):
    conditioned = refalign.condition(published_shot)
    ours = velocity(conditioned, conditioned.model, 0.9, images=1.0, text=1.0)
    assert (ours - numbers("refalign")["prompt_900"]).abs().max() < 1e-4


def sample(model, conditioned, latent, denoised):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioned.positive, conditioned.negative_text)
    guider.set_cfg(3.0)
    return denoised(guider, latent)


def test_it_is_cores_block_without_the_text_on_references(refalign, make_shot, model_of, denoised):
    """The same video as from core's own blocks when a hook takes their cross-attention from the references."""
    model = model_of("refalign")
    conditioned = refalign.condition(make_shot(model=model))
    ours = sample(conditioned.model, conditioned, conditioned.latent, denoised)
    references = 2 * 3 * 4

    def forget(module, inputs, output):
        return torch.cat([output[:, :-references], torch.zeros_like(output[:, -references:])], dim=1)

    blocks = model.model.diffusion_model.blocks
    handles = [block.cross_attn.register_forward_hook(forget) for block in blocks]
    try:
        cores = sample(model, conditioned, conditioned.latent, denoised)
    finally:
        for handle in handles:
            handle.remove()
    assert (ours - cores).abs().max() < 1e-5
    assert (ours - sample(model, conditioned, conditioned.latent, denoised)).abs().max() > 1e-4


def test_the_given_model_is_not_changed_and_plain_calls_are_its_own(refalign, make_shot, model_of, stack, denoised):
    model = model_of("refalign")
    conditioned = refalign.condition(make_shot(model=model))
    assert "patches_replace" not in model.model_options["transformer_options"]
    plain = comfy.samplers.CFGGuider(model)
    patched = comfy.samplers.CFGGuider(conditioned.model)
    for guider in (plain, patched):
        guider.set_conds(stack.encode("a"), stack.encode(""))
    assert torch.equal(denoised(plain, conditioned.latent), denoised(patched, conditioned.latent))


def test_other_patches_go_on(refalign, make_shot, model_of, denoised):
    """A replacement that sits in the slot already, and patches of the cross-attention, are called once a block."""
    seen = []

    def other(args, extra):
        seen.append(("block", args["transformer_options"]["block_index"]))
        return extra["original_block"](args)

    def after_text(args):
        seen.append(("attn2", args["transformer_options"]["block_index"]))
        return args["x"]

    model = model_of("refalign").clone()
    for i in range(2):
        model.set_model_patch_replace(other, "dit", "double_block", i)
    model.set_model_attn2_patch(after_text)
    shot = make_shot(model=model)
    conditioned = refalign.condition(shot)
    ours = sample(conditioned.model, conditioned, conditioned.latent, denoised)
    assert seen[:4] == [("block", 0), ("attn2", 0), ("block", 1), ("attn2", 1)]
    alone = refalign.condition(make_shot(model=model_of("refalign")))
    assert torch.equal(ours, sample(alone.model, alone, alone.latent, denoised))


def test_twice_is_once(refalign, make_shot, model_of, denoised):
    once = refalign.condition(make_shot(model=model_of("refalign")))
    twice = refalign.condition(make_shot(model=once.model))
    wrappers = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    assert len(twice.model.get_wrappers(wrappers, "idcrafter_refalign")) == 1
    videos = [sample(c.model, c, c.latent, denoised) for c in (once, twice)]
    assert torch.equal(*videos)


def test_another_kind_of_model_is_refused(pack, model_of):
    patch = pack.submodule("idcrafter.backbones.refalign").skip_text_for_references
    with pytest.raises(ValueError, match="VaceWanModel"):
        patch(model_of("vace"))
