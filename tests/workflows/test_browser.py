"""The quickstart in a real browser with ComfyUI's own frontend, drawn on the canvas and as Nodes 2.0.

Screenshots go to the folder in IDCRAFTER_SCREENSHOTS, or to pytest's temporary folder.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.server import PACK

PICTURE = json.loads((Path(__file__).resolve().parents[2] / "workflows" / "quickstart.json").read_text("utf-8"))
RENDERERS = {"canvas": False, "nodes2": True}
READY = f"() => window.app?.graph?.nodes?.length === {len(PICTURE['nodes'])} && app.extensionManager"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    assert program, "no Chromium found: the browser tests need it (apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=RENDERERS, scope="module")
def opened(request, browser, comfyui_server):
    """(page, errors) with the pack's template opened by its link; errors collects uncaught exceptions of the page."""
    client = comfyui_server.client
    client.post("/settings/Comfy.TutorialCompleted", True)  # else the frontend opens its own template dialog
    client.post("/settings/Comfy.VueNodes.Enabled", RENDERERS[request.param])
    page = browser.new_page(viewport={"width": 1920, "height": 1200})
    page.set_default_timeout(300_000)
    page.route(lambda url: not url.startswith(comfyui_server.url), lambda route: route.abort())  # no internet
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{comfyui_server.url}/?template=quickstart&source={PACK}", wait_until="domcontentloaded")
    page.wait_for_function(READY)
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


def test_prompt_equals_the_api_file(opened, quickstart):
    page, _ = opened
    assert json.loads(page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")) == quickstart


def test_saving_it_again_changes_nothing(opened):
    """What the renderer writes back into the graph is what the repository holds: no widget lost, none moved."""
    page, _ = opened
    saved = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))
    for field in ("type", "title", "widgets_values"):
        before = {node["id"]: node.get(field) or [] for node in PICTURE["nodes"]}
        assert {node["id"]: node.get(field) or [] for node in saved["nodes"]} == before
    assert sorted(link[1:] for link in saved["links"]) == sorted(link[1:] for link in PICTURE["links"])


def test_nodes_are_drawn_by_the_chosen_renderer(opened, screenshots):
    page, _ = opened
    drawn = page.locator("[data-node-id]")
    if page.renderer == "canvas":
        assert drawn.count() == 0
    else:
        page.wait_for_function(f"() => document.querySelectorAll('[data-node-id]').length >= {len(PICTURE['nodes'])}")
    page.wait_for_timeout(1000)
    file = screenshots / f"opened-{page.renderer}.png"
    page.screenshot(path=file)
    assert np.asarray(Image.open(file).convert("L")).std() > 10


def test_run_button_renders_the_video(opened, client, screenshots):
    page, errors = opened
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
    assert {file["filename"].rsplit(".")[-1] for file in client.files(entry)} >= {"mp4", "json", "png"}
    page.wait_for_function("() => app.graph.getNodeById(8).imgs?.length || Object.keys(app.nodeOutputs ?? {}).length")
    page.wait_for_timeout(1500)
    page.screenshot(path=screenshots / f"finished-{page.renderer}.png")
    assert page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)") == []
    assert errors == []
