"""An identity adapter's file -> a ModelPatcher of an IdentityAdapter, and with its eyes an `Adapter`.

A file of this pack has its AdapterConfig as JSON in the safetensors metadata, under "idcrafter_adapter". The released
Ingredients checkpoint (feizhengcong/Ingredients, `transformer`, two shards) holds an adapter beside the CogVideoX
transformer that it was trained on: of its 1,491 tensors 466 are the adapter's, and Load Video DiT reads the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import safetensors.torch
import torch

from ..idcrafter.modules.identity_adapter import INGREDIENTS, PARTS, AdapterConfig, IdentityAdapter, layout
from ..idcrafter.subjects.face_features import FaceFeatures, by_subject, cast_crops, face_features, vae_look
from ..idcrafter.subjects.subject import Cast
from . import checkpoint, eva_clip, files
from .ingredients import config_of

log = logging.getLogger(__name__)

FOLDER = "idcrafter_adapters"
METADATA = "idcrafter_adapter"
ATTACHMENT = "idcrafter_adapter"
# sha256 of the recogniser whose embeddings Ingredients was trained on: insightface's antelopev2, glintr100.onnx.
GLINTR100 = "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf"
# Faces that go through the extractor at once.
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter and what looks at the faces for it.

    patcher  of the IdentityAdapter, with the attachment of `load_adapter`
    eyes     EVA02-CLIP, or None for an adapter that looks through the video model's VAE
    """

    patcher: comfy.model_patcher.ModelPatcher
    eyes: eva_clip.EvaEncoder | None

    @property
    def config(self) -> AdapterConfig:
        return self.patcher.model.config

    @property
    def facts(self) -> dict:
        return self.patcher.get_attachment(ATTACHMENT)

    def identity_tokens(
        self,
        cast: Cast,
        vae=None,
        to_model: Callable[[torch.Tensor], torch.Tensor] | None = None,
        on_photo: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Who the cast is, for `attach_subjects`: tokens [S, P, K, C] of all photos, photos [S, P] (float32, CPU).

        vae, to_model  of the video model, for an adapter that looks through it; `to_model` normalises a latent
        on_photo       called after each face, for progress and interruption
        Raises ValueError for a cast without faces or with more subjects than the adapter tells apart, or a recogniser
        or VAE that the adapter can't use.
        """
        if 0 < self.config.order < len(cast.subjects):
            raise ValueError(
                f"The cast has {len(cast.subjects)} subjects, and the adapter '{self.facts['file']}' was trained to "
                f"count {self.config.order}; leave some out."
            )
        features, owners = self.features(cast, vae, to_model, on_photo)
        comfy.model_management.load_models_gpu([self.patcher])
        extractor, device = self.patcher.model.local_facial_extractor, self.patcher.load_device
        tokens = []
        with torch.inference_mode():
            for i in range(0, len(owners), _BATCH):
                part = slice(i, i + _BATCH)
                maps = [each[part].to(device) for each in features.maps]
                tokens.append(extractor(features.identity[part].to(device), maps).float().cpu())
        return by_subject(torch.cat(tokens), owners, len(cast.subjects))

    def features(self, cast: Cast, vae=None, to_model=None, on_photo=None) -> tuple[FaceFeatures, list[int]]:
        """What the extractor takes of every face, and the subject (from 0) of each; see `identity_tokens`."""
        config = self.config
        crops, owners = cast_crops(cast, on_photo)
        recogniser = getattr(cast.faces.analyzer, "recogniser", None)
        if recogniser is None:
            raise ValueError(
                "The analyzer that found the cast's faces embeds no other crops of them; run Extract Faces with the "
                "analyzer of Load Bundle or Load Face Analyzer."
            )
        look = self.eyes
        if config.visual == "vae":
            if vae is None:
                raise ValueError(
                    f"The adapter '{self.facts['file']}' looks at faces through the VAE; connect the one of the video "
                    "model."
                )
            look = vae_look(lambda pixels: to_model(vae.encode(pixels)), config.crop)
        features = face_features(crops, recogniser, look)
        widths = (features.identity.shape[1], features.maps[0].shape[2], len(features.maps))
        if widths != (config.id_width, config.visual_width, config.scales):
            raise ValueError(
                f"The adapter '{self.facts['file']}' was made for face embeddings of {config.id_width} numbers and "
                f"{config.scales} hidden maps of width {config.visual_width}; recogniser and image encoder give "
                f"{widths[0]} numbers and {widths[2]} maps of width {widths[1]}. Connect those of its training."
            )
        return features, owners

    def warnings(self, cast: Cast) -> list[str]:
        """What the user should know about this adapter with this cast."""
        notes = []
        wanted = self.facts.get("recogniser")
        facts = getattr(getattr(cast.faces.analyzer, "recogniser", None), "facts", None)
        if wanted and facts is not None and wanted not in facts.files.values():
            notes.append(
                f"The faces are recognised by {facts.name}, but the adapter '{self.facts['file']}' was trained with "
                "another recogniser and will not know them. Extract the faces with "
                + ("antelopev2." if wanted == GLINTR100 else "the one of its training.")
            )
        faceless = [s.name for s, own in zip(cast.subjects, cast.faces.subjects, strict=True) if own is None]
        if faceless:
            notes.append(f"Without a face, so not injected: {', '.join(faceless)}.")
        return notes


def load_whole(path: Path, encoder: Path | None = None) -> Adapter:
    """An adapter and its eyes; `encoder` is the file of EVA02-CLIP, or None to look for it at its usual places.

    Raises as `load_adapter` and `eva_clip.load_eva`; a missing encoder's message has the command that downloads it.
    """
    header = checkpoint.open_checkpoint(path)
    if read_config(header).visual == "vae":
        return Adapter(load_adapter(path), None)
    # Looked for before the adapter is read.
    encoder = encoder or eva_clip.require(header.path)
    return Adapter(load_adapter(path), eva_clip.load_eva(encoder))


def load_adapter(path: Path) -> comfy.model_patcher.ModelPatcher:
    """The adapter of a file or folder; its `model.config` says which DiT it fits.

    The attachment "idcrafter_adapter" has "file", "licence", "size" (parameters), "layout" ("idcrafter" or
    "ingredients"), "recogniser" (sha256 of its file) where known, and "sha256" of a single file.
    Raises ValueError or FileNotFoundError that says what is wrong with the file, before anything is allocated.
    """
    header = checkpoint.open_checkpoint(path)
    config = read_config(header)
    name = header.path.name
    own = {key: tensor for key, tensor in header.tensors.items() if key.startswith(PARTS)}
    if config.router and not any(key.startswith("router.") for key in own):
        raise ValueError(
            f"'{name}' has no tensors of the ID router (router.*), so it could not tell several people apart; it may "
            "be a ConsisID checkpoint, or a part of the shards is missing. Download all shards of Ingredients again."
        )
    expected = layout(config)
    files.check_layout(files.Header(header.path, own, header.metadata), expected, "", "an identity adapter", ())
    weights = checkpoint.read_weights(header)
    weights = {key: weights[key] for key in expected}
    checkpoint.check_finite(weights, name)
    with torch.device("meta"):
        adapter = IdentityAdapter(config, comfy.ops.manual_cast)
    # Shapes are checked above; assigning keeps the file's type, which the layers cast as they compute.
    adapter.load_state_dict(weights, assign=True)
    adapter.eval().requires_grad_(False)
    patcher = comfy.model_patcher.ModelPatcher(
        adapter, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    )
    released = METADATA not in header.metadata
    facts = {
        "file": Path(path).name,
        "licence": header.licence or ("Apache-2.0 (as Ingredients was published)" if released else "not stated"),
        "size": sum(tensor.numel() for tensor in weights.values()),
        "layout": "ingredients" if released else "idcrafter",
    }
    recogniser = GLINTR100 if config == INGREDIENTS else header.metadata.get("recogniser")
    if recogniser:
        facts["recogniser"] = recogniser
    if not header.parts:
        facts["sha256"] = files.sha256_of(header.path)
    patcher.set_attachments(ATTACHMENT, facts)
    log.info("Loaded %s: %s", facts["file"], describe(config, facts))
    return patcher


def describe(config: AdapterConfig, facts: dict) -> str:
    """One line about a loaded adapter: what it fits, what is in it, its size and licence."""
    size = facts["size"]
    parts = [
        f"for {config.backbone} of width {config.width} with {config.blocks} blocks",
        f"{len(config.after)} insertions",
        ("router with a null identity" if config.null else "router") if config.router else "no router",
        f"hierarchy of {config.hierarchy}" if config.hierarchy else "no hierarchy",
        *(["attention among a subject's references"] if config.reference_heads else []),
        f"{size / 1e9:.2f} B parameters" if size >= 1e8 else f"{size / 1e6:.3g} M parameters",
    ]
    return ", ".join([*parts, f"licence: {facts['licence']}"]) + "."


def read_config(header: files.Header) -> AdapterConfig:
    """What the header says about the adapter; ValueError when it holds none."""
    name = header.path.name
    text = header.metadata.get(METADATA)
    try:
        if text is not None:
            return AdapterConfig.loads(text)
        if any(key.startswith(PARTS[0]) for key in header.tensors):
            return config_of(header.tensors, header.config)
    except ValueError as error:
        raise ValueError(f"'{name}': {error}.") from error
    raise ValueError(
        f"'{name}' holds no identity adapter: it has neither the metadata '{METADATA}' of this pack's files nor the "
        "tensors of Ingredients (local_facial_extractor.*)."
    )


def save_adapter(adapter: IdentityAdapter, path: Path, licence: str, **facts: str) -> Path:
    """Write an adapter as this pack's file, in one step: a reader sees the whole file or none.

    facts  further entries of its metadata, as "recogniser", the sha256 of the one whose embeddings it knows
    """
    path = Path(path)
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in adapter.state_dict().items()}
    metadata = {"format": "pt", METADATA: adapter.config.dumps(), "licence": licence, **facts}
    part = path.with_name(path.name + ".part")
    safetensors.torch.save_file(weights, part, metadata)
    os.replace(part, path)
    return path
