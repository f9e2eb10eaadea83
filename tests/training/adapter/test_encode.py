"""Clips as files of encodings, and these as batches."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.training.adapter.encode")


@pytest.fixture
def encodings(pack, encoded):
    return pack.submodule("idcrafter.training.adapter.encodings").Encodings(encoded.paths, seed=3)


@torch.no_grad()
def test_a_clip_is_what_the_models_make_of_it(pack, encoded, stack):
    """Through core's own path: latents, prompt and references as its sampler would hand them to the model."""
    loading = pack.submodule("idcrafter.training.dataset.loading")
    regions = pack.submodule("idcrafter.training.dataset.regions")
    shots = pack.submodule("idcrafter.conditioning.shot")
    clip = encoded.dataset.clips[0]
    found = load_file(encoded.paths[0])
    to_model = stack.model.model.process_latent_in
    latents = stack.vae.encode(loading.read_window(clip, 48, 32, 0, 5))
    torch.testing.assert_close(found["clean"], to_model(latents)[0])
    assert torch.equal(found["owners"], regions.token_owners(clip, 48, 32, 0, 5)) and (found["owners"] >= 0).any()
    prompt = stack.encode(clip.prompt("descriptions"))
    with safe_open(encoded.paths[0], "pt") as file:
        facts = file.metadata()
    context = prompt[0][0][0]
    assert int(facts["length"]) == len(context)
    torch.testing.assert_close(found["context"], context[: len(found["context"])])
    assert not context[len(found["context"]) :].any()
    shot = shots.Shot(prompt, prompt, stack.vae, loading.clip_cast(clip), 48, 32, 5)
    conditioned = encoded.encoder.rule.condition(shot)
    references = to_model(conditioned.positive[0][1]["time_dim_concat"])
    torch.testing.assert_close(found["cond.time_dim_concat"], references)
    assert facts["references"] == "[0, 1, 0, 1]" and "absent.time_dim_concat" not in found
    assert found["photos"].tolist() == [[1, 1], [1, 1]] and found["faces"].shape == (2, 2, 12)
    assert found["maps"].shape == (2, 2, 4, 16) and found["maps"].any()
    assert encoded.told == [(1, 3), (2, 3), (3, 3)]


def test_what_is_there_is_not_made_again(lib, encoded, monkeypatch):
    made = []
    monkeypatch.setattr(lib, "encode_clip", lambda clip, *rest: made.append(clip.line) or ({}, {}))
    assert lib.encode_dataset(encoded.dataset, encoded.encoder, encoded.folder) == encoded.paths
    assert made == []


def test_only_what_has_changed_is_made_anew(lib, encoded, encoder_of, stack):
    salt = encoded.encoder.digest()
    clip = encoded.dataset.clips[0]
    assert lib.clip_digest(clip, salt) == lib.clip_digest(dataclasses.replace(clip, line=7), salt)
    other = [
        lib.clip_digest(dataclasses.replace(clip, caption="Ada nods."), salt),
        lib.clip_digest(dataclasses.replace(clip, video=encoded.dataset.clips[1].video), salt),
        lib.clip_digest(dataclasses.replace(clip, subjects=clip.subjects[:1]), salt),
        *(
            lib.clip_digest(clip, encoder_of(**change).digest())
            for change in ({"width": 64}, {"crop": 32}, {"rule": None}, {"wording": "ordinals"})
        ),
    ]
    assert len({lib.clip_digest(clip, salt), *other}) == 8
    weight = next(stack.vae.first_stage_model.parameters())
    kept, before = weight.clone(), lib.weights_digest(stack.vae.first_stage_model)
    with torch.inference_mode():
        weight.mul_(1.5)
        changed = lib.weights_digest(stack.vae.first_stage_model)
        weight.copy_(kept)
    assert before != changed and before == lib.weights_digest(stack.vae.first_stage_model)


def test_a_stopped_run_leaves_whole_files_only(lib, encoded, tmp_path, monkeypatch):
    made = []

    def encode(clip, *rest):
        made.append(clip.line)
        return {"clean": torch.ones(2)}, {}

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(lib, "encode_clip", encode)
    with pytest.raises(KeyboardInterrupt):
        lib.encode_dataset(encoded.dataset, encoded.encoder, tmp_path, stop)
    assert made == [1, 2] and len(list(tmp_path.rglob("*.safetensors"))) == 3 and not list(tmp_path.rglob("*.part"))
    lib.encode_dataset(encoded.dataset, encoded.encoder, tmp_path)
    assert made == [1, 2, 3]


