"""The losses against plain transcriptions of their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch

from support import tiny_training
from support.tiny_training import TOKENS, adapter_for, batch_for, losses_of, network_for


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.training.adapter.objective")


def routing(subjects, seed, null=True, rows=2):
    return SimpleNamespace(logits=tiny_training.noise(rows, TOKENS, subjects + null, seed=seed))


def transcription(routings, batch):
    """Token by token: -log of the softmax, over who is there and the null identity, at the owner."""
    insertions = []
    for each in routings:
        terms = []
        for row in range(len(batch.owners)):
            there = [bool(photos.any()) for photos in batch.photos[row]]
            there += [True] * (each.logits.shape[-1] - len(there))
            for token, owner in enumerate(batch.owners[row].tolist()):
                if owner < 0 or not there[owner]:
                    continue
                weights = [
                    math.exp(float(v)) if ok else 0.0 for v, ok in zip(each.logits[row, token], there, strict=True)
                ]
                terms.append(-math.log(weights[owner] / sum(weights)))
        insertions.append(sum(terms) / len(terms))
    return sum(insertions) / len(insertions)


@pytest.mark.parametrize("null", [True, False])
def test_the_routers_cross_entropy(pack, lib, null):
    batch = batch_for(pack, "phantom")
    routings = [routing(3, seed, null) for seed in (1, 2)]
    assert float(lib.router_loss(routings, batch)) == pytest.approx(transcription(routings, batch), rel=1e-5)


def test_padding_of_subjects_does_not_matter(pack, lib):
    batch = batch_for(pack, "phantom")
    wide = batch_for(pack, "phantom", photos=torch.nn.functional.pad(batch.photos, (0, 0, 0, 2)))
    plain = routing(3, 1, null=False)
    logits = torch.nn.functional.pad(plain.logits, (0, 2), value=50.0)
    found = lib.router_loss([SimpleNamespace(logits=logits)], wide)
    torch.testing.assert_close(found, lib.router_loss([plain], batch))


def test_there_may_be_nothing_to_learn(pack, lib):
    batch = batch_for(pack, "phantom")
    assert lib.router_loss([SimpleNamespace(logits=None)], batch) is None
    assert lib.router_loss([], batch) is None
    unlabelled = batch_for(pack, "phantom", owners=torch.full((2, TOKENS), -1))
    assert lib.router_loss([routing(3, 1)], unlabelled) is None
    nobody = batch_for(pack, "phantom", photos=torch.zeros_like(batch.photos))
    assert lib.router_loss([routing(3, 1)], nobody) is None


def test_even_routers_are_worth_the_logarithm(pack, lib):
    batch = batch_for(pack, "phantom", rows=1)
    everybody = batch_for(pack, "phantom", rows=1, photos=torch.ones_like(batch.photos))
    even = SimpleNamespace(logits=torch.zeros(1, TOKENS, 3))
    assert float(lib.router_loss([even], everybody)) == pytest.approx(math.log(3), rel=1e-6)


class Perfect(torch.nn.Module):
    """Answers what it is told to, and keeps what it is asked."""

    def __init__(self, noising, answer):
        super().__init__()
        self.noising, self.answer, self.asked = noising, answer, []

    def forward(self, noisy, sigma, batch):
        self.asked.append((noisy, sigma))
        return self.answer(noisy, sigma, batch), []


def noising_of(pack, model_of, family):
    return pack.submodule("idcrafter.training.adapter.noising").Noising.of(model_of(family))


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_who_knows_the_clip_has_no_loss(pack, model_of, lib, family):
    noising = noising_of(pack, model_of, family)
    knows = Perfect(noising, lambda noisy, sigma, batch: noising.velocity(noisy, batch.clean, sigma))
    batch = batch_for(pack, family)
    losses = lib.adapter_loss(knows, batch, torch.Generator().manual_seed(0), 3.0)
    assert float(losses["flow"]) < 1e-6 and losses["loss"] is losses["flow"] and "router" not in losses


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_predictions_of_clip_and_velocity_agree(pack, model_of, family):
    """And they are what core's own formulas say."""
    noising, batch = noising_of(pack, model_of, family), batch_for(pack, family)
    sigma, noise = torch.tensor([0.4, 0.9]), tiny_training.noise(*batch.clean.shape, seed=3)
    noisy = noising.noised(batch.clean, noise, sigma)
    target = noising.target(batch.clean, noise, sigma)
    torch.testing.assert_close(noising.velocity(noisy, batch.clean, sigma), target, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noising.clip(noisy, target, sigma), batch.clean, rtol=1e-4, atol=1e-4)
    by_core = noising.sampling.calculate_denoised(sigma, target, noisy)
    torch.testing.assert_close(by_core, batch.clean, rtol=1e-4, atol=1e-4)
    lower = torch.tensor(0.2)
    stepped = noising.stepped(noisy[:1], batch.clean[:1], sigma[0], lower)
    torch.testing.assert_close(stepped, noising.noised(batch.clean[:1], noise[:1], lower[None]), rtol=1e-4, atol=1e-4)


