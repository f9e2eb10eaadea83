"""Whose body a token of the DiT shows."""

import itertools

import numpy as np
import pytest
import torch

from idcrafter.nano import install, world
from idcrafter.nano.recipes import data, dit, text
from idcrafter.nano.world.scene import HEIGHT, WIDTH


def people(count):
    return tuple(world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("val"), count))


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_tokens_belong_to_the_subject_on_their_side(sides):
    for seed in range(8):
        clip = world.render_clip(world.sample_clip_spec(people(2), seed, sides))
        owners = data._owners(clip)
        assert owners.shape == (3, HEIGHT // 16, WIDTH // 16)
        left, right = owners[..., :2], owners[..., -2:]
        assert set(left.unique().tolist()) <= {-1, sides.index("left")}
        assert set(right.unique().tolist()) <= {-1, sides.index("right")}
        assert (left >= 0).any() and (right >= 0).any()


def test_a_token_that_two_cover_is_nobodys():
    clip = world.render_clip(world.sample_clip_spec(people(2), 3))
    first = clip.faces[0][0]
    both = world.Clip(clip.spec, clip.frames, ((first, first),) * len(clip.faces))
    assert (data._owners(both) == -1).all()
    alone = world.Clip(clip.spec, clip.frames, ((first, None),) * len(clip.faces))
    assert set(data._owners(alone).unique().tolist()) == {-1, 0}


def test_no_face_no_owner():
    clip = world.render_clip(world.sample_clip_spec(people(1), 1))
    empty = world.Clip(clip.spec, clip.frames, ((None,),) * len(clip.faces))
    assert torch.equal(data._owners(empty), torch.full((3, 4, 6), -1, dtype=torch.int8))


def test_shards_are_encoded_once_and_serve_training(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 3)
    files = [install.WEIGHTS / folder / name for folder, name in (install.FILES[k] for k in ("vae", "text_encoder"))]
    rows = data.prepare(tmp_path, *files, "val", 2)
    assert rows["latents"].shape == (6, 16, 3, HEIGHT // 8, WIDTH // 8)
    assert rows["references"].shape == (6, text.MAX_SUBJECTS, data.PHOTOS, 16, HEIGHT // 8, WIDTH // 8)
    assert rows["tokens"].shape == (6, data.CAPTIONS, text.LENGTH)
    specs = [spec for index in range(2) for spec, _ in data._specs("val", index)]
    assert rows["counts"].tolist() == [len(spec.identities) for spec in specs]
    for row, spec in zip(rows["owners"], specs, strict=True):
        assert torch.equal(row, data._owners(world.render_clip(spec)))
    monkeypatch.setattr(data, "_encode_shard", None)  # a second call only reads
    again = data.prepare(tmp_path, *files, "val", 2)
    assert all(torch.equal(again[k], rows[k]) for k in rows)
    count = int(rows["counts"][0])
    clean, references, *_ = dit.Batches(rows).draw(np.random.default_rng(0), 4, count)
    assert references.shape == (4, 16, count, HEIGHT // 8, WIDTH // 8) and torch.isfinite(clean).all()
