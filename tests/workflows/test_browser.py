"""The graphs in a real browser with ComfyUI's own frontend, drawn on the canvas and as Nodes 2.0.

Screenshots go to the folder in IDCRAFTER_SCREENSHOTS, or to pytest's temporary folder.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.server import PACK

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
# What each graph writes at least.
GRAPHS = {
    "quickstart": {"mp4", "json", "png"},
    "best_of_eight": {"mp4", "json", "png"},
    "score_a_video": {"json", "csv", "png"},
    "relations": {"png"},
    "vlm_guidance": {"mp4", "json", "png"},
    "identity_injection": {"mp4", "json", "png"},
    "collect_rollouts": {"mp4", "png"},
    "train_lora": {"png"},
    "before_after": {"mp4", "json"},
}
# What Run is pressed with, but for screenshots, to save time; what the videos must show is for the other tests here.
SMALLER = {
    "BasicScheduler": {"steps": 4},
    "IDCrafterSampleTakes": {"takes": 2, "budget": 0},
    "IDCrafterTrainFromRollouts": {"steps": 2, "takes": 2, "validate_every": 1},
}
# What has to be run before a graph.
BEFORE = {"train_lora": "collect_rollouts"}
RENDERERS = {"canvas": False, "nodes2": True}


@pytest.fixture(params=GRAPHS, scope="module")
def drawn(request, comfyui_server):
    """The UI file of a graph, as data."""
    if before := BEFORE.get(request.param):
        graph = json.loads((WORKFLOWS / "api" / f"{before}.json").read_text("utf-8"))
        for node in graph.values():
            node["inputs"].update(SMALLER.get(node["class_type"], {}))
        comfyui_server.client.run(graph)
    return {"name": request.param, **json.loads((WORKFLOWS / f"{request.param}.json").read_text("utf-8"))}


@pytest.fixture(params=RENDERERS, scope="module")
def opened(request, drawn, browser, comfyui_server):
    """(page, errors) with the pack's template opened by its link; errors collects uncaught exceptions of the page."""
    client = comfyui_server.client
    client.post("/settings/Comfy.TutorialCompleted", True)  # else the frontend opens its own template dialog
    client.post("/settings/Comfy.VueNodes.Enabled", RENDERERS[request.param])
    page = browser.new_page(viewport={"width": 1920, "height": 1200})
    page.set_default_timeout(300_000)
    page.route(lambda url: not url.startswith(comfyui_server.url), lambda route: route.abort())  # no internet
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{comfyui_server.url}/?template={drawn['name']}&source={PACK}", wait_until="domcontentloaded")
    page.wait_for_function(f"() => window.app?.graph?.nodes?.length === {len(drawn['nodes'])} && app.extensionManager")
    page.renderer = request.param
    yield page, errors
    page.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = Path(os.environ.get("IDCRAFTER_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_no_node_is_missing(opened):
    page, errors = opened
    unknown = "() => app.graph.nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type)"
    assert page.evaluate(unknown) == []
    assert page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    unlinked = page.evaluate(
        "() => app.graph.nodes.flatMap(node => (node.inputs ?? []).filter(input => input.link != null"
        " && !app.graph.links.get(input.link)).map(input => node.type + '.' + input.name))"
    )
    assert unlinked == [] and errors == []


def test_prompt_equals_the_api_file(opened, drawn):
    page, _ = opened
    api = json.loads((WORKFLOWS / "api" / f"{drawn['name']}.json").read_text("utf-8"))
    prompt = json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)"))
    for node in prompt.values():
        node["inputs"].pop("video-preview", None)  # the player that the frontend adds to Load Video
    assert prompt == api


def test_saving_it_again_changes_nothing(opened, drawn):
    """What the renderer writes back into the graph is what the repository holds: no widget lost, none moved."""
    page, _ = opened
    saved = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    for field in ("type", "title", "widgets_values"):
        before = {node["id"]: node.get(field) or [] for node in drawn["nodes"]}
        assert {node["id"]: node.get(field) or [] for node in saved["nodes"]} == before
    assert sorted(link[1:] for link in saved["links"]) == sorted(link[1:] for link in drawn["links"])


def test_nodes_are_drawn_by_the_chosen_renderer(opened, drawn, screenshots):
    page, _ = opened
    elements = page.locator("[data-node-id]")
    if page.renderer == "canvas":
        assert elements.count() == 0
    else:
        page.wait_for_function(f"() => document.querySelectorAll('[data-node-id]').length >= {len(drawn['nodes'])}")
    page.wait_for_timeout(1000)
    file = screenshots / f"opened-{drawn['name']}-{page.renderer}.png"
    page.screenshot(path=file)
    assert np.asarray(Image.open(file).convert("L")).std() > 10


def test_run_button_writes_the_results(opened, drawn, client, screenshots):
    page, errors = opened
    if "IDCRAFTER_SCREENSHOTS" not in os.environ:
        page.evaluate(
            "(smaller) => app.graph.nodes.forEach(node => Object.entries(smaller[node.type] ?? {}).forEach("
            "([name, value]) => { node.widgets.find(widget => widget.name === name).value = value }))",
            SMALLER,
        )
    before = set(client.get("/history"))
    page.get_by_test_id("queue-button").click()
    page.wait_for_timeout(1000)
    prompt_id = None
    for _ in range(600):
        new = set(client.get("/history")) - before
        if new:
            prompt_id = new.pop()
            break
        page.wait_for_timeout(500)
    assert prompt_id, "nothing was queued"
    entry = client.wait(prompt_id, timeout=10)
    assert {file["filename"].rsplit(".")[-1] for file in client.files(entry)} >= GRAPHS[drawn["name"]]
    page.wait_for_function("() => app.graph.getNodeById(8).imgs?.length || Object.keys(app.nodeOutputs ?? {}).length")
    page.wait_for_timeout(1500)
    page.screenshot(path=screenshots / f"finished-{drawn['name']}-{page.renderer}.png")
    assert page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert errors == []
