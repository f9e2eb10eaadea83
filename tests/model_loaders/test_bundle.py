"""Bundles: a manifest is checked whole before anything is loaded."""

import copy
import hashlib
import json
import logging

import pytest


@pytest.fixture(scope="module")
def bundles(pack):
    return pack.submodule("model_loaders.bundle")


@pytest.fixture
def folders(monkeypatch, tiny_files):
    """The model folders of the tiny files, and an insightface folder with one (stand-in) pack."""
    import folder_paths

    faces = tiny_files.root / "insightface" / "models" / "tiny"
    faces.mkdir(parents=True, exist_ok=True)
    (faces / "det.onnx").write_bytes(b"detector")
    for name in ("diffusion_models", "vae", "text_encoders", "insightface"):
        entry = ([str(tiny_files.root / name)], {".safetensors", ".onnx"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, entry)
    return tiny_files.root


@pytest.fixture
def manifest(folders, tiny_files):
    return {
        "format": "idcrafter-bundle",
        "version": 1,
        "name": "Tiny",
        "description": "for tests",
        "licence": "Apache-2.0",
        "sampling": {"shift": 3.0},
        "model": {"folder": "diffusion_models", "file": "tiny_dit.safetensors"},
        "text_encoder": {"folder": "text_encoders", "file": "tiny_umt5.safetensors", "type": "wan"},
        "vae": {"folder": "vae", "file": "tiny_vae.safetensors", "licence": "MIT"},
        "faces": {"folder": "insightface", "file": "models/tiny", "det_size": 128, "licence": "research only"},
    }


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "tiny.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def face_calls(bundles, monkeypatch):
    calls = []
    monkeypatch.setattr(
        bundles, "load_face_analyzer", lambda folder, **options: calls.append((folder, options)) or "faces"
    )
    return calls


def test_everything_is_loaded_and_licences_are_logged(bundles, manifest, write, face_calls, folders, caplog):
    with caplog.at_level(logging.INFO):
        loaded = bundles.load_bundle(write(manifest))
    assert loaded.model.get_model_object("model_sampling").shift == 3.0
    assert loaded.model.get_attachment("idcrafter")["licence"] == "Apache-2.0"
    assert loaded.clip.tokenize("Ada") and loaded.vae.latent_channels == 16
    assert loaded.face_analyzer == "faces"
    assert face_calls == [(folders / "insightface" / "models" / "tiny", {"licence": "research only", "det_size": 128})]
    for line in ("model: tiny_dit.safetensors, licence: Apache-2.0", "vae: tiny_vae.safetensors, licence: MIT"):
        assert line in caplog.text


def test_the_family_of_a_model_whose_name_does_not_tell(bundles, manifest, write, face_calls):
    manifest["model"]["family"] = "phantom"
    assert bundles.load_bundle(write(manifest)).model.get_attachment("idcrafter")["family"] == "phantom"


def test_without_a_shift_the_model_keeps_cores(bundles, manifest, write, face_calls):
    del manifest["sampling"]
    assert bundles.load_bundle(write(manifest)).model.get_model_object("model_sampling").shift == 8.0


def test_all_missing_files_are_listed_before_anything_is_loaded(bundles, manifest, write, face_calls, folders):
    manifest["model"].update(file="gone.safetensors", download="hf download org/gone")
    manifest["faces"].update(file="models/none", download="unzip none.zip")
    with pytest.raises(FileNotFoundError) as error:
        bundles.load_bundle(write(manifest))
    message = str(error.value)
    assert "The bundle 'Tiny' is not complete, 2 missing" in message
    for part in (
        "'gone.safetensors'",
        "hf download org/gone",
        "'models/none'",
        "unzip none.zip",
        str(folders / "insightface"),
    ):
        assert part in message
    assert "tiny_vae" not in message and not face_calls


def test_digests_of_files_and_of_a_folder(bundles, manifest, write, face_calls, tiny_files):
    digest = hashlib.sha256(tiny_files.vae.read_bytes()).hexdigest()
    manifest["vae"]["sha256"] = digest
    manifest["faces"]["sha256"] = {"det.onnx": hashlib.sha256(b"detector").hexdigest()}
    bundles.load_bundle(write(manifest))
    manifest["faces"]["sha256"]["rec.onnx"] = "0" * 64
    with pytest.raises(FileNotFoundError, match=r"models/tiny/rec\.onnx"):
        bundles.load_bundle(write(manifest))
    manifest["faces"]["sha256"] = {"det.onnx": "0" * 64}
    with pytest.raises(ValueError, match="det.onnx' has the sha256"):
        bundles.load_bundle(write(manifest))
    manifest["vae"]["sha256"] = "1" * 64
    with pytest.raises(ValueError, match=f"tiny_vae.safetensors' has the sha256 {digest}, but 1111"):
        bundles.load_bundle(write(manifest))


def test_a_file_of_the_wrong_kind_is_named(bundles, manifest, write, face_calls):
    manifest["vae"].update(folder="diffusion_models", file="tiny_dit.safetensors")
    with pytest.raises(ValueError, match="'tiny_dit.safetensors' holds .*not a Wan 2.1 VAE"):
        bundles.load_bundle(write(manifest))


def drop(*path):
    def edit(data):
        for name in path[:-1]:
            data = data[name]
        del data[path[-1]]

    return edit


def put(*path_and_value):
    *path, value = path_and_value

    def edit(data):
        for name in path[:-1]:
            data = data[name]
        data[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (drop("format"), "'format' is missing"),
        (put("format", "zip"), "'format' must be 'idcrafter-bundle'"),
        (put("version", 2), "'version' is 2; .* update the pack"),
        (put("version", True), "'version' is True"),
        (drop("name"), "'name' is missing"),
        (put("name", None), "'name' is missing"),
        (put("name", " "), "'name' must be a text"),
        (drop("vae"), "'vae' is missing"),
        (put("vae", []), "vae must be a JSON object"),
        (drop("vae", "file"), "'vae.file' is missing"),
        (put("vae", "file", 3), "'vae.file' must be a text"),
        (put("vae", "file", "../../etc/passwd"), "'vae.file' is refused: .*leaves its model folder"),
        (put("vae", "folder", "nowhere"), "'vae.file' is refused: .*no model folder 'nowhere'"),
        (put("vae", "sha256", "abc"), "'vae.sha256' must be 64 hex digits"),
        (put("faces", "sha256", {"../x": "0" * 64}), "'faces.sha256' is refused"),
        (put("sampling", "shift", -1), "'sampling.shift' must be a number above 0"),
        (put("sampling", "shift", "3"), "'sampling.shift' must be a number above 0"),
        (put("sampling", 3), "sampling must be a JSON object"),
        (put("model", "family", "kling"), "'model.family' must be one of auto, wan-t2v, phantom"),
        (put("faces", "det_size", 100), "'faces.det_size' must be a positive multiple of 32"),
        (put("text_encoder", "type", "sdxl"), "'text_encoder.type' must be 'wan'"),
    ],
)
def test_schema_errors_name_the_field(bundles, manifest, edit, field):
    edit(manifest)
    with pytest.raises(ValueError, match=field) as error:
        bundles.parse_bundle(manifest, "tiny.json")
    assert "tiny.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '"x"'])
