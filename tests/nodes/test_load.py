"""The loaders as nodes, and the model folders that the pack registers."""

from types import SimpleNamespace

import folder_paths
import pytest


@pytest.fixture
def folders(monkeypatch, tiny_files):
    for name in ("diffusion_models", "idcrafter_bundles"):
        entry = ([str(tiny_files.root / name)], {".safetensors", ".json"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, entry)
    (tiny_files.root / "idcrafter_bundles").mkdir(exist_ok=True)


def test_load_video_dit(pack, folders):
    model = pack.execute("IDCrafterLoadVideoDiT", model_name="tiny_dit.safetensors", weight_dtype="default")[0]
    assert model.get_attachment("idcrafter")["family"] == "wan-t2v"
    with pytest.raises(FileNotFoundError, match="'none.safetensors' is missing"):
        pack.execute("IDCrafterLoadVideoDiT", model_name="none.safetensors")
    with pytest.raises(ValueError, match="leaves its model folder"):
        pack.execute("IDCrafterLoadVideoDiT", model_name="../vae/tiny_vae.safetensors")


def test_the_model_of_another_loader_takes_the_place_of_a_file(pack, folders, tiny_files):
    import comfy.sd

    core = comfy.sd.load_diffusion_model(str(tiny_files.dit))
    result = pack.execute("IDCrafterLoadVideoDiT", model_name="connected model", family="refalign", model=core)
    model, summary = result
    assert model.model is core.model and core.get_attachment("idcrafter") is None
    assert summary.startswith("RefAlign, 0.0") and " M parameters, 2 blocks of width 32, float32, native" in summary
    assert result.ui == {"text": (summary,)}
    with pytest.raises(ValueError, match="but no MODEL is connected; connect one, or choose a file"):
        pack.execute("IDCrafterLoadVideoDiT", model_name="connected model")


def test_load_text_encoder(pack, folders, tiny_files, monkeypatch):
    entry = ([str(tiny_files.root / "text_encoders"), str(tiny_files.root / "vae")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", entry)
    clip = pack.execute("IDCrafterLoadTextEncoder", text_encoder="tiny_umt5.safetensors")[0]
    assert clip.encode_from_tokens_scheduled(clip.tokenize("Ada waves."))[0][0].shape[-1] == 32
    with pytest.raises(ValueError, match="'tiny_vae.safetensors' holds a VAE"):
        pack.execute("IDCrafterLoadTextEncoder", text_encoder="tiny_vae.safetensors")


def test_a_missing_bundle(pack, folders):
    with pytest.raises(FileNotFoundError, match="'none.json' is missing from the model folder 'idcrafter_bundles'"):
        pack.execute("IDCrafterLoadBundle", bundle="none.json")


def test_the_lists_show_the_files_of_the_folders(pack, folders):
    options = pack.nodes["IDCrafterLoadVideoDiT"].GET_SCHEMA().inputs[0].options
    assert isinstance(options, list)
    fresh = pack.nodes["IDCrafterLoadVideoDiT"].define_schema().inputs[0].options
    assert fresh == ["tiny_dit.safetensors", "connected model"]


def test_load_face_analyzer_shows_its_licence(pack):
    result = pack.execute("IDCrafterLoadFaceAnalyzer", detector="idcrafter_nano", recogniser="auto", provider="cpu")
    analyzer, summary = result
    assert analyzer.describe()["name"] == "idcrafter_nano" and result.ui == {"text": (summary,)}
    assert "Face detection: idcrafter_nano on cpu at 128 px, licence: Apache-2.0" in summary
    with pytest.raises(FileNotFoundError, match="'models/buffalo_l' is missing .* Get it with: curl"):
        pack.execute("IDCrafterLoadFaceAnalyzer", detector="buffalo_l")


def test_a_fall_to_the_cpu_is_shown_on_the_node(pack, monkeypatch):
    import torch

    # As with an onnxruntime without CUDA on a machine that has a GPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sent = []
    server = SimpleNamespace(send_progress_text=lambda text, node: sent.append((text, node)))
    monkeypatch.setattr("server.PromptServer.instance", server, raising=False)
    result = pack.execute(
        "IDCrafterLoadFaceAnalyzer", hidden={"unique_id": "7"}, detector="idcrafter_nano", provider="auto"
    )
    (text,) = result.ui["text"]
    # First, because a node shows two lines of it.
    assert text.startswith("Warning: The face model 'idcrafter_nano' runs on the CPU although there is a GPU")
    assert sent == [(text, "7")]


def test_the_face_analyzers_choices(pack):
    detector, recogniser, provider = pack.nodes["IDCrafterLoadFaceAnalyzer"].define_schema().inputs
    assert detector.options[:5] == ["buffalo_l", "antelopev2", "idcrafter_nano", "idcrafter_nano_monitor", "yunet"]
    assert recogniser.options == ["auto", "auraface", "sface", "curricularface"]
    assert provider.options == ["auto", "cuda", "cpu"]


def test_model_folders_are_added_and_not_replaced(pack):
    for name in ("diffusion_models", "vae", "text_encoders", "insightface", "idcrafter_bundles"):
        paths = folder_paths.get_folder_paths(name)
        assert len(paths) == len(set(paths)) >= 2
        # The user's own folder is searched first and stays the one that files are saved to.
        assert "weights" in paths[-1] and "weights" not in paths[0]
    assert folder_paths.folder_names_and_paths["idcrafter_bundles"][1] == {".json"}
