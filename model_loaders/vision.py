"""DINO and CLIP image encoders and the aesthetic predictor, from local folders and files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.ops
import comfy.utils
import numpy as np
import torch
from PIL import Image

from ..idcrafter.modules.aesthetic import DIMENSIONS, WIDTHS, AestheticHead
from ..idcrafter.subjects.faces import to_uint8
from . import files, pretrained

log = logging.getLogger(__name__)

DINO = ("dino-vits16", "facebook/dino-vits16")
CLIP = ("clip-vit-large-patch14", "openai/clip-vit-large-patch14")
AESTHETIC_FILE = "sac+logos+ava1-l14-linearMSE.pth"
AESTHETIC_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True, eq=False)
class DinoEncoder:
    """DINO's class token as the embedding of a picture, prepared as PSR does it (shorter side 256, middle 224)."""

    model: pretrained.Pretrained
    size: int

    def embed(self, images: Sequence[torch.Tensor]) -> np.ndarray:
        """Unit embeddings [N, D] of N images [H, W, 3] in 0..1."""
        pixels = prepare(images, round(self.size * 256 / 224), self.size, *_IMAGENET)
        with self.model.use() as (net, device):
            tokens = net(pixel_values=pixels.to(device, net.dtype)).last_hidden_state[:, 0]
        return _unit(tokens)

    def describe(self) -> dict:
        return self.model.describe()


@dataclass(frozen=True, eq=False)
class AestheticPredictor:
    """CLIP-L/14 and LAION's head on top of it."""

    model: pretrained.Pretrained
    head: AestheticHead
    file: str
    size: int

    def rate(self, images: Sequence[torch.Tensor]) -> np.ndarray:
        """Ratings [N] of N images [H, W, 3] in 0..1."""
        pixels = prepare(images, self.size, self.size, *_CLIP)
        with self.model.use() as (net, device):
            embeddings = net(pixel_values=pixels.to(device, net.dtype)).image_embeds
            return self.head(torch.from_numpy(_unit(embeddings))).numpy()

    def describe(self) -> dict:
        return {**self.model.describe(), "head": self.file}


def load_image_encoder(folder: Path) -> DinoEncoder:
    """A DINO (v1) or DINOv2 folder. Raises ValueError for other models, naming what the folder holds."""
    config = pretrained.read_config(folder)
    kinds = {"vit": "ViTModel", "dinov2": "Dinov2Model"}
    if config["model_type"] not in kinds:
        raise ValueError(
            f"'{folder.name}' is a {config['model_type']}, but subject crops need DINO (vit) or DINOv2, such as "
            f"{DINO[1]}."
        )
    import transformers

    # DINO's release has no pooler, which ViTModel would otherwise miss; only the class token is used.
    extra = {"add_pooling_layer": False} if config["model_type"] == "vit" else {}
    model = pretrained.load(folder, getattr(transformers, kinds[config["model_type"]]), config, **extra)
    return DinoEncoder(model, min(int(config.get("image_size", 224)), 224))


def load_aesthetic_predictor(folder: Path, head: Path) -> AestheticPredictor:
    """A CLIP folder (the whole model or its vision half) and the predictor's file.

    Raises ValueError for another model, or a head that does not fit it.
    """
    config = pretrained.read_config(folder)
    if config["model_type"] not in ("clip", "clip_vision_model"):
        raise ValueError(f"'{folder.name}' is a {config['model_type']}, but the aesthetic predictor needs {CLIP[1]}.")
    import transformers

    net = load_head(head)
    model = pretrained.load(folder, transformers.CLIPVisionModelWithProjection, config)
    vision = config.get("vision_config", config)
    width = int(config.get("projection_dim", vision.get("projection_dim", DIMENSIONS)))
    wanted = net.layers[0].in_features
    if width != wanted:
        raise ValueError(
            f"'{head.name}' rates embeddings of {wanted} numbers, but '{folder.name}' makes {width}; it was trained on "
            f"{CLIP[1]}."
        )
    return AestheticPredictor(model, net, head.name, int(vision.get("image_size", 224)))


def load_head(path: Path) -> AestheticHead:
    """The predictor's file, .pth or .safetensors. Raises ValueError that names the first difference to its layout."""
    header = files.read_header(path)
    first = header.tensors.get("layers.0.weight")
    dimensions = first.shape[1] if first is not None and first.ndim == 2 else DIMENSIONS
    expected = AestheticHead(torch.nn, dimensions, WIDTHS, device="meta").state_dict()
    files.check_layout(header, {k: v.shape for k, v in expected.items()}, "", "an aesthetic predictor")
    net = AestheticHead(comfy.ops.disable_weight_init, dimensions)
    net.load_state_dict(comfy.utils.load_torch_file(str(path), safe_load=True))
    return net.float().eval().requires_grad_(False)


def prepare(
    images: Sequence[torch.Tensor], resize: int, crop: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Images [H, W, 3] -> [N, 3, crop, crop]: the shorter side to `resize` (bicubic), the middle of it, normalised."""
    rows = []
    for i, image in enumerate(images):
        if not torch.isfinite(image).all():
            raise ValueError(f"Picture {i + 1} holds NaN or infinite pixels; look at the node that made it.")
        height, width = image.shape[:2]
        # The longer side is truncated, as torchvision and transformers do it.
        size = tuple(max(resize, int(resize * side / min(height, width))) for side in (width, height))
        picture = Image.fromarray(to_uint8(image)).resize(size, Image.Resampling.BICUBIC)
        left, top = ((side - crop) // 2 for side in picture.size)
        rows.append(np.asarray(picture.crop((left, top, left + crop, top + crop)), np.float32) / 255)
    pixels = (np.stack(rows) - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(pixels).movedim(-1, 1).contiguous()


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    values = embeddings.float()
    return (values / values.norm(dim=-1, keepdim=True).clamp(min=1e-12)).cpu().numpy()