def test_what_is_no_json_object(bundles, write, text):
    with pytest.raises(ValueError, match="tiny.json"):
        bundles.read_bundle(write(text))


def test_a_manifest_that_is_not_text(bundles, tmp_path):
    path = tmp_path / "tiny.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="'tiny.json' is not valid JSON"):
        bundles.read_bundle(path)


def test_unknown_fields_are_named_and_ignored(bundles, manifest, caplog):
    manifest["colour"] = 1
    manifest["vae"]["sha265"] = "0" * 64
    manifest["sampling"]["steps"] = 20
    expected = copy.deepcopy(manifest)
    bundle = bundles.parse_bundle(manifest, "tiny.json")
    assert bundle.entries["vae"].sha256 == {} and bundle.shift == 3.0
    assert manifest == expected
    for name in ("'colour'", "'vae.sha265'", "'sampling.steps'"):
        assert f"unknown field {name} is ignored" in caplog.text


def test_the_fingerprint_follows_the_files(bundles, manifest, write, tiny_files):
    before = bundles.fingerprint(write(manifest))
    assert bundles.fingerprint(write(manifest)) == before
    weights = tiny_files.vae.read_bytes()
    tiny_files.vae.write_bytes(weights)
    touched = bundles.fingerprint(write(manifest))
    assert touched != before
    manifest["sampling"]["shift"] = 4.0
    assert bundles.fingerprint(write(manifest)) != touched
    manifest["vae"]["file"] = "gone.safetensors"
    assert bundles.fingerprint(write(manifest))
