"""The loaders as nodes, and the model folders that the pack registers."""

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


def test_a_missing_bundle(pack, folders):
    with pytest.raises(FileNotFoundError, match="'none.json' is missing from the model folder 'idcrafter_bundles'"):
        pack.execute("IDCrafterLoadBundle", bundle="none.json")


def test_the_lists_show_the_files_of_the_folders(pack, folders):
    options = pack.nodes["IDCrafterLoadVideoDiT"].GET_SCHEMA().inputs[0].options
    assert isinstance(options, list)
    fresh = pack.nodes["IDCrafterLoadVideoDiT"].define_schema().inputs[0].options
    assert fresh == ["tiny_dit.safetensors"]


def test_model_folders_are_added_and_not_replaced(pack):
    for name in ("diffusion_models", "vae", "text_encoders", "insightface", "idcrafter_bundles"):
        paths = folder_paths.get_folder_paths(name)
        assert len(paths) == len(set(paths)) >= 2
        # The user's own folder is searched first and stays the one that files are saved to.
        assert "weights" in paths[-1] and "weights" not in paths[0]
    assert folder_paths.folder_names_and_paths["idcrafter_bundles"][1] == {".json"}
