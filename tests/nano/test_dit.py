"""The training forward of the nano DiT is core's own, plus a readout that leaves it as it is."""

import numpy as np
import pytest
import torch

from idcrafter.nano.recipes import data, dit, text


@pytest.fixture(scope="module")
def model():
    model = dit.Supervised()
    dit._initialise(model, 3)
    torch.nn.init.normal_(model.dit.head.head.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    return model.eval()


@torch.no_grad()
def test_the_velocity_is_that_of_cores_forward(model):
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, 16, 3, 8, 12, generator=generator)
    references = torch.randn(2, 16, 2, 8, 12, generator=generator)
    context = torch.randn(2, text.LENGTH, text.CONFIG["d_model"], generator=generator)
    sigma = torch.tensor([0.3, 0.9])
    velocity, named = dit.make_forward(model)(noisy, sigma, context, references)
    wanted = model.dit(noisy, sigma * 1000, context, time_dim_concat=references)
    assert torch.allclose(velocity, wanted, atol=1e-5)
    assert named.shape == (2, 3 * 4 * 6, text.MAX_SUBJECTS)


def test_batches_pair_each_clip_with_its_own_rows():
    count = torch.tensor([1, 2, 2, 4])
    rows = {
        "latents": torch.arange(4.0)[:, None, None, None, None].expand(4, 16, 3, 8, 16),
        "references": torch.arange(4.0)[:, None, None, None, None, None].expand(4, 4, data.PHOTOS, 16, 8, 16),
        "weights": torch.ones(4, 3, 8, 16),
        "owners": torch.arange(4)[:, None, None, None].expand(4, 3, 4, 8),
        "counts": count,
        "tokens": torch.arange(4)[:, None, None].expand(4, data.CAPTIONS, text.LENGTH),
    }
    batches = dit.Batches(rows)
    for subjects in (1, 2, 4):
        clean, references, tokens, _, owners = batches.draw(np.random.default_rng(0), 16, subjects)
        which = clean[:, 0, 0, 0, 0].long()
        assert (count[which] == subjects).all()
        assert references.shape == (16, 16, subjects, 8, data.width_of(subjects) // 8)
        assert owners.shape[1] * 4 == clean[0, 0].numel()
        assert torch.equal(references[:, 0, 0, 0, 0].long(), which)
        assert torch.equal(tokens[:, 0], which) and torch.equal(owners[:, 0], which)
