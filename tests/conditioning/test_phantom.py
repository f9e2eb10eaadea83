"""The Phantom rule against core's node, and its limits."""

import pytest
import torch


@pytest.fixture(scope="module")
def phantom(pack):
    return pack.submodule("idcrafter.conditioning.phantom")


def cast_of(pack, *photo_counts):
    subjects = pack.submodule("idcrafter.subjects.subject")
    generator = torch.Generator().manual_seed(3)
    return subjects.make_cast(
        [
            subjects.make_subject(f"S{i}", "person", "", torch.rand((n, 24, 32, 3), generator=generator))
            for i, n in enumerate(photo_counts)
        ]
    )


def references_of(conditioning):
    return conditioning[0][1]["time_dim_concat"]


def test_shapes_and_order(phantom, pack, stack):
    cast = cast_of(pack, 2, 1)
    out = phantom.condition(stack.encode("a"), stack.encode(""), stack.vae, cast, 64, 48, 9)
    assert out.latent["samples"].shape == (1, 16, 3, 6, 8)
    assert not out.latent["samples"].any()
    assert out.references.shape == (3, 48, 64, 3)
    assert [tuple(ref) for ref in out.used] == [(0, 0), (1, 0), (0, 1)]
    letterbox = pack.submodule("idcrafter.subjects.references").letterbox
    latents = references_of(out.positive)
    assert latents.shape == (1, 16, 3, 6, 8)
    for i, ref in enumerate(out.used):
        frame = letterbox(cast.subjects[ref.subject].photos[ref.photo], None, 64, 48)
        assert torch.equal(out.references[i], frame)
        # Encoded alone: a reference must not know the one before it.
        assert torch.equal(latents[:, :, i : i + 1], stack.vae.encode(frame.unsqueeze(0)))


def test_equals_cores_node_on_prepared_images(phantom, pack, stack, cast):
    from comfy_extras.nodes_wan import WanPhantomSubjectToVideo

    positive, negative = stack.encode("The first waves."), stack.encode("blurred")
    ours = phantom.condition(positive, negative, stack.vae, cast, 64, 48, 9)
    core = WanPhantomSubjectToVideo.execute(positive, negative, stack.vae, 64, 48, 9, 1, ours.references)
    for mine, theirs in zip((ours.positive, ours.negative_text, ours.negative_images), core.args, strict=False):
        assert torch.equal(mine[0][0], theirs[0][0])
        assert torch.equal(references_of(mine), references_of(theirs))
    assert torch.equal(ours.latent["samples"], core.args[3]["samples"])


def test_zero_references_are_zero_for_the_model(phantom, stack, cast, shot):
    zeros = stack.model.get_model_object("process_latent_in")(references_of(shot.negative_images))
    assert zeros.abs().max() < 1e-6
    assert references_of(shot.negative_text) is references_of(shot.positive)


def test_the_given_conditioning_is_not_changed(phantom, stack, cast):
    positive, negative = stack.encode("a"), stack.encode("")
    phantom.condition(positive, negative, stack.vae, cast, 64, 48, 5)
    assert "time_dim_concat" not in positive[0][1] and "time_dim_concat" not in negative[0][1]


def test_four_references_at_most(phantom, pack, stack):
    out = phantom.condition(stack.encode(""), stack.encode(""), stack.vae, cast_of(pack, 3, 2), 32, 32, 1)
    assert [tuple(ref) for ref in out.used] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [tuple(ref) for ref in out.left_out] == [(0, 2)]
    with pytest.raises(ValueError, match="5 subjects; remove 1"):
        phantom.condition(stack.encode(""), stack.encode(""), stack.vae, cast_of(pack, 1, 1, 1, 1, 1), 32, 32, 1)


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
def test_sizes_that_the_model_cannot_make(phantom, stack, cast, size, message):
    with pytest.raises(ValueError, match=message):
        phantom.condition(stack.encode(""), stack.encode(""), stack.vae, cast, *size)


def test_another_vae_is_refused(phantom, stack, cast):
    class ImageVAE:
        latent_channels = 4
        latent_dim = 2

        def spacial_compression_encode(self):
            return 8

    with pytest.raises(ValueError, match="needs the Wan 2.1 VAE.*has 4 channels"):
        phantom.condition(stack.encode(""), stack.encode(""), ImageVAE(), cast, 64, 48, 9)


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
