"""UMT5, small and full size."""

import json

import pytest
import safetensors.torch
import torch

from support import tiny_models


@pytest.fixture(scope="module")
def text_encoder(pack):
    return pack.submodule("model_loaders.text_encoder")


@pytest.fixture(scope="module")
def clip(text_encoder, tiny_files):
    with torch.inference_mode():
        return text_encoder.load_text_encoder(tiny_files.text_encoder)


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def test_prompts_are_padded_to_the_length_of_the_file(clip):
    out = encode(clip, "The first is a teal puppet.")
    assert out.shape == (1, tiny_models.UMT5_MIN_LENGTH, tiny_models.UMT5_CONFIG["d_model"])
    long = encode(clip, " ".join(tiny_models.SENTENCES))
    assert long.shape[1] > tiny_models.UMT5_MIN_LENGTH


def test_padding_is_zero_and_words_matter(clip):
    short, other = encode(clip, "The first waves."), encode(clip, "The second waves.")
    tokens = clip.tokenize("The first waves.")["umt5xxl"][0]
    words = sum(token != 0 for token, _ in tokens)
    assert 1 < words < tiny_models.UMT5_MIN_LENGTH
    assert not short[:, words:].any() and short[:, :words].any()
    assert (short - other).abs().max() > 1e-3
    assert torch.equal(short, encode(clip, "The first waves."))


def test_the_vocabulary_is_that_of_the_file(clip, tiny_files):
    stored = safetensors.torch.load_file(tiny_files.text_encoder)["spiece_model"]
    assert torch.equal(clip.tokenizer.state_dict()["spiece_model"], stored)


def test_all_weights_are_loaded(clip, tiny_files):
    stored = safetensors.torch.load_file(tiny_files.text_encoder)
    loaded = clip.cond_stage_model.umt5xxl.transformer.state_dict()
    assert loaded.keys() == stored.keys() - {"spiece_model"}
    assert all(torch.equal(loaded[name], stored[name]) for name in loaded)


def test_textual_inversions_of_the_small_width_are_matched(clip):
    assert clip.tokenizer.clip_umt5xxl.embedding_size == tiny_models.UMT5_CONFIG["d_model"]


def test_numerics_follow_the_published_umt5(clip, tiny_files):
    """transformers' own UMT5 encoder on the same weights."""
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        **tiny_models.UMT5_CONFIG, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False
    )
    reference = transformers.UMT5EncoderModel(config).eval()
    weights = safetensors.torch.load_file(tiny_files.text_encoder)
    weights.pop("spiece_model")
    result = reference.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"encoder.embed_tokens.weight"}
    reference.encoder.embed_tokens.weight = reference.shared.weight
    ids = torch.tensor([[token for token, _ in clip.tokenize("The first waves at a brown dog.")["umt5xxl"][0]]])
    mask = (ids != 0).long()
    expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
    assert torch.allclose(encode(clip, "The first waves at a brown dog."), expected, atol=1e-4)


def test_core_can_make_another_copy(clip):
    factory, arguments = clip.patcher.cached_patcher_init
    copy = factory(*arguments, disable_dynamic=True)
    original = clip.patcher.model.state_dict()
    assert all(torch.equal(value, original[name]) for name, value in copy.model.state_dict().items())


def test_the_real_size_goes_through_cores_loader(text_encoder, tmp_path, monkeypatch):
    """The released umt5_xxl_fp16: 242 tensors and the tokenizer. Core's loader is called, no weight is allocated."""
    import comfy.sd

    shapes = tiny_models.umt5_shapes(d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, vocab_size=256384)
    assert len(shapes) == 242
    shapes["spiece_model"] = (4548313,)
    path = tiny_models.write_header(tmp_path / "umt5_xxl_fp16.safetensors", shapes, "F16", spiece_model="U8")
    calls = []
    monkeypatch.setattr(comfy.sd, "load_clip", lambda **arguments: calls.append(arguments) or "clip")
    assert text_encoder.load_text_encoder(path) == "clip"
    assert calls[0]["ckpt_paths"] == [str(path)] and calls[0]["clip_type"] == comfy.sd.CLIPType.WAN


def lose(name):
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("edit", "metadata", "message"),
    [
        (lose("spiece_model"), None, "no 'spiece_model' tensor"),
        (lose("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"), None, "holds a T5 encoder"),
        (lose("encoder.final_layer_norm.weight"), None, "1 of its .* tensors are missing"),
        (lose("encoder.block.0.layer.0.SelfAttention.q.weight"), None, "not a UMT5 text encoder"),
        (None, {}, r"shape \[32, 32\] instead of \[4096, 4096\]|tensors are missing"),
        (None, {"config": "{"}, "not valid JSON"),
        (None, {"config": "[1]"}, "not a JSON object"),
        (None, {"config": json.dumps({**tiny_models.UMT5_CONFIG, "d_ff": 50})}, "wi_0.weight has the shape"),
        (None, {"config": json.dumps({**tiny_models.UMT5_CONFIG, "d_model": "x"})}, "does not fit a UMT5 encoder"),
        (None, {"config": json.dumps(tiny_models.UMT5_CONFIG), "min_length": "many"}, "'min_length' metadata"),
    ],
)
def test_other_files_are_refused(text_encoder, tmp_path, edit, metadata, message):
    path = tiny_models.write_umt5(tmp_path / "t.safetensors", metadata=metadata, edit=edit)
    with pytest.raises(ValueError, match=message):
        text_encoder.load_text_encoder(path)


def test_wans_original_key_names(text_encoder, tmp_path):
    path = tmp_path / "models_t5.safetensors"
    safetensors.torch.save_file(
        {"blocks.0.attn.q.weight": torch.zeros(4, 4), "token_embedding.weight": torch.zeros(4, 4)}, path
    )
    with pytest.raises(ValueError, match="UMT5 in Wan's original key names; use the repackaged"):
        text_encoder.load_text_encoder(path)
