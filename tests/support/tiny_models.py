"""Tiny model files in the released layouts, seeded, made by the tests and loaded by the real loaders."""

import io
import json
from pathlib import Path

import safetensors.torch
import torch

DIT_CONFIG = {"num_heads": 2, "text_dim": 32, "freq_dim": 32}
DIT_WIDTH = 32
DIT_LAYERS = 2
UMT5_CONFIG = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 120}
UMT5_MIN_LENGTH = 24
VAE_WIDTH = 8

SENTENCES = (
    "The first is a teal puppet with red hair and a yellow hat.",
    "The second is a brown dog with a blue collar.",
    "The first is on the left and waves. The second is on the right and nods.",
    "A woman in a green coat hugs a man with a beard while an old robot walks behind them.",
)


def random_weights(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of this layout: small matrices, norms around one, so that activations stay finite."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and name.endswith(("norm.weight", "norm_q.weight", "norm_k.weight", "norm3.weight"))
        is_scale = is_scale or name.endswith("gamma")
        fan_in = max(1, values[0].numel()) if values.ndim > 1 else 1
        weights[name] = 1.0 + 0.1 * values if is_scale else values * (0.7 / fan_in**0.5 if values.ndim > 1 else 0.1)
    return weights


def dit_shapes(**changes) -> dict:
    import comfy.ldm.wan.model

    config = {
        "dim": DIT_WIDTH,
        "ffn_dim": 48,
        "num_layers": DIT_LAYERS,
        "in_dim": 16,
        "out_dim": 16,
        **DIT_CONFIG,
        **changes,
    }
    model = comfy.ldm.wan.model.WanModel(**config, device="meta", operations=torch.nn)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def write_dit(path: Path, seed: int = 0, metadata: dict | None = None, edit=None, **changes) -> Path:
    """A Wan text-to-video model; `edit(weights)` may damage it before it is written."""
    weights = random_weights(dit_shapes(**changes), seed)
    if edit is not None:
        edit(weights)
    config = {"transformer": {name: changes.get(name, value) for name, value in DIT_CONFIG.items()}}
    metadata = {"config": json.dumps(config)} if metadata is None else metadata
    return _save(path, weights, metadata)


def vae_shapes(width: int = VAE_WIDTH) -> dict:
    import comfy.ldm.wan.vae

    with torch.device("meta"):
        model = comfy.ldm.wan.vae.WanVAE(
            dim=width,
            z_dim=16,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
        )
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def write_vae(path: Path, seed: int = 0, edit=None) -> Path:
    """A Wan 2.1 VAE of width 8."""
    weights = random_weights(vae_shapes(), seed)
    if edit is not None:
        edit(weights)
    return _save(path, weights, {})


def umt5_shapes(**sizes) -> dict:
    import comfy.text_encoders.t5

    config = {**sizes, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "umt5"}
    model = comfy.text_encoders.t5.T5(config, torch.float32, "meta", torch.nn)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def write_umt5(path: Path, seed: int = 0, metadata: dict | None = None, edit=None) -> Path:
    """A UMT5 encoder with its own sentencepiece vocabulary in `spiece_model`."""
    weights = random_weights(umt5_shapes(**UMT5_CONFIG), seed)
    weights["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    if edit is not None:
        edit(weights)
    if metadata is None:
        metadata = {"config": json.dumps(UMT5_CONFIG), "min_length": str(UMT5_MIN_LENGTH)}
    return _save(path, weights, metadata)


def sentencepiece_model() -> bytes:
    """A vocabulary of UMT5's special ids: pad 0, end 1, unknown 2."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=out,
        vocab_size=UMT5_CONFIG["vocab_size"] - 20,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def write_header(path: Path, shapes: dict, dtype: str = "BF16", **other_dtypes: str) -> Path:
    """A safetensors file of any size whose weights take no disk: what a loader sees before it loads.

    dtype         of all tensors but those named in `other_dtypes`
    """
    entries, offset = {}, 0
    for name, shape in shapes.items():
        kind = other_dtypes.get(name, dtype)
        size = torch.Size(shape).numel() * {"U8": 1, "BF16": 2, "F16": 2, "F32": 4}[kind]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def _save(path: Path, weights: dict, metadata: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, path, metadata=metadata)
    return path
