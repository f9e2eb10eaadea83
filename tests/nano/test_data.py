"""Whose body a token of the DiT shows."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from idcrafter.nano import install, world
from idcrafter.nano.recipes import data, dit, faces, text
from idcrafter.nano.world.crowd import CrowdSpec, render_crowd, sample_crowd_spec
from idcrafter.nano.world.scene import HEIGHT, WIDTH


def people(count):
    return tuple(world.sample_identity(n) for n in itertools.islice(world.numbers_of_split("val"), count))


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left")])
def test_tokens_belong_to_the_subject_on_their_side(sides):
    for seed in range(8):
        clip = world.render_clip(world.sample_clip_spec(people(2), seed, sides))
        owners = data._owners(clip)
        assert owners.shape == (3, HEIGHT // 16, data.WIDEST // 16)
        left, right = owners[..., :2], owners[..., WIDTH // 16 - 2 :]
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
    assert torch.equal(data._owners(empty), torch.full((3, 4, data.WIDEST // 16), -1, dtype=torch.int8))


def test_who_swaps_places_takes_the_tokens_along():
    spec = sample_crowd_spec(people(2), 4, "swap")
    owners = data._owners(render_crowd(spec))
    sides = {spec.places.index(place): slice(*((0, 2) if place == 0 else (4, 6))) for place in (0, 1)}
    for who, side in sides.items():
        assert set(owners[0, :, side].unique().tolist()) <= {-1, who}
        assert who in owners[0, :, side]
        # The last latent frame holds the end of the walk.
        assert 1 - who in owners[-1, :, side]


def test_shards_are_encoded_once_and_serve_training(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 3)
    files = [install.WEIGHTS / folder / name for folder, name in (install.FILES[k] for k in ("vae", "text_encoder"))]
    kind, pack, _ = install.PACK
    shutil.copytree(install.WEIGHTS / kind / pack, tmp_path / faces.PACK)
    rows = data.prepare(tmp_path, *files, "val", 2)
    assert rows["latents"].shape == (6, 16, 3, HEIGHT // 8, data.WIDEST // 8)
    assert rows["references"].shape == (6, text.MAX_SUBJECTS, data.PHOTOS, 16, HEIGHT // 8, data.WIDEST // 8)
    assert rows["faces"].shape == (6, text.MAX_SUBJECTS, data.PHOTOS, 512)
    assert rows["crops"].shape == (6, text.MAX_SUBJECTS, data.PHOTOS, (data.CROP // 8) ** 2, 16)
    assert rows["tokens"].shape == (6, data.CAPTIONS, text.LENGTH)
    specs = [spec for index in range(2) for spec, _ in data.specs("val", index)]
    assert rows["counts"].tolist() == [len(spec.identities) for spec in specs]
    for row, spec in zip(rows["owners"], specs, strict=True):
        render = render_crowd if isinstance(spec, CrowdSpec) else world.render_clip
        assert torch.equal(row, data._owners(render(spec)))
    for name in ("references", "faces", "crops"):
        given = rows[name].flatten(2).abs().amax(dim=-1) > 0
        assert torch.equal(given.sum(dim=1), rows["counts"])
    # Two photos of one subject are more alike than photos of two subjects.
    several = [
        row["faces"]
        for row in (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
        if row["counts"] > 1
    ]
    alike = [torch.nn.functional.cosine_similarity(row[0, 0].float(), row[0, 1].float(), dim=0) for row in several]
    other = [torch.nn.functional.cosine_similarity(row[0, 0].float(), row[1, 0].float(), dim=0) for row in several]
    assert torch.stack(alike).mean() > 0.3 + torch.stack(other).mean()
    monkeypatch.setattr(data, "_encode_shard", None)  # a second call only reads
    again = data.prepare(tmp_path, *files, "val", 2)
    assert all(torch.equal(again[k], rows[k]) for k in rows)
    count = int(rows["counts"][0])
    clean, references, *_ = dit.Batches(rows).draw(np.random.default_rng(0), 4, count)
    assert references.shape == (4, 16, count, HEIGHT // 8, data.width_of(count) // 8)
    assert torch.isfinite(clean).all()
