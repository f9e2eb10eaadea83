"""Batches of the nano adapter's training: drawn by the step alone, and every row with its own people."""

import pytest
import torch

from idcrafter.nano import install
from idcrafter.nano.recipes import adapter, data, text

CLIPS = 6


@pytest.fixture(scope="module")
def clips():
    """Clips in which every tensor holds the number of its clip, people and photos another ten and hundred."""
    counts = torch.tensor([1, 2, 3, 3, 4, 4])
    number = torch.arange(float(CLIPS))

    def shaped(values, *shape):
        return values.view(*values.shape, *[1] * len(shape)).expand(*values.shape, *shape)

    people = number[:, None, None] + 10 * torch.arange(4.0)[:, None] + 100 * torch.arange(float(data.PHOTOS))
    rows = {
        "latents": shaped(number, 16, 3, 8, 16),
        "references": shaped(people, 16, 8, 16),
        "weights": torch.ones(CLIPS, 3, 8, 16),
        "owners": shaped(number, 3, 4, 8).to(torch.int8),
        "counts": counts,
        "tokens": torch.full((CLIPS, data.CAPTIONS, text.LENGTH), text.END).short(),
        "faces": shaped(people, 512),
        "crops": shaped(people, (data.CROP // 8) ** 2, 16),
    }
    _, encoder = text.load(install.WEIGHTS / "text_encoders" / install.FILES["text_encoder"][1])
    return adapter.Clips(rows, encoder, 3)


def test_a_batch_is_a_function_of_its_step(clips):
    first, again, other = clips.draw(4), clips.draw(4), clips.draw(5)
    assert torch.equal(first.clean, again.clean) and torch.equal(first.photos, again.photos)
    assert first.clean.shape != other.clean.shape or not torch.equal(first.clean, other.clean)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_faces_references_and_labels_are_of_the_same_clip_and_people(clips, count):
    batch = clips.draw(0, 16, count)
    which = batch.clean[:, 0, 0, 0, 0]
    assert (clips.rows["counts"][which.long()] == count).all()
    assert batch.clean.shape[-1] * 8 == data.width_of(count)
    assert batch.references == tuple(range(count))
    assert set(batch.owners.unique().tolist()) <= {-1, *which.long().tolist()}
    someone = batch.photos[:, :, 0] > 0
    shown = batch.conds["time_dim_concat"][:, 0, :, 0, 0]
    faces, maps = batch.faces[..., 0], batch.maps[0][..., 0, 0]
    assert torch.equal(faces, maps)
    expected = which[:, None] + 10 * torch.arange(float(count))
    assert torch.equal((faces[:, :, 0] % 100), expected)
    # The reference is the first photo; the second is the other one of the same person.
    assert torch.equal(shown[someone], faces[:, :, 0][someone])
    assert ((faces[:, :, 1] - faces[:, :, 0]).abs() == 100).all()


def test_rows_without_people_have_neither_references_nor_labels(clips):
    batches = [clips.draw(n, 24, 3) for n in range(6)]
    lost = torch.cat([(batch.photos == 0).flatten(1).all(dim=1) for batch in batches])
    assert 0 < lost.float().mean() < 0.3
    for batch in batches:
        gone = (batch.photos == 0).flatten(1).all(dim=1)
        assert not batch.conds["time_dim_concat"][gone].any()
        assert (batch.owners[gone] == -1).all()


def test_rows_of_the_ablation_differ_in_their_modules_only():
    configs = {name: config for name, (config, _) in adapter.ROWS.items()}
    assert configs["references"] is None
    assert (configs["router"].hierarchy, configs["hierarchy"].router) == (0, False)
    assert configs["full"] == configs["full_without_router_loss"]
    assert [name for name, (_, told) in adapter.ROWS.items() if not told] == ["full_without_router_loss"]
