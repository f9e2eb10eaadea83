"""What the face nodes say, read from the real frontend, and the file that they hand over."""

import pytest

RENDERERS = {"canvas": False, "nodes2": True}
SAID = "id => app.graph.getNodeById(id).widgets.find(widget => widget.name === '$$node-text-preview')?.value"


@pytest.fixture
def graph():
    def node(kind, /, **inputs):
        return {"class_type": kind, "inputs": inputs}

    cast = {"1": node("LoadImage", image="idcrafter_ada.png"), "2": node("LoadImage", image="idcrafter_bo.png")}
    for number, name in (("1", "Ada"), ("2", "Bo")):
        person = node("IDCrafterSubject", name=name, kind="person", description="", images=[number, 0])
        cast[f"1{number}"] = person
    cast["3"] = node("IDCrafterCast", **{"subjects.subject0": ["11", 0], "subjects.subject1": ["12", 0]})
    cast["4"] = node("IDCrafterLoadFaceAnalyzer", detector="idcrafter_nano", recogniser="auto", provider="cpu")
    cast["5"] = node(
        "IDCrafterExtractFaces", cast=["3", 0], face_analyzer=["4", 0], no_face="error", several_faces="error"
    )
    cast["6"] = node("IDCrafterSaveFaces", cast=["5", 0], filename_prefix="idcrafter/faces")
    return cast


@pytest.mark.parametrize("renderer", RENDERERS)
def test_nodes_say_what_they_found(graph, browser, comfyui_server, renderer):
    client = comfyui_server.client
    client.post("/settings/Comfy.TutorialCompleted", True)
    client.post("/settings/Comfy.VueNodes.Enabled", RENDERERS[renderer])
    client.post("/free", {"unload_models": True, "free_memory": True})  # else the second run is only remembered
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(300_000)
    page.route(lambda url: not url.startswith(comfyui_server.url), lambda route: route.abort())  # no internet
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(comfyui_server.url, wait_until="domcontentloaded")
    page.wait_for_function("() => window.app?.graph && app.extensionManager")
    page.evaluate("graph => app.loadApiJson(graph, 'faces')", graph)
    page.wait_for_function(f"() => app.graph.nodes.length === {len(graph)}")
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(f"() => ({SAID})(4) && ({SAID})(5)")
    assert page.evaluate(SAID, 4).splitlines() == [
        "Face detection: idcrafter_nano on cpu at 128 px, licence: Apache-2.0",
        "Face recognition: idcrafter_nano on cpu, licence: Apache-2.0",
    ]
    report = page.evaluate(SAID, 5)
    assert "Ada (person): 1 of 1 photos used" in report and "licence: Apache-2.0" in report
    # It is a display: nothing of it goes into the prompt.
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert {id: node["inputs"] for id, node in prompt.items()} == {id: node["inputs"] for id, node in graph.items()}
    assert errors == []
    page.close()


def test_the_saved_faces_are_loaded_on_the_server(graph, client):
    first = client.files(client.run(graph))
    (saved,) = [file for file in first if file["filename"].endswith(".safetensors")]
    del graph["5"]
    graph["6"] = {
        "class_type": "IDCrafterLoadFaces",
        "inputs": {
            "cast": ["3", 0],
            "face_analyzer": ["4", 0],
            "file": f"{saved['subfolder']}/{saved['filename']} [output]",
        },
    }
    graph["7"] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 1]}}
    entry = client.run(graph)
    assert "Bo (person): 1 of 1 photos used" in str(entry["outputs"]["7"])
