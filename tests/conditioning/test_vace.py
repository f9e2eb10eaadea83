"""The VACE rule against diffusers' pipeline and core's node, and its control video."""

import comfy.samplers
import pytest
import torch

from support import tiny_models, vace_pipeline
from support.vace_pipeline import context_of_core as context_of
from support.vace_pipeline import context_of_pipeline as theirs


@pytest.fixture(scope="module")
def vace(pack):
    return pack.submodule("idcrafter.conditioning.vace")


@pytest.fixture(scope="module")
def photos():
    return vace_pipeline.photos()


@pytest.fixture(scope="module")
def control():
    return vace_pipeline.control()


@pytest.fixture
def three(pack, make_shot, photos, model_of):
    """The shot of three subjects, one photo each."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    people = [subjects.make_subject(name, "person", "", photo[None]) for name, photo in zip("ABC", photos, strict=True)]

    def three(**changes):
        return make_shot(cast=subjects.make_cast(people), model=model_of("vace"), **changes)

    return three


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return vace_pipeline.make_pipeline(tiny_models.write_vae(tmp_path_factory.mktemp("diffusers") / "vae.safetensors"))


def test_context_of_three_references_equals_diffusers(vace, three, pipeline, photos):
    """In the cast's order. diffusers puts each reference before the last, so it is given them from last to first."""
    shot = three()
    out = vace.condition(shot)
    expected = theirs(pipeline, photos[::-1])
    assert expected.shape == (1, 96, 3 + 3, 6, 8)
    for conditioning in (out.positive, out.negative_text, out.negative_images):
        assert (context_of(conditioning, shot.model, out.latent) - expected).abs().max() < 1e-4
    in_order = theirs(pipeline, photos)
    assert (in_order[:, :, :3].flip(2) - expected[:, :, :3]).abs().max() < 1e-6
    assert (in_order - expected).abs().max() > 0.1


def test_control_video_and_mask_equal_diffusers(vace, three, pipeline, photos, control):
    video, mask = control
    shot = three(control_video=video, control_masks=mask)
    out = vace.condition(shot)
    expected = theirs(pipeline, photos[::-1], video, mask)
    ours = context_of(out.positive, shot.model, out.latent)
    assert (ours - expected).abs().max() < 1e-4
    assert not ours[:, 32:, :3].any() and ours[:, 32:, 3:].any()  # nothing of a reference is to be made anew


@pytest.mark.parametrize("frames", [None, 9, 4, 20])
@pytest.mark.parametrize("masked", [False, True])
def test_one_reference_equals_cores_node(vace, three, stack, control, pack, photos, frames, masked):
    from comfy_extras.nodes_wan import WanVaceToVideo

    subjects = pack.submodule("idcrafter.subjects.subject")
    cast = subjects.make_cast([subjects.make_subject("A", "person", "", photos[0][None])])
    generator = torch.Generator().manual_seed(4)
    video = None if frames is None else torch.rand((frames, 40, 70, 3), generator=generator)
    mask = torch.rand((frames or 9, 40, 70), generator=generator) if masked else None
    shot = three(strength=0.7, control_video=video, control_masks=mask)
    shot = pack.submodule("idcrafter.conditioning.shot").Shot(**{**vars(shot), "cast": cast})
    ours = vace.condition(shot)
    core = WanVaceToVideo.execute(
        shot.positive, shot.negative, stack.vae, 64, 48, 9, 1, 0.7, video, mask, ours.references
    )
    for mine, its in ((ours.positive, core.args[0]), (ours.negative_text, core.args[1])):
        assert torch.equal(mine[0][1]["vace_frames"][0], its[0][1]["vace_frames"][0])
        assert torch.equal(mine[0][1]["vace_mask"][0], its[0][1]["vace_mask"][0])
        assert mine[0][1]["vace_strength"] == its[0][1]["vace_strength"] == [0.7]
    assert torch.equal(ours.latent["samples"], core.args[2]["samples"])
    assert ours.trim == core.args[3] == 1


def test_what_is_trimmed_leaves_the_video(vace, three, pack, denoised):
    shot = three()
    out = vace.condition(shot)
    assert out.trim == 3 and out.latent["samples"].shape == (1, 16, 6, 6, 8)
    assert out.latent["idcrafter_leading_references"] == 3
    guider = comfy.samplers.CFGGuider(shot.model)
    guider.set_conds(out.positive, out.negative_text)
    video = denoised(guider, out.latent)
    trimmed = pack.execute("TrimVideoLatent", samples={"samples": video}, trim_amount=out.trim)[0]["samples"]
    assert torch.equal(trimmed, video[:, :, 3:])
    assert shot.vae.decode(trimmed).reshape(-1, 48, 64, 3).shape[0] == shot.length


def test_the_model_sees_references_and_their_strength(vace, three, denoised):
    def sample(**changes):
        shot = three(**changes)
        out = vace.condition(shot)
        guider = comfy.samplers.CFGGuider(shot.model)
        guider.set_conds(out.positive, out.negative_text)
        return denoised(guider, out.latent)[:, :, 3:], shot, out

    full, shot, out = sample()
    assert (full - sample(strength=0.5)[0]).abs().max() > 1e-4
    # At strength 0 nothing of the context is left.
    nothing = sample(strength=0.0)[0]
    guider = comfy.samplers.CFGGuider(shot.model)
    grey = {"vace_frames": [out.positive[0][1]["vace_frames"][0] * 3], "vace_strength": [0.0]}
    guider.set_conds(*([[c[0][0], {**c[0][1], **grey}]] for c in (out.positive, out.negative_text)))
    assert torch.equal(nothing, denoised(guider, out.latent)[:, :, 3:])
    assert (full - nothing).abs().max() > 1e-4


def test_one_mask_holds_for_all_frames(vace, three, control):
    video, mask = control
    one, many = (
        vace.condition(three(control_video=video, control_masks=m)) for m in (mask[0], mask[:1].repeat(9, 1, 1))
    )
    for key in ("vace_frames", "vace_mask"):
        assert torch.equal(one.positive[0][1][key][0], many.positive[0][1][key][0])
    assert 0 < one.positive[0][1]["vace_mask"][0].mean() < 0.5


def test_contexts_add_up(vace, three):
    """A second context from another node stays, as when core's nodes are chained."""
    first = vace.condition(three())
    second = vace.condition(three(positive=first.positive, negative=first.negative_text, strength=0.3))
    assert second.positive[0][1]["vace_strength"] == [1.0, 0.3]
    assert len(second.positive[0][1]["vace_frames"]) == len(second.positive[0][1]["vace_mask"]) == 2
