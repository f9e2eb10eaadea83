"""Puts trained weights into the pack: files, digests, the bundle's manifest and the card with its figures."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from PIL import Image

from .recipes import adapter, data, dit, faces, guidance, rl, vae, vlm, vlm_data
from .world import plant_clip, render_photo, sample_identity
from .world.scene import FPS, FRAMES, HEIGHT, WIDTH

WEIGHTS = Path(__file__).parent / "weights"
LICENCE = "Apache-2.0"
REMAKE = "python -m idcrafter.nano train all && python -m idcrafter.nano install"
REMAKE_RL = f"python -m idcrafter.nano rl --only {' '.join(rl.SHIPPED)}"
FILES = {
    "model": ("diffusion_models", "idcrafter_nano_dit.safetensors"),
    "text_encoder": ("text_encoders", "idcrafter_nano_umt5.safetensors"),
    "vae": ("vae", "idcrafter_nano_vae.safetensors"),
}
# What adapters begin with: it has never seen a reference.
TEXT_TO_VIDEO = ("diffusion_models", "idcrafter_nano_t2v.safetensors")
# The row of the ablation that is for use, and where its two files go.
ADAPTER_ROW, ADAPTER = "full", "idcrafter_nano_identity.safetensors"
ADAPTER_FOLDERS = {"lora": "loras", "adapter": "idcrafter_adapters"}
VLM = ("idcrafter_rewards", vlm.NAME)
# A VLM in the place of the text encoder, and what the benchmark compares it with.
GUIDANCE = (
    ("idcrafter_adapters", guidance.ALIGNER),
    ("loras", guidance.LORA),
    ("guidance", guidance.PRETRAINED),
    ("guidance", guidance.PLAIN),
)
# What reinforcement learning made of the installed weights: the shipped runs, and what their LoRAs are called.
RL_LORAS = {run: ("loras", f"idcrafter_nano_{run.rsplit('-', 1)[0]}.safetensors") for run in rl.SHIPPED}
# The example cast of the workflows: validation identities that training never saw.
EXAMPLES = {"ada": (79, 1, True), "bo": (217, 4, False), "cy": (46, 2, True)}
PHOTOS = Path(__file__).parents[2] / "workflows" / "photos"
PHOTO_SIZE = 256
# A video with something to find: after five eighths of it Bo has become a second Ada.
EXAMPLE_CLIP = ("ada_and_bo.mp4", "clone", 49)
PACK = ("insightface", f"models/{faces.PACK}", ("det_nano.onnx", "rec_nano.onnx"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _runs(folder: Path) -> dict[str, dict]:
    """Last row of each training curve and the sum of its seconds over resumed runs."""
    runs = {}
    for path in sorted(folder.glob("*.curve.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        seconds = sum(
            row["seconds"]
            for row, after in zip(rows, [*rows[1:], None], strict=True)
            if after is None or after["seconds"] < row["seconds"]
        )
        runs[path.name.removesuffix(".curve.jsonl")] = {**rows[-1], "seconds": seconds}
    return runs


def _card(folder: Path, scores: dict[str, dict[str, float]]) -> str:
    lines = [
        "# The nano weights",
        "",
        f"A complete small stack, trained by `idcrafter.nano` on a procedural world of puppets ({WIDTH}x{HEIGHT} px,",
        f"{FRAMES} frames, {FPS} fps, 1-4 subjects). Licence: {LICENCE}. No picture of a real person, no other model",
        "went into them. They prove mechanisms; they do not render people.",
        "",
        "Data: identities are drawn from integers and split by hash into train (80 %), val (10 %) and sealed (10 %);",
        f"training saw train identities only. The DiT saw {dit.TRAIN_SHARDS * data.SHARD} clips. References are photos",
        "that are not from the clip. It went on from an earlier one, trained for 3,000 steps on up to three people who",
        "keep their places (`train dit --start`). The text-to-video DiT has never seen a reference. For the last 400",
        "of its 2,800 steps it was told who is where; the recipe now tells it from the start. On it the identity",
        f"adapter with its LoRA (`{ADAPTER}`) and the rows of the ablation were trained,",
        f"each for {adapter.STEPS} steps of {adapter.BATCH} clips.",
        f"The VLM saw photos of {vlm_data.SHARDS * vlm_data.SHARD:,} people and stories that were drawn",
        "anew for each step, in the forms that training may see; it answers the one request of `IDCrafterRelate`, and",
        "nothing else. It grew while it was trained: for its first 1,600 steps it had five layers, then six; until",
        "step 3,200 its people were 3,000 and its eyes those of step 1,150; from step 5,200 on half of its stories are",
        "told in more forms. The recipe now begins with all of that. The aligner turns what the VLM has read and",
        "answered into the text encoder's tokens; it and the",
        f"LoRA `{guidance.LORA}` were tuned together on stories of the DiT's clips.",
        " and ".join(f"`{name}`" for _, name in RL_LORAS.values()),
        f"are for both at once. They were trained on {rl.GROUPS} casts' takes by the whole stack",
        "(`recipes/rl.py`): IPRO climbs the likeness of faces in new takes, DPO ranks pairs by likeness, motion and",
        "change. Their curves are beside them.",
        "",
        "| run | steps | last loss | hours on this machine |",
        "|---|---|---|---|",
        *[
            f"| {name} | {run['step']} | {run['loss']} | {run['seconds'] / 3600:.2f} |"
            for name, run in _runs(folder).items()
        ],
        "",
        "Scores of the parts on sealed identities (the whole stack is scored by `python run.py bench nano`):",
        "",
        "| part | score | value |",
        "|---|---|---|",
        *[f"| {part} | {name} | {value:.3f} |" for part, values in scores.items() for name, value in values.items()],
        "",
        f"Train them anew with `{REMAKE}`, and then the LoRAs of",
        f"its takes with `{REMAKE_RL} && python -m idcrafter.nano install rl`;",
        "every run is seeded and resumes where it stopped.",
        "",
    ]
    return "\n".join(lines)


def write_photos() -> None:
    """The reference photos of the example cast, as PNG: identity, seed, and whether the background is white."""
    PHOTOS.mkdir(parents=True, exist_ok=True)
    for name, (number, seed, white) in EXAMPLES.items():
        picture, _ = render_photo(sample_identity(number), seed, PHOTO_SIZE, white=white)
        Image.fromarray(picture).save(PHOTOS / f"{name}.png", optimize=True)


def write_clip() -> None:
    """The example video beside the photos: 33 frames, four times as large as the nano model's own, H.264."""
    import av

    name, plan, seed = EXAMPLE_CLIP
    cast = tuple(sample_identity(number) for number, _, _ in EXAMPLES.values())
    clip = plant_clip(plan, cast, cast[0], seed, scale=4, slow=4)
    with av.open(str(PHOTOS / name), "w") as container:
        stream = container.add_stream("libx264", FPS, options={"crf": "20", "preset": "veryslow"})
        stream.height, stream.width = clip.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


