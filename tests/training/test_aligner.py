"""Training an aligner: the loss by hand, pre-training that learns, and a video model's loss that reaches it."""

import pytest
import torch
from torch import nn

from idcrafter.modules.aligner import Aligner, AlignerConfig, Reading, initialise
from idcrafter.training.aligner import AlignmentBatch, alignment_loss, guided_text, pad_batch, pretraining
from idcrafter.training.loop import Trainer

SIZES = {"tokens": 6, "latent_width": 16, "width": 16, "heads": 2, "depth": 2}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def new_aligner(use="replace"):
    net = Aligner(AlignerConfig(10, 8, reading=Reading(use=use), **SIZES), nn)
    initialise(net, 1)
    return net


WORDS = noise(12, 10, seed=7), noise(12, 8, seed=8)  # a word, as the VLM and as the text encoder have it


def batch_of(n, count=16, seed=1000):
    """Prompts of 2-5 of 12 words: the VLM has them behind pictures, the text encoder with zeros behind them."""
    generator = torch.Generator().manual_seed(seed + n)
    ids = [torch.randint(0, 12, (int(torch.randint(2, 6, (), generator=generator)),), generator=generator)
           for _ in range(count)]  # fmt: skip
    places = [torch.linspace(-2, 2, 6)[: len(row), None] for row in ids]
    states, keys = pad_batch(
        [torch.cat([torch.randn(3, 10, generator=generator) * 0.1, WORDS[0][row] + place])
         for row, place in zip(ids, places, strict=True)]
    )  # fmt: skip
    text, words = pad_batch([WORDS[1][row] for row in ids])
    return AlignmentBatch(states, keys, text, words)


def test_pad_batch():
    rows = [noise(2, 3), noise(4, 3, seed=1)]
    padded, keys = pad_batch(rows)
    assert keys.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(padded[0, :2], rows[0]) and torch.equal(padded[1], rows[1]) and not padded[0, 2:].any()


def test_the_loss_by_hand():
    tokens = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    text = torch.tensor([[[4.0, 3.0], [9.0, 9.0]]])
    found = alignment_loss(tokens, text, torch.tensor([[True, False]]), cosine_weight=0.5)
    # One word at a cosine of 24/25; the other two tokens should be zero, whatever stands behind the words.
    assert found["mse"] == pytest.approx((1 + 1 + 1 + 4) / 6)
    assert found["cosine"] == pytest.approx(1 - 24 / 25)
    assert found["loss"] == pytest.approx(7 / 6 + 0.5 / 25)
    perfect = alignment_loss(text[:, :1], text[:, :1], torch.tensor([[True]]))
    assert perfect["loss"] == pytest.approx(0, abs=1e-6)


def test_a_longer_text_is_cut_and_no_words_are_no_error():
    tokens, text = noise(2, 3, 8), noise(2, 5, 8, seed=1)
    words = torch.ones(2, 5, dtype=torch.bool)
    found = alignment_loss(tokens, text, words)
    assert torch.equal(found["loss"], alignment_loss(tokens, text[:, :3], words[:, :3])["loss"])
    silent = alignment_loss(tokens, text, ~words)
    assert silent["mse"] == pytest.approx(float(tokens.square().mean())) and silent["cosine"] == 1


def test_pretraining_learns_and_a_random_aligner_knows_nothing(tmp_path):
    net, steps = new_aligner(), 250
    Trainer(net, tmp_path, "aligner", steps, 0.01, dtype=torch.float32, warmup=5).run(pretraining(batch_of))
    unseen = batch_of(0, count=64, seed=99_000)

    def measure(net):
        with torch.no_grad():
            return pretraining(lambda n: unseen)(net, 0)

    before, after = measure(new_aligner()), measure(net)
    assert before["cosine"] > 0.8
    assert after["cosine"] < 0.5 and after["mse"] < 0.5 * before["mse"]


@pytest.mark.parametrize("use", ["replace", "append", "prepend", "hierarchy"])
def test_a_video_models_loss_reaches_the_aligner(use):
    net, batch = new_aligner(use), batch_of(3)
    text = guided_text(net, batch)
    tokens, _ = net(batch.states, batch.keys)
    parts = {"append": [batch.text, tokens], "prepend": [tokens, batch.text]}.get(use, [tokens])
    assert torch.equal(text, torch.cat(parts, dim=1))
    text.square().mean().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not silent
