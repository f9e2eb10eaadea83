"""The tensors of the released checkpoints are those of core's networks, at full size, without memory."""

import pytest

from support import released


@pytest.fixture(scope="module")
def loader(pack):
    return pack.submodule("model_loaders.video_dit")


@pytest.mark.parametrize("name", released.NAMES)
def test_the_table_equals_the_network(pack, name):
    check = released.table_check(name)
    assert check["missing"] == [] and check["unexpected"] == [] and check["ok"]
    assert check.get("ignored", []) == (["freqs"] if name == "phantom-wan-1.3b" else [])


@pytest.mark.parametrize("name", released.NAMES)
def test_the_loader_recognises_it(pack, loader, name):
    data = released.read(name)
    facts = loader.identify(released.header(data, pack.submodule("model_loaders.files")))
    assert facts["family"] == data["family"] and facts["dtype"] == "bfloat16"
    assert facts["layout"] == data["layout"] and facts["layers"] == data["blocks"][min(data["blocks"])]["count"]
    extra = 1024 * 64 if name == "phantom-wan-1.3b" else 0
    assert facts["size"] == data["parameters"] - extra


@pytest.mark.parametrize("name", [name for name in released.NAMES if released.read(name)["fingerprint"]])
def test_the_table_has_the_published_fingerprint(pack, name):
    families = pack.submodule("model_loaders.families")
    data = released.read(name)
    assert families.fingerprint(data["table"]) == data["fingerprint"]
    assert data["fingerprint"] in families.RELEASES


def test_a_table_that_differs_is_seen(pack, loader, monkeypatch):
    read = released.read

    def changed(name):
        data = read(name)
        del data["table"]["blocks.3.ffn.0.bias"]
        data["table"]["blocks.0.norm3.weight"] = (5,)
        data["table"]["blocks.0.gate.weight"] = (2, 2)
        return data

    monkeypatch.setattr(released, "read", changed)
    check = released.table_check("wan2.1-t2v-1.3b")
    assert not check["ok"]
    assert check["missing"] == ["blocks.0.norm3.weight [1536]", "blocks.3.ffn.0.bias [8960]"]
    assert check["unexpected"] == ["blocks.0.norm3.weight [5]", "blocks.0.gate.weight [2, 2]"]
    header = released.header(changed("wan2.1-t2v-1.3b"), pack.submodule("model_loaders.files"))
    with pytest.raises(ValueError, match=r"1 of its 825 tensors are missing \(first: blocks.3.ffn.0.bias\)"):
        loader.identify(header)


def test_the_adapter_of_identity_grpo_fits_vace(pack):
    check = released.adapter_check()
    assert check["tensors"] == 3 * 360 and check["missing"] == [] and check["unexpected"] == []
