"""The main job on a real server with a tiny bundle: whole, interrupted, continued, and refused with reasons."""

import copy
import json
import time

import pytest
import safetensors
from PIL import Image

from support import onnx_faces
from tools.client import GraphError, Interrupted
from tools.server import Server

STEPS = 60


@pytest.fixture(scope="module")
def server(environment, tiny_files, tmp_path_factory):
    root = tiny_files.root
    onnx_faces.write_pack(root / "insightface" / "models" / "tiny")
    manifest = {
        "format": "idcrafter-bundle", "version": 1, "name": "Tiny", "licence": "Apache-2.0", "sampling": {"shift": 3.0},
        "model": {"folder": "diffusion_models", "file": "tiny_dit.safetensors"},
        "text_encoder": {"folder": "text_encoders", "file": "tiny_umt5.safetensors"},
        "vae": {"folder": "vae", "file": "tiny_vae.safetensors"},
        "faces": {"folder": "insightface", "file": "models/tiny", "det_size": 128},
    }  # fmt: skip
    broken = {**manifest, "vae": {"folder": "vae", "file": "none.safetensors", "download": "fetch none"}}
    (root / "idcrafter_bundles").mkdir(exist_ok=True)
    (root / "idcrafter_bundles" / "tiny.json").write_text(json.dumps(manifest))
    (root / "idcrafter_bundles" / "broken.json").write_text(json.dumps(broken))
    config = tmp_path_factory.mktemp("config") / "extra_model_paths.yaml"
    folders = ("diffusion_models", "text_encoders", "vae", "insightface", "idcrafter_bundles")
    config.write_text("tiny:\n" + "".join(f"  {name}: {json.dumps(str(root / name))}\n" for name in folders))
    base = tmp_path_factory.mktemp("server")
    server = Server(environment, base, cpu=True, extra=("--extra-model-paths-config", str(config)))
    for name, blue in (("ada", 0.1), ("bo", 0.9)):
        pixels = (onnx_faces.picture((1, 1, blue)) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(base / "input" / f"{name}.png")
    with server.start():
        yield server


@pytest.fixture
def graph():
    def node(kind, /, **inputs):
        return {"class_type": kind, "inputs": inputs}

    def person(name, image):
        return node("IDCrafterSubject", name=name, kind="person", description=f"{name}'s look", images=[image, 0])

    return {
        "bundle": node("IDCrafterLoadBundle", bundle="tiny.json"),
        "photo1": node("LoadImage", image="ada.png"),
        "photo2": node("LoadImage", image="bo.png"),
        "ada": person("Ada", "photo1"),
        "bo": person("Bo", "photo2"),
        "cast": node("IDCrafterCast", **{"subjects.subject0": ["ada", 0], "subjects.subject1": ["bo", 0]}),
        "faces": node("IDCrafterExtractFaces", cast=["cast", 0], face_analyzer=["bundle", 3], no_face="error",
                      several_faces="error"),
        "prompt": node("IDCrafterRelate", cast=["cast", 0], action="Ada waves at Bo.", wording="ordinals"),
        "positive": node("CLIPTextEncode", clip=["bundle", 1], text=["prompt", 0]),
        "negative": node("CLIPTextEncode", clip=["bundle", 1], text=""),
        "video": node("IDCrafterCastToVideo", positive=["positive", 0], negative=["negative", 0], vae=["bundle", 2],
                      cast=["cast", 0], width=64, height=48, length=5, rule="auto"),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["bundle", 0], scheduler="simple", steps=4, denoise=1.0),
        "takes": node("IDCrafterSampleTakes", model=["bundle", 0], sampler=["sampler", 0], sigmas=["sigmas", 0],
                      latent_image=["video", 3], seed=7, takes=4, positive=["video", 0], negative_text=["video", 1],
                      negative_images=["video", 2], cfg_text=3.0, cfg_images=2.0),
        "score": node("IDCrafterScoreTakes", takes=["takes", 0], vae=["bundle", 2], cast=["faces", 0], frames=2),
        "pick": node("IDCrafterPickTake", takes=["takes", 0], scorecard=["score", 0], vae=["bundle", 2], take=-1,
                     filename_prefix="reports/run"),
    }  # fmt: skip