def test_processes_share_the_work(lib, encoded, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        lib, "encode_clip", lambda clip, *rest: made.append(clip.line) or ({"clean": torch.ones(1)}, {})
    )
    for part in ((1, 2), (0, 2)):
        lib.encode_dataset(encoded.dataset, encoded.encoder, tmp_path, part=part)
    assert made == [2, 1, 3]


def test_leading_references_are_part_of_the_clip(lib, pack, encoded, encoder_of, model_of, stack):
    """VACE: the model makes its references, too, and nobody asks whose their tokens are."""
    encoder = encoder_of("vace", model=model_of("vace"), vae=stack.vae)
    tensors, facts = lib.encode_clip(encoded.dataset.clips[0], encoder, stack.encode(""))
    trim = int(facts["trim"])
    assert trim == 4 and tensors["clean"].shape[1] == trim + 2 and (tensors["owners"][:trim] == -1).all()
    assert tensors["cond.vace_context"].shape[3] == trim + 2 and facts["constants"] == '{"vace_strength": [1.0]}'
    assert torch.equal(tensors["absent.vace_context"], tensors["cond.vace_context"])
    leading = tensors["cond.vace_context"][0, 0, :16, :trim]
    torch.testing.assert_close(tensors["clean"][:, :trim], leading, rtol=1e-3, atol=1e-3)


def test_models_that_cannot_be_trained_on_are_refused(encoder_of):
    with pytest.raises(ValueError, match="RefAlign rule changes the model"):
        encoder_of("refalign")
    with pytest.raises(ValueError, match="multiple of 16"):
        encoder_of(width=50)


def test_batches_depend_on_the_step_alone(encodings):
    first, again, other = (encodings.draw(n, 2, drop_text=0.3, drop_people=0.3) for n in (5, 5, 6))
    assert torch.equal(first.clean, again.clean) and torch.equal(first.photos, again.photos)
    assert any(not torch.equal(getattr(first, k), getattr(other, k)) for k in ("clean", "photos", "context"))
    assert encodings.widths == (12, 16, 32)


def test_parts_are_rows_of_the_whole(encodings):
    for n in range(4):
        whole = encodings.draw(n, 4, drop_text=0.3, drop_people=0.3)
        for i in range(2):
            part = encodings.draw(n, 2, (i, 2), drop_text=0.3, drop_people=0.3)
            for name in ("clean", "context", "faces", "photos", "owners"):
                assert torch.equal(getattr(part, name), getattr(whole, name)[2 * i : 2 * i + 2]), name


def test_every_subject_keeps_a_photo(encodings):
    counts = {int(count) for n in range(12) for count in encodings.draw(n, 2).photos.sum(dim=2).flatten()}
    assert counts == {1, 2}


def test_nothing_is_dropped_unless_it_shall_be(encodings):
    for n in range(4):
        batch = encodings.draw(n, 2)
        assert batch.conds["time_dim_concat"].flatten(1).any(dim=1).all() and batch.context.flatten(1).any(dim=1).all()
        lost = encodings.draw(n, 2, drop_text=1.0, drop_people=1.0)
        words = len(encodings.empty)
        assert torch.equal(lost.context[:, :words], encodings.empty.expand(2, -1, -1))
        assert not lost.context[:, words:].any()
        assert not lost.photos.any() and not lost.conds["time_dim_concat"].any() and (lost.owners == -1).all()


def test_clips_of_other_shapes_are_never_in_one_batch(pack, lib, encoded, tmp_path):
    tensors = load_file(encoded.paths[0])
    with safe_open(encoded.paths[0], "pt") as file:
        facts = file.metadata()
    short = {**tensors, "clean": tensors["clean"][:, :1], "owners": tensors["owners"][:1]}
    lib._save(short, tmp_path / "short.safetensors", facts)
    lib._save(
        load_file(encoded.paths[0].with_name("empty.safetensors")), tmp_path / "empty.safetensors", {"length": "24"}
    )
    encodings = pack.submodule("idcrafter.training.adapter.encodings").Encodings(
        [tmp_path / "short.safetensors", *encoded.paths], seed=0
    )
    assert sorted(map(len, encodings.buckets)) == [1, 3]
    assert {encodings.draw(n, 2).clean.shape[2] for n in range(16)} == {1, 2}
