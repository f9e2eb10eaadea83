"""A real browser for the tests that look at graphs, and what graphs write."""

import shutil
from collections import defaultdict

import pytest


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    assert program, "no Chromium found: the browser tests need it (apt-get install chromium)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def written(client, comfyui_server):
    """Run a graph: its entry in the history, and the files that its nodes wrote, {node id: [path, ...]}."""

    def run(graph):
        entry = client.run(graph)
        files = defaultdict(list)
        for file in client.files(entry):
            files[file["node"]].append(comfyui_server.base / file["type"] / file["subfolder"] / file["filename"])
        return entry, files

    return run
