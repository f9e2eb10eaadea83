"""The Bernini rule against core's node: one stream a reference, at its own aspect."""

import comfy.samplers
import pytest
import torch


@pytest.fixture(scope="module")
def bernini(pack):
    return pack.submodule("idcrafter.conditioning.bernini")


@pytest.fixture
def cast_of_aspects(pack):
    """Photos of several shapes, one longer than the limit."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    generator = torch.Generator().manual_seed(3)
    photos = [torch.rand((1, *size, 3), generator=generator) for size in ((40, 60), (70, 33), (20, 900))]
    return subjects.make_cast([subjects.make_subject(f"S{i}", "person", "", photo) for i, photo in enumerate(photos)])


@pytest.mark.parametrize("edits", [False, True])
def test_streams_equal_cores_node(bernini, make_shot, stack, cast_of_aspects, edits):
    from comfy_extras.nodes_bernini import BerniniConditioning

    video = torch.rand((12, 50, 60, 3), generator=torch.Generator().manual_seed(1)) if edits else None
    shot = make_shot(cast=cast_of_aspects, control_video=video)
    ours = bernini.condition(shot)
    core = BerniniConditioning.execute(
        shot.positive, shot.negative, stack.vae, 64, 48, 9, 1, source_video=video,
        reference_images={f"reference_image_{i}": s.photos[0][None] for i, s in enumerate(cast_of_aspects.subjects)},
    ).args  # fmt: skip
    for mine, its in ((ours.positive, core[0]), (ours.negative_text, core[1])):
        streams, expected = mine[0][1]["context_latents"], its[0][1]["context_latents"]
        assert len(streams) == len(expected) == 3 + edits
        assert all(torch.equal(a, b) for a, b in zip(streams, expected, strict=True))
    assert [tuple(latent.shape[3:]) for latent in ours.positive[0][1]["context_latents"][-3:]] == [
        (4, 8), (8, 4), (2, 106),
    ]  # fmt: skip
    assert ours.positive[0][1]["idcrafter_reference_names"] == [None] * edits + ["S0", "S1", "S2"]
    assert torch.equal(ours.latent["samples"], core[2]["samples"])


def test_without_references_only_the_video_to_edit_is_left(bernini, make_shot):
    assert "context_latents" not in bernini.condition(make_shot()).negative_images[0][1]
    video = torch.rand((9, 48, 64, 3))
    out = bernini.condition(make_shot(control_video=video))
    left = out.negative_images[0][1]["context_latents"]
    assert len(left) == 1 and torch.equal(left[0], out.positive[0][1]["context_latents"][0])


def test_pictures_of_several_sizes_fit_one_batch(bernini, make_shot, cast_of_aspects):
    references = bernini.condition(make_shot(cast=cast_of_aspects)).references
    assert references.shape == (3, 64, 848, 3)
    first = bernini.own_aspect(cast_of_aspects.subjects[0].photos[0])
    assert first.shape == (32, 64, 3)
    assert torch.equal(references[0, 16:48, 392:456], first) and (references[0, :16] == 1).all()


def test_eight_subjects_but_not_nine_photos(bernini, make_shot, cast_of):
    out = bernini.condition(make_shot(cast=cast_of(3, 3, 3)))
    assert len(out.used) == 8 and len(out.left_out) == 1


def test_the_order_is_told_apart(bernini, make_shot, model_of, denoised, cast_of):
    """Each stream has a source id: the same pictures in another order are another video."""
    model = model_of("bernini")
    out = bernini.condition(make_shot(cast=cast_of(1, 1), model=model))

    def sample(streams):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*([[c[0][0], {**c[0][1], **streams}]] for c in (out.positive, out.negative_text)))
        return denoised(guider, out.latent)

    streams = out.positive[0][1]["context_latents"]
    video = sample({})
    assert video.shape == (1, 16, 3, 6, 8)
    assert (video - sample({"context_latents": streams[::-1]})).abs().max() > 1e-5
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(out.positive, out.negative_images)
    assert torch.isfinite(denoised(guider, out.latent)).all()