def report_of(server, entry):
    (file,) = [f for f in server.client.files(entry) if f["filename"].endswith(".json")]
    return json.loads(server.client.download(file))


def stored(server):
    return set((server.base / "output" / "idcrafter" / "takes").glob("*/*.safetensors"))


def test_the_whole_job(server, graph):
    report = report_of(server, server.client.run(graph))
    assert [take["seed"] for take in report["takes"]] == [7, 8, 9, 10]
    assert report["best"] in range(4)
    assert [subject["name"] for subject in report["subjects"]] == ["Ada", "Bo"]
    assert report["model"]["file"] == "tiny_dit.safetensors" and report["model"]["licence"] == "Apache-2.0"
    assert report["sampling"]["sampler"] == "euler" and report["sampling"]["steps"] == 4


def test_an_interrupt_in_take_3_of_4(server, graph):
    """Cancel during take 3; the same graph queued again keeps takes 1 and 2 and samples the rest."""
    graph["sigmas"]["inputs"]["steps"] = STEPS
    before = stored(server)
    prompt = server.client.queue(graph)
    deadline = time.monotonic() + 600
    while len(new := stored(server) - before) < 2:
        assert time.monotonic() < deadline and server.client.history(prompt) is None
        time.sleep(0.02)
    server.client.interrupt(prompt)
    with pytest.raises(Interrupted):
        server.client.wait(prompt)
    assert sorted(path.stem for path in new) == ["7", "8"]
    times = {path: path.stat().st_mtime_ns for path in new}
    (folder,) = {path.parent for path in new}
    assert sorted(path.name for path in folder.iterdir()) == ["7.safetensors", "8.safetensors"]

    report = report_of(server, server.client.run(graph))
    assert [take["resumed"] for take in report["takes"]] == [True, True, False, False]
    assert {path: path.stat().st_mtime_ns for path in new} == times

    graph["takes"]["inputs"].update(seed=9, takes=3)
    report = report_of(server, server.client.run(graph))
    assert [(take["seed"], take["resumed"]) for take in report["takes"]] == [(9, True), (10, True), (11, False)]
    with safetensors.safe_open(folder / "11.safetensors", "pt") as file:
        assert file.get_tensor("samples").shape == (1, 16, 2, 6, 8)


def test_a_guider_instead_of_a_model(server, graph):
    guided = copy.deepcopy(graph)
    guided["guider"] = {
        "class_type": "DualCFGGuider",
        "inputs": {
            "model": ["bundle", 0], "cond1": ["video", 0], "cond2": ["video", 1], "negative": ["video", 2],
            "cfg_conds": 3.0, "cfg_cond2_negative": 2.0, "style": "regular",
        },
    }  # fmt: skip
    guided["takes"]["inputs"]["model"] = ["guider", 0]
    with pytest.raises(GraphError, match="disconnect positive, negative_text, negative_images"):
        server.client.run(guided)
    for name in ("positive", "negative_text", "negative_images"):
        del guided["takes"]["inputs"][name]
    ours, theirs = report_of(server, server.client.run(graph)), report_of(server, server.client.run(guided))
    assert [t["latent_sha256"] for t in theirs["takes"]] == [t["latent_sha256"] for t in ours["takes"]]


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("bundle", {"bundle": "broken.json"}, "'none.safetensors' is missing .* Get it with: fetch none"),
        ("bo", {"name": "ADA"}, r"Subjects 1 \('Ada'\) and 2 \('ADA'\) have the same name"),
        ("video", {"length": 6}, "length is 6 frames"),
        ("takes", {"positive": None}, "With a MODEL, connect 'positive'"),
    ],
)
def test_errors_reach_the_client(server, graph, node, inputs, message):
    for name, value in inputs.items():
        if value is None:
            del graph[node]["inputs"][name]
        else:
            graph[node]["inputs"][name] = value
    with pytest.raises(GraphError, match=message):
        server.client.run(graph)
