"""The Phantom rule against core's node and the public reference code, and its limits."""

import pytest
import torch


@pytest.fixture(scope="module")
def phantom(pack):
    return pack.submodule("idcrafter.conditioning.phantom")


def references_of(conditioning):
    return conditioning[0][1]["time_dim_concat"]


def test_shapes_and_order(phantom, pack, stack, make_shot, cast_of):
    cast = cast_of(2, 1)
    out = phantom.condition(make_shot(cast=cast))
    assert out.latent["samples"].shape == (1, 16, 3, 6, 8)
    assert not out.latent["samples"].any()
    assert out.references.shape == (3, 48, 64, 3)
    assert [(ref.subject, ref.photo) for ref in out.used] == [(0, 0), (1, 0), (0, 1)]
    assert out.positive[0][1]["idcrafter_reference_names"] == ["S0", "S1", "S0"]
    letterbox = pack.submodule("idcrafter.subjects.references").letterbox
    latents = references_of(out.positive)
    assert latents.shape == (1, 16, 3, 6, 8)
    for i, ref in enumerate(out.used):
        frame = letterbox(cast.subjects[ref.subject].photos[ref.photo], None, 64, 48)
        assert torch.equal(out.references[i], frame)
        # Encoded alone: a reference must not know the one before it.
        assert torch.equal(latents[:, :, i : i + 1], stack.vae.encode(frame.unsqueeze(0)))


def test_equals_cores_node_on_prepared_images(phantom, stack, make_shot):
    from comfy_extras.nodes_wan import WanPhantomSubjectToVideo

    shot = make_shot()
    ours = phantom.condition(shot)
    core = WanPhantomSubjectToVideo.execute(shot.positive, shot.negative, stack.vae, 64, 48, 9, 1, ours.references)
    for mine, theirs in zip((ours.positive, ours.negative_text, ours.negative_images), core.args, strict=False):
        assert torch.equal(mine[0][0], theirs[0][0])
        assert torch.equal(references_of(mine), references_of(theirs))
    assert torch.equal(ours.latent["samples"], core.args[3]["samples"])


def test_references_equal_the_published_code(phantom, published, published_shot, numbers):
    ours = phantom.condition(published_shot)
    assert (ours.references - published["photos"]).abs().max() < 1e-5
    theirs = numbers("phantom")["references"]
    ours = published["model"].model.process_latent_in(references_of(ours.positive))
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("timestep", [900, 400])
def test_guided_velocity_equals_the_published_code(phantom, published, published_shot, numbers, velocity, timestep):
    """Three branches through core's model and guider, with the scales of the release."""
    ours = velocity(phantom.condition(published_shot), published["model"], timestep / 1000)
    theirs = numbers("phantom")[f"velocity_{timestep}"]
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-4


def test_the_canvas_is_the_published_ones(pack, published, numbers):
    """The same white borders to a pixel, the same picture but for the kernel (theirs is Lanczos on 8 bits)."""
    ours = pack.submodule("idcrafter.subjects.references").letterbox(published["wide"], None, 64, 48)
    theirs = numbers("phantom")["canvas"] / 255

    def borders(frame):
        rows = (frame < 0.99).any(dim=2).any(dim=1).nonzero()
        return int(rows[0]), int(rows[-1])

    assert all(abs(a - b) <= 1 for a, b in zip(borders(ours), borders(theirs), strict=True))
    assert (ours - theirs)[8:40].abs().mean() < 0.01


def test_zero_references_are_zero_for_the_model(stack, shot):
    zeros = stack.model.get_model_object("process_latent_in")(references_of(shot.negative_images))
    assert zeros.abs().max() < 1e-6
    assert references_of(shot.negative_text) is references_of(shot.positive)


def test_the_given_conditioning_is_not_changed(phantom, make_shot):
    shot = make_shot()
    phantom.condition(shot)
    assert not shot.positive[0][1].keys() & {"time_dim_concat", "idcrafter_reference_names"}
    assert "time_dim_concat" not in shot.negative[0][1]


def test_four_references_at_most(phantom, make_shot, cast_of):
    out = phantom.condition(make_shot(cast=cast_of(3, 2), width=32, height=32, length=1))
    assert [ref.subject for ref in out.used] == [0, 1, 0, 1] and out.used[0].photo == 0
    assert len(out.left_out) == 1 and out.left_out[0].subject == 0
    with pytest.raises(ValueError, match="5 subjects; remove 1"):
        phantom.condition(make_shot(cast=cast_of(1, 1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((60, 48, 9), "width is 60 px"),
        ((64, 0, 9), "height is 0 px"),
        ((64, 48, 10), "use 9 or 13"),
        ((64, 48, 3), "use 1 or 5"),
        ((64, 48, 0), "use 1 or 5"),
    ],
)
def test_sizes_that_the_model_cannot_make(phantom, make_shot, size, message):
    with pytest.raises(ValueError, match=message):
        phantom.condition(make_shot(width=size[0], height=size[1], length=size[2]))


def test_another_vae_is_refused(phantom, make_shot):
    class ImageVAE:
        latent_channels = 4
        latent_dim = 2

        def spacial_compression_encode(self):
            return 8

    with pytest.raises(ValueError, match="Phantom rule needs the Wan 2.1 VAE.*has 4 channels"):
        phantom.condition(make_shot(vae=ImageVAE()))


def test_the_model_sees_the_references(stack, shot):
    """Other references, another video; the same ones in the other order, another video too."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(stack.model)
    noise = torch.randn(shot.latent["samples"].shape, generator=torch.Generator().manual_seed(0))

    def sample(references):
        positive = [[shot.positive[0][0], {**shot.positive[0][1], "time_dim_concat": references}]]
        guider.set_conds(positive, positive)
        return guider.sample(noise, shot.latent["samples"], shot.sampler, shot.sigmas, seed=0)

    original = references_of(shot.positive)
    video = sample(original)
    assert video.shape == shot.latent["samples"].shape
    assert torch.equal(video, sample(original))
    assert (video - sample(original.flip(2))).abs().max() > 1e-4
    assert (video - sample(torch.zeros_like(original))).abs().max() > 1e-4
