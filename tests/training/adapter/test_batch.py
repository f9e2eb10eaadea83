"""What rows of a batch are without their text or their people."""

import torch

from support import tiny_training
from support.tiny_training import batch_for


def lose(pack, family="phantom", text=(True, False, False), people=(False, True, False), **changes):
    batch = batch_for(pack, family, rows=3, **changes)
    empty = tiny_training.noise(*batch.context.shape[1:], seed=9)
    return batch, batch.without(torch.tensor(text), torch.tensor(people), empty), empty


def test_rows_lose_what_they_shall(pack):
    batch, without, empty = lose(pack)
    assert torch.equal(without.context[0], empty) and torch.equal(without.context[1:], batch.context[1:])
    assert torch.equal(without.photos[[0, 2]], batch.photos[[0, 2]]) and not without.photos[1].any()
    references = without.conds["time_dim_concat"]
    assert not references[1].any() and torch.equal(references[[0, 2]], batch.conds["time_dim_concat"][[0, 2]])


def test_the_empty_prompt_may_be_shorter(pack):
    batch = batch_for(pack, "phantom")
    lost = torch.tensor([True, False])
    short = batch.without(lost, ~lost, torch.ones(4, 32)).context
    assert (short[0, :4] == 1).all() and not short[0, 4:].any() and torch.equal(short[1], batch.context[1])


def test_who_is_not_known_is_not_asked_for(pack):
    batch, without, _ = lose(pack)
    assert (without.owners[:2] == -1).all() and torch.equal(without.owners[2], batch.owners[2])


def test_what_stands_for_nobody_is_the_rules_own(pack):
    """VACE without people still has its context, which is not zero; constants stay."""
    context = tiny_training.noise(3, 1, 96, 3, 6, 8, seed=11)
    batch, without, _ = lose(pack, "vace", absent={"vace_context": context})
    assert torch.equal(without.conds["vace_context"][1], context[1])
    assert torch.equal(without.conds["vace_context"][0], batch.conds["vace_context"][0])
    assert without.conds["vace_strength"] == [1.0]


def test_lists_of_references(pack):
    pictures = [tiny_training.noise(3, 16, 1, 6, 8, seed=1), tiny_training.noise(3, 16, 1, 4, 10, seed=2)]
    absent = [torch.ones(3, 16, 1, 6, 8), torch.ones(3, 16, 1, 4, 10)]
    _, without, _ = lose(pack, "bernini", conds={"context_latents": pictures})
    assert [each[1].any() for each in without.conds["context_latents"]] == [False, False]
    _, without, _ = lose(pack, "bernini", conds={"context_latents": pictures}, absent={"context_latents": absent})
    assert all((each[1] == 1).all() for each in without.conds["context_latents"])


def test_the_batch_itself_is_left_alone(pack):
    batch, _, _ = lose(pack)
    fresh = batch_for(pack, "phantom", rows=3)
    assert torch.equal(batch.owners, fresh.owners) and torch.equal(batch.photos, fresh.photos)
