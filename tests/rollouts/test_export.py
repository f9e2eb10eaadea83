"""Other trainers' formats, and the command line."""

import json

import numpy as np
import pytest
import torch

from idcrafter.rollouts import dataset, export
from idcrafter.rollouts.__main__ import main
from idcrafter.rollouts.conditioning import pack
from support.rollouts import LICENCE, make_part, make_samples

SIZE = (16, 3, 4, 6)  # [C, T, h, w]: 9 frames of 48x32


def decode(samples):
    """Frames whose brightness tells the latent's mean."""
    assert samples.shape[0] == 1 and samples.dtype == torch.float32
    level = float(samples.mean()) * 4 + 0.5
    return torch.full((9, 32, 48, 3), level).clamp(0, 1)


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def rollouts(store):
    """Two groups, the first with its conditioning and a photo."""
    text = torch.zeros(1, 20, 6)
    text[:, :7] = torch.randn(1, 7, 6)
    plan, tensors = pack({"positive": [[text, {}]]})
    subjects = [{"name": "Ada", "kind": "person", "photos": ["f" * 64, "0" * 64]}]
    store.save(make_part(shape=SIZE, prompt="Ada w\u00e4ves.", plan=plan, subjects=subjects), tensors)
    store.save(make_part(shape=SIZE, prompt="Bo jumps.", totals=(0.7, 0.2), plan=plan), tensors)
    store.save_photo("f" * 64, b"a photo")
    return dataset.load(store.folder), text


def by_prompt(records, key=lambda record: record["prompt"]):
    return {key(record): record for record in records}


def test_preference_pairs_point_into_the_group_files(rollouts, tmp_path):
    loaded, _ = rollouts
    assert export.export_preference_pairs(loaded, tmp_path / "x" / "pairs.jsonl") == 2
    pair = by_prompt(lines(tmp_path / "x" / "pairs.jsonl"))["Ada w\u00e4ves."]
    assert pair["margin"] == pytest.approx(0.8) and pair["licences"] == [LICENCE["licence"]]
    assert (pair["chosen"]["seed"], pair["rejected"]["seed"]) == (2, 0)
    assert pair["chosen"]["rewards"] == {"identity": 0.9, "motion": 2.0}
    import safetensors

    with safetensors.safe_open(loaded.folder / pair["chosen"]["file"], framework="pt") as file:
        assert torch.equal(file.get_tensor(pair["chosen"]["tensor"]), make_samples(shape=SIZE)[2].x0.bfloat16())


@pytest.mark.parametrize("supervision", ["preference", "demonstration"])
def test_flow_factory_records(rollouts, tmp_path, supervision):
    av = pytest.importorskip("av")
    loaded, _ = rollouts
    assert export.export_flow_factory(loaded, tmp_path, decode, 8, supervision) == 2
    record = by_prompt(lines(tmp_path / "train.jsonl"), lambda r: r["input"]["prompt"])["Ada w\u00e4ves."]
    assert set(record) == {"schema_version", "input", "supervision", "metadata"} and record["schema_version"] == 2
    photo = {"type": "image", "path": f"images/{'f' * 64}.png"}  # the one that was kept
    assert record["input"] == {"prompt": "Ada w\u00e4ves.", "media": [photo]}
    assert (tmp_path / photo["path"]).read_bytes() == b"a photo"
    outputs = dict(record["supervision"])
    assert outputs.pop("type") == supervision
    assert set(outputs) == ({"chosen", "rejected"} if supervision == "preference" else {"target"})
    (media,) = outputs.get("chosen", outputs.get("target"))["media"]
    assert media["type"] == "video" and media["fps"] == 8.0 and set(media) == {"type", "path", "fps"}
    with av.open(str(tmp_path / media["path"])) as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert stream.average_rate == 8 and len(frames) == 9 and frames[0].shape == (32, 48, 3)
    level = float(decode(make_samples(shape=SIZE)[2].x0.bfloat16().float()[None]).mean())
    assert abs(np.mean(frames) / 255 - level) < 0.02


