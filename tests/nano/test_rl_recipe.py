"""The recipe of nano's reinforcement learning, up to where it takes long."""

import csv

import pytest
from PIL import Image

from idcrafter.collect import plan
from idcrafter.nano import install, world
from idcrafter.nano.__main__ import main
from idcrafter.nano.recipes import rl


def test_the_graph_collects_with_wan_sde_and_an_unweighted_facesim():
    graph = rl.collecting_graph()
    kinds = [node["class_type"] for node in graph.values()]
    assert kinds.count("IDCrafterSaveRollouts") == 1 and "IDCrafterLoadRollouts" not in kinds
    sampler = next(node for node in graph.values() if node["class_type"] == "IDCrafterSDESampler")["inputs"]
    assert sampler["kind"] == "Wan-SDE" and sampler["record"] is True and "kind.eta" not in sampler
    rewards = {key: node["inputs"] for key, node in graph.items() if node["class_type"] == "IDCrafterReward"}
    last = graph["17"]["inputs"]["reward"][0]
    assert rewards[last]["term"] == "opens2v_facesim" and rewards[last]["weight"] == 0.0
    assert rewards[rewards[last]["reward"][0]]["term"] == "recommended"
    for node in graph.values():
        links = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        assert all(link in graph for link in links)


def test_the_table_is_of_training_identities_and_fits_the_graph(tmp_path, monkeypatch):
    seen = []
    sample = rl.sample_identity
    monkeypatch.setattr(rl, "sample_identity", lambda number: seen.append(number) or sample(number))
    graph, table, inputs = rl.write_job(tmp_path, 3)
    assert len(set(seen)) == 6 and {world.identity_split(number) for number in seen} == {"train"}
    request = plan.read_request(graph, table)
    assert len(request.table.cases) == 3 and len(request.targets) == 6
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["15.seed"] for row in rows}) == 3 and all("Ada" in row["9.action"] for row in rows)
    with Image.open(inputs / rows[2]["4.image"]) as photo:
        assert photo.size == (rl.PHOTO_SIZE, rl.PHOTO_SIZE)
    before = table.read_bytes()
    rl.write_job(tmp_path, 3)
    assert table.read_bytes() == before


def test_runs():
    runs = rl.all_runs()
    names = [run.name for run in runs]
    assert set(rl.SHIPPED) <= set(names) and set(rl.STACKED) <= set(rl.METHODS)
    assert len(set(names)) == len(names) == 3 * (len(rl.METHODS) + 2)
    assert {run.method for run in runs} == set(rl.METHODS) == set(rl.TUNING)
    assert all(run.permute == run.name.startswith("permuted") for run in runs)
    with pytest.raises(ValueError, match="no run 'nft-9'"):
        rl.train(rl.Path("nowhere"), ["nft-9"])


def test_only_the_shipped_loras_are_installed(tmp_path, monkeypatch):
    weights, trained = tmp_path / "weights", tmp_path / "rl" / "loras"
    monkeypatch.setattr(install, "WEIGHTS", weights)
    trained.mkdir(parents=True)
    for run in rl.all_runs():
        for end in (".safetensors", ".curve.jsonl"):
            (trained / f"{run.name}{end}").write_text(run.name + end)
    last = trained / f"{rl.SHIPPED[-1]}.safetensors"
    text = last.read_text()
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"{last.name}' is not there; 'python -m idcrafter.nano rl --only"):
        main(["install", "rl", "--dir", str(tmp_path)])
    assert not weights.exists()
    last.write_text(text)
    main(["install", "rl", "--dir", str(tmp_path)])
    found = {path.relative_to(weights).as_posix(): path.read_text() for path in weights.rglob("*") if path.is_file()}
    expected = {}
    for run, (kind, name) in install.RL_LORAS.items():
        expected[f"{kind}/{name}"] = f"{run}.safetensors"
        expected[f"{kind}/{name.replace('.safetensors', '.curve.jsonl')}"] = f"{run}.curve.jsonl"
    assert found == expected and len(found) == 2 * len(rl.SHIPPED)
