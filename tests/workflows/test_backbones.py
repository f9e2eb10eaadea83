"""The graphs of the real models on a real server, with tiny files of the same layouts in place of the released ones.

Only names of files are exchanged, and the numbers that a CPU cannot wait for: pixels, frames, steps, takes.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from support import tiny_families, tiny_models, video
from tools.client import GraphError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
# Released file -> (family, how its stand-in differs from the tiny one of tests.support).
DITS = {
    "Phantom-Wan-1_3B_fp16.safetensors": ("phantom", {}),
    "wan2.1_vace_14B_fp16.safetensors": ("vace", {}),
    "humo_17B_fp8_e4m3fn.safetensors": ("humo", {"in_dim": 36}),
    "Wan21_SkyReelsV3-R2V_fp8_scaled_mixed.safetensors": ("skyreels-v3", {"seed": 1}),
    "wan2.2_bernini_r_high_noise_fp8_scaled.safetensors": ("bernini", {"seed": 2}),
    "wan2.2_bernini_r_low_noise_fp8_scaled.safetensors": ("bernini", {"seed": 3}),
}
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
# A detector is known by the name of its files; this one finds the puppets of the photos.
FACES = {"yunet": "idcrafter_nano"}
SIZES = {"width": 64, "height": 48, "length": 9, "steps": 4, "takes": 2}
TITLES = {
    "phantom_two_people": "Phantom",
    "vace_three_references": "VACE",
    "humo_cast": "HuMo",
    "skyreels_v3": "SkyReels-V3",
    "bernini_cast": "Bernini",
    "wan_regions": "Phantom",
}


@pytest.fixture(scope="module")
def names(comfyui_server) -> dict[str, str]:
    """{released file: tiny file}, the tiny ones written to where the server looks."""
    folder = comfyui_server.base / "more_models"
    names = dict(FACES)
    for real, (family, options) in DITS.items():
        names[real] = f"tiny_{real.split('_fp')[0]}.safetensors"
        tiny_families.write(folder / "diffusion_models" / names[real], family, **options)
    names |= {TEXT_ENCODER: "tiny_umt5.safetensors", VAE: "tiny_wan_vae.safetensors"}
    tiny_models.write_umt5(folder / "text_encoders" / names[TEXT_ENCODER])
    tiny_models.write_vae(folder / "vae" / names[VAE])
    return names


@pytest.fixture
def graph_of(names):
    """`graph_of("humo_cast")`: the graph of the repository with other files and smaller numbers."""

    def shrunk(name, value, steps):
        if isinstance(value, list):
            return value
        if name in ("start_at_step", "end_at_step") and 0 < value <= steps:
            return SIZES["steps"] // 2
        return SIZES.get(name, names.get(value, value))

    def graph_of(name):
        graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))
        for node in graph.values():
            inputs = node["inputs"]
            node["inputs"] = {key: shrunk(key, value, inputs.get("steps", 0)) for key, value in inputs.items()}
        return graph

    return graph_of


@pytest.fixture
def render(written, comfyui_server):
    """Run a graph; its video [T, H, W, 3] with the rate, its files by title of the node, and what the log says."""

    def render(graph):
        before = comfyui_server.log.stat().st_size
        _, found = written(graph)
        files = {graph[node]["_meta"]["title"]: paths for node, paths in found.items()}

        def file(suffix):
            (path,) = (path for paths in files.values() for path in paths if path.suffix == suffix)
            return path

        clip = file(".mp4")
        return SimpleNamespace(
            files=files,
            file=file,
            clip=video.frames(clip),
            rate=video.probe(clip)["r_frame_rate"],
            log=comfyui_server.log.read_bytes()[before:].decode("utf-8", "replace"),
        )

    return render


def inputs_of(graph, kind):
    return [node["inputs"] for node in graph.values() if node["class_type"] == kind]


def only(graph, kind):
    (inputs,) = inputs_of(graph, kind)
    return inputs


@pytest.mark.parametrize("name", TITLES)
def test_graph_runs_with_nothing_but_other_files(name, graph_of, render):
    """And it listens to its references: with two photos exchanged it is another video."""
    graph = graph_of(name)
    done = render(graph)
    assert done.clip.shape == (9, 48, 64, 3) and done.rate == f"{only(graph, 'CreateVideo')['fps']:g}/1"
    assert done.clip.std() > 5
    pictures = [f"photo 1 of subject '{subject['name']}'" for subject in inputs_of(graph, "IDCrafterSubject")]
    if name == "phantom_two_people":
        pictures += [f"the face in {picture}" for picture in pictures]
        check_report(json.loads(done.file(".json").read_text("utf-8")))
    assert f"References by the {TITLES[name]} rule: {', '.join(pictures)}." in done.log
    shown = [np.asarray(Image.open(path)) for path in done.files["The references, as the model gets them"]]
    assert len(shown) == len(pictures) and all(picture.std() > 20 for picture in shown)
    photos = inputs_of(graph, "LoadImage")
    photos[0]["image"], photos[1]["image"] = photos[1]["image"], photos[0]["image"]
    assert not np.array_equal(render(graph).clip, done.clip)


def check_report(report):
    """The best take comes with it."""
    assert report["model"]["family"] == "phantom" and report["model"]["licence"].startswith("Apache-2.0")
    assert [take["seed"] for take in report["takes"]] == [1, 2]
    assert [subject["name"] for subject in report["subjects"]] == ["Ada", "Bo"]


def test_without_the_binding_it_is_another_video(graph_of, render):
    bound = graph_of("wan_regions")
    free = json.loads(json.dumps(bound))
    only(free, "IDCrafterBindRegions")["strength"] = 0.0
    assert not np.array_equal(render(bound).clip, render(free).clip)


def test_a_rule_of_another_model_is_refused(graph_of, client):
    graph = graph_of("humo_cast")
    only(graph, "IDCrafterCastToVideo")["rule"] = "vace"
    with pytest.raises(GraphError, match="needs a VACE model, but the MODEL is a HuMo one") as caught:
        client.run(graph)
    assert caught.value.node_type == "IDCrafterCastToVideo"


def test_they_open_cleanly_in_the_browser(browser, comfyui_server, client):
    """No node is missing, the prompt is the API file, and saving loses nothing."""
    client.post("/settings/Comfy.TutorialCompleted", True)
    page = browser.new_page()
    page.set_default_timeout(300_000)
    page.route(lambda url: not url.startswith(comfyui_server.url), lambda route: route.abort())  # no internet
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(comfyui_server.url, wait_until="domcontentloaded")
    page.wait_for_function("() => window.app?.graph && app.extensionManager")
    for name in TITLES:
        drawn = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
        opened = json.loads(
            page.evaluate(
                """async graph => {
                    await app.loadGraphData(graph);
                    const missing = app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]);
                    const prompt = (await app.graphToPrompt()).output;
                    return JSON.stringify({missing: missing.length, prompt, saved: app.graph.serialize()});
                }""",
                drawn,
            )
        )
        assert opened["missing"] == 0
        assert opened["prompt"] == json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))
        for field in ("type", "title", "widgets_values"):
            before = {node["id"]: node.get(field) or [] for node in drawn["nodes"]}
            assert {node["id"]: node.get(field) or [] for node in opened["saved"]["nodes"]} == before
        assert sorted(link[1:] for link in opened["saved"]["links"]) == sorted(link[1:] for link in drawn["links"])
    page.close()
    assert errors == []
