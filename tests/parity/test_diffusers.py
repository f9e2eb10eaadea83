"""The networks that the loader returns compute what diffusers' modules compute on the same weights, float32."""

import pytest
import torch

from support import parity, tiny_families


@pytest.fixture(scope="module")
def load(pack):
    return pack.submodule("model_loaders.video_dit").load_video_dit


@pytest.mark.parametrize("family", parity.FAMILIES)
def test_outputs_equal_those_of_diffusers(load, tmp_path, family):
    """Weights converted both ways: native ones renamed for diffusers, and a folder that diffusers has saved."""
    checks = list(parity.family_checks(load, tmp_path, family))
    assert len(checks) == 2 * len(parity.SIZES)
    assert {check["name"]: check["max_abs"] for check in checks if not check["ok"]} == {}


def test_the_comparison_sees_a_wrong_name(load, tmp_path, monkeypatch):
    """Two projections exchanged on the way are far outside of the limit."""
    to_diffusers = tiny_families.to_diffusers

    def exchanged(family, native):
        out = to_diffusers(family, native)
        q, k = "blocks.0.attn1.to_q.weight", "blocks.0.attn1.to_v.weight"
        out[q], out[k] = out[k], out[q]
        return out

    monkeypatch.setattr(tiny_families, "to_diffusers", exchanged)
    checks = list(parity.family_checks(load, tmp_path, "wan-t2v"))
    assert all(check["max_abs"] > 10 * parity.LIMIT for check in checks if "native" in check["name"])


@pytest.mark.parametrize("family", ["cogvideox", "cogvideox-i2v"])
def test_the_positions_of_cogvideox_matter(load, tmp_path, family):
    """Without them the output is another one, so that the comparison above measures them too."""
    model = load(tiny_families.write(tmp_path / "model.safetensors", family)).model.diffusion_model
    x = torch.randn((1, model.in_channels, 3, 6, 8), generator=torch.Generator().manual_seed(0))
    context = torch.randn((1, 226, 32), generator=torch.Generator().manual_seed(1))

    def run():
        return model(x, torch.tensor([500.0]), context, transformer_options={})

    full = run()
    model.use_rotary_positional_embeddings = False
    assert (run() - full).abs().max() > 10 * parity.LIMIT
    model.use_rotary_positional_embeddings = True
    if family == "cogvideox-i2v":
        # The text's reach the video only through the attention: a small part of the output, but above the limit.
        model.patch_embed.pos_embedding[:, :226] = 0
        assert (run() - full).abs().max() > 5 * parity.LIMIT
        model.patch_embed.pos_embedding[:] = 0
        assert (run() - full).abs().max() > 100 * parity.LIMIT


def test_learned_positions_refuse_another_size(load, tmp_path):
    model = load(tiny_families.write(tmp_path / "model.safetensors", "cogvideox-i2v")).model.diffusion_model

    def run(*size):
        return model(torch.zeros(1, 32, *size), torch.tensor([500.0]), torch.zeros(1, 226, 32), transformer_options={})

    assert run(2, 6, 8).shape == (1, 16, 2, 6, 8)
    with pytest.raises(ValueError, match="makes 64x48 px only, .* 64x64 was asked for"):
        run(3, 8, 8)
    with pytest.raises(ValueError, match="at most 9 frames"):
        run(4, 6, 8)