def test_noise_levels_are_spread_and_shifted(pack, model_of, lib):
    asked = Perfect(noising_of(pack, model_of, "phantom"), lambda noisy, sigma, batch: noisy)
    batch = batch_for(pack, "phantom", rows=8, people=1)
    lib.adapter_loss(asked, batch, torch.Generator().manual_seed(0), 1.0)
    lib.adapter_loss(asked, batch, torch.Generator().manual_seed(0), 5.0)
    (_, plain), (_, shifted) = asked.asked
    assert (plain * 8).floor().tolist() == list(range(8))
    torch.testing.assert_close(shifted, 5 * plain / (1 + 4 * plain))


def test_places_weigh_as_they_are_told(pack, model_of, lib):
    asked = Perfect(noising_of(pack, model_of, "phantom"), lambda noisy, sigma, batch: torch.zeros_like(noisy))
    weights = torch.zeros(2, 1, 3, 6, 8)
    weights[..., :4] = 3.0
    batch = batch_for(pack, "phantom", weights=weights)
    found = lib.adapter_loss(asked, batch, torch.Generator().manual_seed(4), 3.0)["flow"]
    generator = torch.Generator().manual_seed(4)
    torch.rand(2, generator=generator)
    velocity = torch.randn(batch.clean.shape, generator=generator) - batch.clean
    torch.testing.assert_close(found, velocity[..., :4].pow(2).mean())


def test_the_sum_of_the_losses(pack, model_of):
    model = model_of("phantom")
    network = network_for(pack, model, adapter_for(pack, model))
    losses = losses_of(pack, network, batch_for(pack, "phantom"))
    torch.testing.assert_close(losses["loss"], losses["flow"] + 0.5 * losses["router"])


def test_parts_of_a_batch_are_the_batch(pack, model_of, lib):
    """Two processes with a row each, of which the second has fewer labels: the mean of their losses is the whole's."""
    model = model_of("phantom")
    network = network_for(pack, model, adapter_for(pack, model))
    weights = tiny_training.noise(2, 1, 3, 6, 8, seed=6).abs()
    whole = batch_for(pack, "phantom", weights=weights)
    whole.owners[1, 10:] = -1
    labelled = [float((row >= 0).sum()) for row in whole.owners]
    labelled[1] -= float((whole.owners[1] == 2).sum())  # who is not there
    means = {"count": sum(labelled) / 2, "weights": float(weights.mean())}
    with torch.no_grad():
        expected = losses_of(pack, network, whole)
        parts = []
        for i in range(2):
            row = type(whole)(
                **{
                    name: value[i : i + 1] if torch.is_tensor(value) else value
                    for name, value in vars(whole).items()
                    if name not in ("maps", "conds")
                },
                maps=(whole.maps[0][i : i + 1],),
                conds={name: value[i : i + 1] for name, value in whole.conds.items()},
            )

            def average(value, i=i):
                key = "count" if float(value) == labelled[i] else "weights"
                return torch.tensor(means[key])

            parts.append(losses_of(pack, network, row, part=(i, 2), average=average))
    for name in ("flow", "router", "loss"):
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, expected[name], rtol=1e-5, atol=1e-6)
