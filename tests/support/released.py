"""The tables of released checkpoints (tests/fixtures/layouts) against core's networks, built without memory.

Every measurement is {"name": ..., "missing": [...], "unexpected": [...], "ok": ...}; a tensor of another shape is in
both lists as "name [shape]". A table says where it is from; its "fingerprint" is a published md5 over all names and
shapes of the released file, so a table that has this md5 is the file's.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "layouts"
NAMES = tuple(path.stem for path in sorted(FOLDER.glob("*.json")))


def read(name: str) -> dict:
    """A fixture with its "table" {tensor name: shape} written out."""
    data = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    table = {key: tuple(shape) for key, shape in data["top"].items()}
    for stem, blocks in data["blocks"].items():
        for i in range(blocks["count"]):
            tensors = blocks["each"] | blocks["only"].get(str(i), {})
            table |= {f"{stem}.{i}.{key}": tuple(shape) for key, shape in tensors.items()}
    assert len(table) == data["tensors"]
    assert sum(torch.Size(shape).numel() for shape in table.values()) == data["parameters"]
    return data | {"table": table}


def header(data: dict, files):
    """What the loader would see of this file; `files` is the pack's model_loaders.files."""
    tensors = {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in data["table"].items()}
    return files.Header(Path(data["name"]), tensors, {}, config=data["config"])


def table_check(name: str) -> dict:
    """One table against the network that core builds of it."""
    from model_loaders.layouts import cogvideox, wan

    data = read(name)
    table = data["table"]
    layout = cogvideox if data["family"].startswith("cogvideox") else wan
    names = (
        {key: layout.NAMES.to_native(key) or key for key in table} if data["config"] else {key: key for key in table}
    )
    native = {names[key]: torch.empty(shape, device="meta") for key, shape in table.items()}
    ignored = [key for key in native if key.endswith(layout.IGNORED)]
    config = layout.read_config(native, "", layout.metadata_of(data["config"]))
    expected = {key: tuple(shape) for key, shape in layout.layout(config).items()}
    if data["family"] == "cogvideox-i2v":
        # Learned positions are no part of the network that core builds; their size is the trained grid's.
        sample = cogvideox.sample_of(data["config"])
        expected[cogvideox.POSITIONS] = cogvideox.positions_shape(sample, cogvideox.width(config))
    return _difference(f"table of {data['name']}", expected, {k: tuple(native[k].shape) for k in native}, ignored)


def adapter_shapes() -> dict[str, tuple[int, int]]:
    """Identity-GRPO's released adapter: rank 32 on the attentions of 30 blocks and 15 VACE blocks, 360 modules.

    Source: alibaba/identity-grpo train_wan2_1_vace.py (LoraConfig, get_peft_model, save_pretrained).
    """
    shapes = {}
    for stem, count in (("blocks", 30), ("vace_blocks", 15)):
        for i in range(count):
            for attention in ("attn1", "attn2"):
                for module in ("to_q", "to_k", "to_v", "to_out.0"):
                    name = f"base_model.model.{stem}.{i}.{attention}.{module}"
                    shapes |= {f"{name}.lora_A.weight": (32, 1536), f"{name}.lora_B.weight": (1536, 32)}
    return shapes


def adapter_check() -> dict:
    """Where the adapter's factors land in VACE 1.3B: on the native attentions of all blocks, and nowhere else."""
    import comfy.ldm.wan.model

    from model_loaders import lora

    sizes = {"dim": 1536, "ffn_dim": 8960, "num_layers": 30, "num_heads": 12, "vace_layers": 15, "vace_in_dim": 96}
    network = comfy.ldm.wan.model.VaceWanModel(**sizes, device="meta", operations=torch.nn)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    factors = {name: torch.empty(shape, device="meta") for name, shape in adapter_shapes().items()}
    found = lora.convert(factors, model, "adapter_model.safetensors", {"lora_alpha": 32, "r": 32}).weights
    expected = {
        f"diffusion_model.{name.removesuffix('.weight')}.{part}": shape
        for name, _ in network.named_parameters()
        if name.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight"))
        for part, shape in (("lora_A.weight", (32, 1536)), ("lora_B.weight", (1536, 32)), ("alpha", ()))
    }
    landed = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return _difference("Identity-GRPO's adapter on Wan2.1-VACE-1.3B", expected, landed, [])


def checks() -> Iterator[dict]:
    yield from (table_check(name) for name in NAMES)
    yield adapter_check()


def _difference(name: str, expected: dict, found: dict, ignored: list[str]) -> dict:
    missing = [f"{key} {list(expected[key])}" for key in expected if found.get(key) != expected[key]]
    unexpected = [f"{key} {list(found[key])}" for key in found if expected.get(key) != found[key]]
    unexpected = [entry for entry in unexpected if entry.split(" ")[0] not in ignored]
    result = {"name": name, "tensors": len(found), "missing": missing, "unexpected": unexpected}
    return result | ({"ignored": ignored} if ignored else {}) | {"ok": not missing and not unexpected}
