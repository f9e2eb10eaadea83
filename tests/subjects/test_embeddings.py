"""The faces of a cast as a file: what goes in comes out, and what does not fit is refused with its reason."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from idcrafter.subjects.embeddings import photo_sha256, restore_faces, save_faces
from idcrafter.subjects.faces import extract_faces
from idcrafter.subjects.subject import make_cast, make_subject
from support.painted_faces import PaintedFaceAnalyzer, blank, paint


class Facts(PaintedFaceAnalyzer):
    """Says of itself what a test wants."""

    def __init__(self, **facts):
        super().__init__()
        self.facts = {"name": "painted", "licence": "none needed", **facts}

    def describe(self):
        return self.facts


def cast_of(*similarities, name="Ada", mask=None):
    photos = torch.stack([paint(blank(), 1, 10, value) if value else blank() for value in similarities])
    bo = make_subject("Bo", "person", "", paint(blank(), 2, 40)[None])
    lamp = make_subject("lamp", "object", "", blank()[None])
    return make_cast([make_subject(name, "person", "", photos, mask), lamp, bo])


@pytest.fixture
def cast():
    """Ada with three photos, of which the second shows no face; a lamp; Bo."""
    return cast_of(1.0, 0.0, 0.6)


@pytest.fixture
def saved(cast, tmp_path):
    scored = cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "skip", "error"))
    path = tmp_path / "faces.safetensors"
    save_faces(scored, path)
    return scored, path


def rewrite(path, facts=None, metadata=None, **tensors):
    """The file with other facts, metadata or tensors."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if facts is not None:
        old["idcrafter-faces"] = json.dumps({**json.loads(old["idcrafter-faces"]), **facts})
    save_file({**kept, **tensors}, path, metadata={**old, **(metadata or {})})


def test_what_goes_in_comes_out(saved, cast):
    scored, path = saved
    analyzer = PaintedFaceAnalyzer()
    again = restore_faces(cast, path, analyzer)
    assert analyzer.calls == 0 and again.faces.analyzer is analyzer and cast.faces is None
    assert again.faces.warnings == scored.faces.warnings != ()
    for ours, theirs in zip(again.faces.subjects, scored.faces.subjects, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        for a, b in zip(ours.faces, theirs.faces, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a.embedding, b.embedding)
                np.testing.assert_array_equal(a.box, b.box)
                np.testing.assert_array_equal(a.landmarks, b.landmarks)
                assert a.score == pytest.approx(b.score, abs=1e-6)


def test_the_provenance(saved, cast):
    _, path = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("0.embeddings").shape == (2, 512) and file.get_tensor("2.mean").shape == (512,)
    assert list(metadata) == ["idcrafter-faces"]
    facts = json.loads(metadata["idcrafter-faces"])
    assert facts["version"] == 1
    assert facts["analyzer"] == {"name": "painted", "licence": "none needed"}
    ada, lamp, bo = facts["subjects"]
    assert (ada["name"], ada["kind"], ada["used"], lamp["used"], bo["used"]) == ("Ada", "person", [0, 2], [], [0])
    assert ada["photos"] == [photo_sha256(photo, None) for photo in cast.subjects[0].photos]
    assert len(set(ada["photos"])) == 3


def test_the_same_faces_make_the_same_file(saved, cast, tmp_path):
    scored, path = saved
    for i in range(8):
        again = tmp_path / f"{i}.safetensors"
        save_faces(scored if i % 2 else restore_faces(cast, path, PaintedFaceAnalyzer()), again)
        assert again.read_bytes() == path.read_bytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    photos=st.lists(st.sampled_from([0.0, 0.3, 0.65, 1.0]), min_size=1, max_size=6).filter(any),
    name=st.text(st.characters(categories=("Lu", "Ll", "Lo", "Nd")), max_size=12).map("Ada".__add__),
)
def test_any_cast_comes_back(photos, name, tmp_path):
    """Whatever the number of photos, which of them show a face, and the name, in any script."""
    cast = cast_of(*photos, name=name)
    scored = cast.with_faces(extract_faces(cast, PaintedFaceAnalyzer(), "skip", "error"))
    save_faces(scored, tmp_path / "any.safetensors")
    again = restore_faces(cast, tmp_path / "any.safetensors", PaintedFaceAnalyzer())
    ours, theirs = again.faces.subjects[0], scored.faces.subjects[0]
    np.testing.assert_array_equal(ours.mean, theirs.mean)
    assert [face is not None for face in ours.faces] == [value > 0 for value in photos]
    for a, b in zip(ours.faces, theirs.faces, strict=True):
        assert a is None or np.array_equal(a.embedding, b.embedding)