def _copy(path: Path, kind: str, name: str | None = None) -> str:
    """Copies a file into a folder of the weights, under another name if one is given -> its digest."""
    target = WEIGHTS / kind / (name or path.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return _digest(target)


def _write_bundle(file: str, name: str, about: str, entries: dict[str, dict]) -> None:
    manifest = {
        "format": "idcrafter-bundle",
        "version": 1,
        "name": name,
        "description": f"Puppets at {WIDTH}x{HEIGHT}, {FRAMES} frames, 1-4 subjects; {about}.",
        "licence": LICENCE,
        "sampling": {"shift": dit.SHIFT},
        **entries,
    }
    path = WEIGHTS / "bundles" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def install_rl(folder: Path) -> None:
    """Copies the shipped runs' LoRAs and curves from ``folder``; they were trained on what was installed before."""
    paths = {run: folder / f"{run}.safetensors" for run in RL_LORAS}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' is not there; '{REMAKE_RL}' makes it.")
    for run, (kind, name) in RL_LORAS.items():
        _copy(paths[run], kind, name)
        _copy(paths[run].with_suffix(".curve.jsonl"), kind, Path(name).with_suffix(".curve.jsonl").name)


def install(folder: Path) -> None:
    """Copies what ``folder`` holds into ``weights`` and measures the parts on sealed identities."""
    entries: dict[str, dict] = {}
    for role, (kind, name) in FILES.items():
        entries[role] = {
            "folder": kind,
            "file": name,
            "sha256": _copy(folder / name, kind),
            "licence": LICENCE,
            "download": REMAKE,
        }
    kind, name, files = PACK
    for pack in (faces.PACK, faces.MONITOR_PACK):
        target = WEIGHTS / kind / "models" / pack
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / faces.PACK / files[0], target / files[0])  # one detector for both
        shutil.copyfile(folder / pack / files[1], target / files[1])
    entries["text_encoder"]["type"] = "wan"
    entries["faces"] = {
        "folder": kind,
        "file": name,
        "sha256": {file: _digest(WEIGHTS / kind / name / file) for file in files},
        "det_size": faces.DETECTOR_SIZE,
        "licence": LICENCE,
        "download": REMAKE,
    }
    kind, name = TEXT_TO_VIDEO
    base = {"model": {**entries["model"], "file": name, "sha256": _copy(folder / name, kind)}}
    _write_bundle("nano.json", "IDCrafter nano", "runs on a CPU", entries)
    _write_bundle("nano_t2v.json", "IDCrafter nano, text to video", "has never seen a reference", entries | base)
    for path in sorted((folder / "rows").iterdir()):
        row, kind, _ = path.name.split(".")
        if row == ADAPTER_ROW:
            _copy(path, ADAPTER_FOLDERS[kind], ADAPTER)
        else:
            _copy(path, "ablation")
    for path in sorted((folder / VLM[1]).iterdir()):
        _copy(path, "/".join(VLM))
    for kind, name in GUIDANCE:
        _copy(folder / name, kind)
    write_photos()
    write_clip()
    scores = {
        "VAE": vae.evaluate(WEIGHTS / "vae" / FILES["vae"][1], split="sealed"),
        "face pack": faces.evaluate(WEIGHTS / kind / name, split="sealed"),
        "monitor pack": faces.evaluate(WEIGHTS / kind / "models" / faces.MONITOR_PACK, split="sealed"),
    }
    (WEIGHTS / "README.md").write_text(_card(folder, scores), encoding="utf-8")
