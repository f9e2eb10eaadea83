"""A data set -> what the video model, its text encoder and its VAE make of every clip, in files of a cache folder.

One safetensors file a clip, named by a digest of the clip's own files and words, of the models, and of the size, so
what is there already is not made again, and what has changed is. A file appears whole or not at all. So trainings may
share a cache; each kind of encoding has a folder in it.

    clean            [C, T, h, w] the latents as the model gets them, behind references where a rule puts some in front
    context          [m, D] the prompt's tokens without the zeros at the end; `length` tokens with them
    faces, photos    [S, P, id_width], [S, P] of the references' faces
    maps             [S, P, M, visual_width] what the VAE makes of their crops
    owners           [T, H, W] whose each token is, see `dataset.regions`
    cond.NAME        a further input of the model, [1, ...], NAME.0, NAME.1, ... for a list of such
    absent.NAME      the same without the people, where it is not just zeros

Its metadata: `length`, `subjects` (JSON list of names), `references` (JSON list: the subject of each reference),
`constants` (JSON: inputs that are no tensors), `line` (of the data set), `trim` (leading latent frames that are
references).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch
from safetensors.torch import save_file

from ...backbones.wan import REFERENCE_NAMES
from ...conditioning.rules import apply_rule
from ...conditioning.shot import TEMPORAL_STRIDE, Conditioned, Rule, Shot, check_size
from ...subjects.face_features import by_subject, cast_crops, face_features, vae_look
from ...subjects.faces import FaceAnalyzer, extract_faces
from ...subjects.subject import Cast
from ..dataset.clip import TrainingClip, TrainingDataset
from ..dataset.loading import clip_cast, read_window
from ..dataset.regions import NOBODY, token_owners

# Raise when a change of this module changes what is in the files.
REVISION = 1
EMPTY = "empty"
# Values of a tensor that stand for all of them in a model's digest.
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class Encoder:
    """What clips are encoded by, and to which size.

    model, vae, clip  ComfyUI's MODEL, VAE and CLIP
    analyzer          finds the references' faces; its recogniser embeds them
    rule              how the model takes references; None for none
    wording           of the prompts, one of relations.compose.WORDINGS
    width, height     pixels, multiples of 16
    frames            at most, 4 n + 1; a shorter clip gives as many as it has
    crop              side in px of a face's crop as the VAE gets it
    """

    model: Any
    vae: Any
    clip: Any
    analyzer: FaceAnalyzer
    rule: Rule | None
    wording: str
    width: int
    height: int
    frames: int
    crop: int

    def __post_init__(self):
        check_size(self.width, self.height, self.frames)
        if self.rule is not None and self.rule.patches:
            raise ValueError(
                f"The {self.rule.title} rule changes the model, which training does not do yet; train without "
                "references (rule none)."
            )
        if getattr(self.model.get_model_object("diffusion_model"), "patch_size_t", None):
            raise ValueError("Models whose tokens span two latent frames (CogVideoX 1.5) cannot be trained on yet.")

    def digest(self) -> str:
        """Hex digest of everything here that shapes an encoding."""
        models = [weights_digest(part) for part in (self.vae.first_stage_model, self.clip.cond_stage_model)]
        model = [type(self.model.model).__name__, type(self.model.model.latent_format).__name__]
        rule = None if self.rule is None else self.rule.name
        size = [self.width, self.height, self.frames, self.crop]
        return _digest([REVISION, models, model, self.analyzer.describe(), rule, self.wording, size])


def encode_dataset(
    dataset: TrainingDataset,
    encoder: Encoder,
    folder: Path,
    on_clip: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> list[Path]:
    """The files of all clips in their order; the empty prompt's is `EMPTY`.safetensors beside them.

    on_clip  called with (clips done, clips in all) after each clip, for progress and interruption
    part     (i, n): make only every n-th missing file, from the i-th on; n processes make all of them
    Raises ValueError for a clip that the rule or the VAE cannot take, naming its line.
    """
    digest = encoder.digest()
    folder = folder / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    empty = encode_text(encoder.clip, "")
    negative = folder / f"{EMPTY}.safetensors"
    if part[0] == 0:
        tokens, length = _without_padding(empty[0][0][0])
        _save({"context": tokens}, negative, {"length": str(length)})
    paths = []
    for i, clip in enumerate(dataset.clips):
        path = folder / f"{clip_digest(clip, digest)[:32]}.safetensors"
        if not path.exists() and i % part[1] == part[0]:
            try:
                tensors, facts = encode_clip(clip, encoder, empty)
            except ValueError as error:
                raise ValueError(f"Line {clip.line} of the data set ({clip.video.name}): {error}") from error
            _save(tensors, path, facts)
        paths.append(path)
        if on_clip is not None:
            on_clip(i + 1, len(dataset.clips))
    return paths


@torch.no_grad()
def encode_clip(clip: TrainingClip, encoder: Encoder, empty: list) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a clip's file; `empty` is the CONDITIONING of the empty prompt."""
    if clip.length < 1:
        raise ValueError("it has no frames; remove the line.")
    count = (min(clip.length, encoder.frames) - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    size = (encoder.width, encoder.height)
    to_model = encoder.model.model.process_latent_in
    clean = to_model(encoder.vae.encode(read_window(clip, *size, 0, count)))
    owners = token_owners(clip, *size, 0, count)
    cast = clip_cast(clip)
    cast = cast.with_faces(extract_faces(cast, encoder.analyzer, "skip", "largest"))
    faces, maps, photos = _faces(cast, encoder, to_model)
    prompt = encode_text(encoder.clip, clip.prompt(encoder.wording))
    if encoder.rule is None:
        conditioned = Conditioned(prompt, empty, empty, {}, torch.empty(0), [], [])
    else:
        shot = Shot(prompt, empty, encoder.vae, cast, *size, count, model=encoder.model)
        conditioned = apply_rule(encoder.rule, shot)
    if conditioned.trim:
        # References that are part of the video: the model makes them, and they are cut off.
        leading = torch.cat([encoder.vae.encode(picture[None]) for picture in conditioned.references], dim=2)
        clean = torch.cat([to_model(leading), clean], dim=2)
        owners = torch.cat([owners.new_full((conditioned.trim, *owners.shape[1:]), NOBODY), owners])
    tensors, constants = {}, {}
    inputs = {
        kind: model_inputs(encoder.model, conditioning, torch.zeros_like(clean))
        for kind, conditioning in (("cond", conditioned.positive), ("absent", conditioned.negative_images))
    }
    context = inputs["cond"].pop("c_crossattn")
    inputs["absent"].pop("c_crossattn")
    for kind, found in inputs.items():
        for name, value in found.items():
            for key, each in _flat(name, value):
                if not torch.is_tensor(each):
                    constants[key] = each
                elif kind == "cond" or each.any():
                    tensors[f"{kind}.{key}"] = each
    names = [subject.name for subject in cast.subjects]
    shown = conditioned.positive[0][1].get(REFERENCE_NAMES) or ()
    tokens, length = _without_padding(context[0])
    tensors |= {"clean": clean[0], "context": tokens, "owners": owners}
    tensors |= {"faces": faces, "photos": photos, "maps": maps}
    facts = {
        "length": str(length),
        "line": str(clip.line),
        "trim": str(conditioned.trim),
        "subjects": json.dumps(names),
        "references": json.dumps([None if name is None else names.index(name) for name in shown]),
        "constants": json.dumps(constants, sort_keys=True),
    }
    return tensors, facts


def encode_text(clip, text: str) -> list:
    """CONDITIONING of a prompt."""
    with torch.no_grad():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def model_inputs(model, conditioning: list, latent: torch.Tensor) -> dict[str, Any]:
    """What core gives `apply_model` for the first entry of a CONDITIONING: tensors, lists of them, constants."""
    device = model.load_device
    conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
    latent = latent.to(device)
    (cond,) = comfy.samplers.encode_model_conds(
        model.model.extra_conds, conds, latent, device, "positive", latent_image=latent
    )
    return {name: c.process_cond(batch_size=1, area=None).cond for name, c in cond["model_conds"].items()}


def clip_digest(clip: TrainingClip, salt: str) -> str:
    """Hex digest of a clip's pixels, words and places, and of `salt`."""
    subjects = [
        [s.name, s.kind, s.description, s.faces, s.track, [_file_digest(path) for path in s.references]]
        + ([] if s.masks is None else [_file_digest(path) for path in _files(s.masks)])
        for s in clip.subjects
    ]
    return _digest([salt, _file_digest(clip.video), clip.caption, subjects])


def weights_digest(module: torch.nn.Module) -> str:
    """Hex digest of a model by names, shapes and some values of each tensor: the whole of a large one takes minutes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not torch.is_tensor(tensor):
            continue
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // _SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _faces(cast: Cast, encoder: Encoder, to_model: Callable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(embeddings [S, P, id_width], maps [S, P, M, C], photos [S, P]); all zeros where nobody has a face."""
    recogniser = getattr(encoder.analyzer, "recogniser", None)
    if recogniser is None:
        raise ValueError("the face analyzer has no recogniser; use one of Load Bundle or Load Face Analyzer.")
    look = vae_look(lambda pixels: to_model(encoder.vae.encode(pixels)), encoder.crop)
    somebody = any(own is not None for own in cast.faces.subjects)
    # Of nobody, only the shapes are wanted.
    blank = torch.zeros(encoder.crop, encoder.crop, 3, dtype=torch.uint8).numpy()
    crops, owners = cast_crops(cast) if somebody else ([blank], [0])
    found = face_features(crops, recogniser, look)
    count = len(cast.subjects)
    faces, photos = by_subject(found.identity, owners, count)
    maps, _ = by_subject(found.maps[0], owners, count)
    return (faces, maps, photos) if somebody else (faces * 0, maps * 0, photos * 0)


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """A list of tensors under numbered names, anything else under its own."""
    if isinstance(value, list) and value and all(torch.is_tensor(each) for each in value):
        return [(f"{name}.{i}", each) for i, each in enumerate(value)]
    return [(name, value)]


def _without_padding(context: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Tokens [M, D] without the zeros at the end, and M."""
    words = context.abs().amax(dim=-1).nonzero()
    last = int(words.max()) + 1 if len(words) else 1
    return context[:last], len(context)


def _save(tensors: dict[str, torch.Tensor], path: Path, facts: dict[str, str]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, part, facts)
    os.replace(part, path)


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.png")) if path.is_dir() else [path]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _read(file)


def _read(file) -> str:
    # Python 3.10 has no file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