def test_a_write_that_fails_leaves_the_old_file(saved, tmp_path, monkeypatch):
    scored, path = saved
    before = path.read_bytes()

    def refuse(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_faces(scored, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_photo_digest_is_of_what_extraction_sees():
    photo = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(20, 30)
    same = photo_sha256(photo, mask)
    assert photo_sha256(photo.clone(), mask.clone()) == same
    assert photo_sha256(photo, None) != same
    assert photo_sha256(photo, mask + 0.4) == same != photo_sha256(photo, mask + 0.6)
    assert photo_sha256(photo.reshape(30, 20, 3), mask) != same
    other = photo.clone()
    other[3, 4, 1] += 2 / 255
    assert photo_sha256(other, mask) != same


def test_a_cast_without_faces(cast, tmp_path):
    with pytest.raises(ValueError, match="has no faces yet"):
        save_faces(cast, tmp_path / "x.safetensors")
    nobody = make_cast([make_subject("lamp", "object", "", blank()[None])])
    nobody = nobody.with_faces(extract_faces(nobody, PaintedFaceAnalyzer(), "error", "error"))
    with pytest.raises(ValueError, match="nothing to save"):
        save_faces(nobody, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_photos_masks_and_subjects_are_refused(saved):
    _, path = saved
    analyzer = PaintedFaceAnalyzer()
    with pytest.raises(ValueError, match="Subject 'Ada': photo 3 is not what 'faces.safetensors' was made from"):
        restore_faces(cast_of(1.0, 0.0, 0.7), path, analyzer)
    with pytest.raises(ValueError, match=r"Subject 'Ada': the number of photos \(2\)"):
        restore_faces(cast_of(1.0, 0.0), path, analyzer)
    with pytest.raises(ValueError, match="Subject 'Ada': photo 1"):
        restore_faces(cast_of(1.0, 0.0, 0.6, mask=torch.ones(48, 96)), path, analyzer)
    with pytest.raises(ValueError, match="holds the faces of Ada, lamp, Bo, but the cast is Eve, lamp, Bo"):
        restore_faces(cast_of(1.0, 0.0, 0.6, name="Eve"), path, analyzer)
    turned = make_cast(cast_of(1.0, 0.0, 0.6).subjects[::-1])
    with pytest.raises(ValueError, match="the cast is Bo, lamp, Ada"):
        restore_faces(turned, path, analyzer)


def test_another_recogniser_is_refused(cast, tmp_path):
    def part(name, digest):
        return {"name": name, "files": {"rec.onnx": digest}}

    made_by = Facts(recogniser=part("buffalo_l", "aa"), detector=part("buffalo_l", "bb"))
    path = tmp_path / "faces.safetensors"
    save_faces(cast.with_faces(extract_faces(cast, made_by, "skip", "error")), path)
    # Another detector, device or name: the embeddings compare.
    restore_faces(cast, path, Facts(recogniser=part("renamed", "aa"), detector=part("yunet", "cc"), provider="cuda"))
    with pytest.raises(ValueError, match="made by the face recogniser 'buffalo_l', .* uses 'auraface'"):
        restore_faces(cast, path, Facts(recogniser=part("auraface", "dd")))
    with pytest.raises(ValueError, match="uses 'buffalo_l' or another version of it"):
        restore_faces(cast, path, Facts(recogniser=part("buffalo_l", "ee")))
    with pytest.raises(ValueError, match="uses 'painted'"):
        restore_faces(cast, path, PaintedFaceAnalyzer())


def test_warnings_of_the_machine_stay_on_it(cast, tmp_path):
    path = tmp_path / "faces.safetensors"
    scored = cast.with_faces(extract_faces(cast, Facts(warnings=["slow there"]), "skip", "error"))
    assert scored.faces.warnings[0] == "slow there"
    save_faces(scored, path)
    again = restore_faces(cast, path, Facts(warnings=["slow here"])).faces.warnings
    assert again == ("slow here", *scored.faces.warnings[1:])


def test_files_that_hold_no_faces(cast, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"not a file of that kind")
    with pytest.raises(ValueError, match="'x.safetensors' cannot be read as safetensors"):
        restore_faces(cast, path, PaintedFaceAnalyzer())
    with pytest.raises(ValueError, match="'gone.safetensors' cannot be read"):
        restore_faces(cast, tmp_path / "gone.safetensors", PaintedFaceAnalyzer())
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="'x.safetensors' holds no faces of a cast"):
        restore_faces(cast, path, PaintedFaceAnalyzer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"version": 2}}, "is of version 2, this pack reads 1; update the pack"),
        ({"metadata": {"idcrafter-faces": "{"}}, "metadata of 'faces.safetensors' are damaged"),
        ({"metadata": {"idcrafter-faces": "[]"}}, "metadata of 'faces.safetensors' are damaged"),
        ({"facts": {"warnings": None}}, "metadata of 'faces.safetensors' are damaged"),
        ({"facts": {"subjects": [{"name": "Ada"}]}}, "metadata of 'faces.safetensors' are damaged"),
        ({"facts": {"subjects": [{"name": "Ada", "photos": ["a"], "used": [4]}]}}, "are damaged"),
        ({"0.mean": torch.zeros(512)}, "faces of 'Ada' in 'faces.safetensors' are damaged"),
        ({"0.embeddings": torch.ones(2, 512)}, "faces of 'Ada'"),
        ({"2.boxes": torch.zeros(2, 4)}, "faces of 'Bo'"),
        ({"2.scores": torch.tensor([float("nan")])}, "faces of 'Bo'"),
        ({"2.mean": torch.ones(4) / 2}, "faces of 'Bo'"),
    ],
)
def test_damaged_files(saved, cast, change, message):
    _, path = saved
    rewrite(path, **change)
    with pytest.raises(ValueError, match=message):
        restore_faces(cast, path, PaintedFaceAnalyzer())