def test_leading_references_are_no_part_of_the_video(store, tmp_path, monkeypatch):
    part = make_part(shape=SIZE)
    part.facts["shot"]["leading"] = 1
    from idcrafter.rollouts.digests import digest

    part.facts["checksum"] = digest({k: v for k, v in part.facts.items() if k != "checksum"})
    store.save(part)
    lengths = []
    monkeypatch.setattr(export, "write_video", lambda *_: None)
    export.export_flow_factory(
        dataset.load(store.folder), tmp_path, lambda samples: lengths.append(samples.shape[2]), 8
    )
    assert lengths == [2, 2]


def test_fastvideo_rows_read_as_its_loader_reads_them(rollouts, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    loaded, text = rollouts
    assert export.export_fastvideo(loaded, tmp_path, 16, best=2) == 4
    rows = parquet.read_table(tmp_path / "rollouts_00000.parquet").to_pylist()
    row = next(row for row in rows if row["caption"] == "Ada w\u00e4ves.")
    latent = np.frombuffer(row["vae_latent_bytes"], np.float32).reshape(row["vae_latent_shape"])
    assert np.array_equal(latent, make_samples(shape=SIZE)[2].x0.bfloat16().float().numpy())
    embedding = np.frombuffer(row["text_embedding_bytes"], np.float32).reshape(row["text_embedding_shape"])
    assert embedding.shape == (7, 6) and np.array_equal(embedding, text[0, :7].numpy())
    assert (row["width"], row["height"], row["num_frames"], row["fps"]) == (48, 32, 3, 16.0)
    assert row["duration_sec"] == 9 / 16 and row["media_type"] == "video" and row["vae_latent_dtype"] == "float32"


def test_fastvideo_needs_pyarrow_and_conditioning(store, fill, tmp_path, monkeypatch):
    fill(1)
    loaded = dataset.load(store.folder)
    if export.index.available():
        with pytest.raises(ValueError, match="stored without its conditioning"):
            export.export_fastvideo(loaded, tmp_path, 16)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(RuntimeError, match="pip install pyarrow"):
        export.export_fastvideo(loaded, tmp_path, 16)


def test_nothing_to_export(store, tmp_path):
    store.save(make_part(totals=(0.3, 0.3)))
    with pytest.raises(ValueError, match="There is no group to export"):
        export.export_preference_pairs(dataset.load(store.folder), tmp_path / "x.jsonl")


# The command line -----------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_report_verify_repair_prune(store, fill, capsys):
    parts = fill(3)
    assert run(capsys, store.folder, "report")[0] == 0
    path = store.path(parts[1].name)
    path.write_bytes(path.read_bytes()[:-9])
    code, text = run(capsys, store.folder, "verify")
    assert code == 1 and json.loads(text)["groups"] == 2
    assert json.loads(text)["damages"][0]["file"] == f"groups/{path.name}"
    assert run(capsys, store.folder, "repair")[0] == 0 and run(capsys, store.folder, "verify")[0] == 0
    code, text = run(capsys, store.folder, "prune", "--gib", (store.size() - 1) / 2**30)
    assert code == 0 and len(json.loads(text)["deleted"]) == 1


def test_export_by_command(store, fill, capsys, tmp_path):
    fill(2)
    code, text = run(capsys, store.folder, "export", "pairs", "--out", tmp_path / "p.jsonl")
    assert code == 0 and json.loads(text)["exported"] == 2 and len(lines(tmp_path / "p.jsonl")) == 2
    code, text = run(capsys, store.folder, "export", "fastvideo", "--out", tmp_path)
    assert code == 1 and "error" in json.loads(text)


def test_wrong_usage(tmp_path, capsys):
    code, text = run(capsys, tmp_path, "verify")
    assert code == 1 and "There are no rollouts" in json.loads(text)["error"]
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path), "shred"])
    assert stop.value.code == 2


def test_rollouts_work_without_comfyui(store, fill, tmp_path):
    import subprocess
    import sys

    fill(1)
    code = (
        "import sys; sys.modules['comfy'] = sys.modules['folder_paths'] = None\n"
        "from idcrafter.rollouts.__main__ import main\n"
        f"code = main([{str(store.folder)!r}, 'report'])\n"
        "heavy = {'av', 'scipy', 'cv2', 'transformers'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy or [m for m in sys.modules if 'idcrafter.sampling' in m]))"
    )
    root = dataset.__file__.rsplit("idcrafter", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "1 groups" in done.stdout, done.stderr
