"""A file -> the Wan 2.1 VAE (16 channels, 8 px and 4 frames a latent), real or nano."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.ldm.wan.vae
import comfy.sd
import comfy.utils
import torch

from . import files
from .guess import describe_other

log = logging.getLogger(__name__)

Z_CHANNELS = 16


def load_vae(path: Path, licence: str | None = None) -> comfy.sd.VAE:
    """Raises ValueError that says what the file holds when it is no Wan 2.1 VAE."""
    header = files.read_header(path)
    check(header)
    log.info(
        "Loading %s: Wan 2.1 VAE, %.1f M parameters, licence: %s.",
        path.name,
        header.parameters / 1e6,
        licence or header.licence or "not stated in the file",
    )
    weights, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    vae.throw_exception_if_invalid()
    # Lets core make clones for other devices from the file, as its own VAELoader does.
    vae.patcher.cached_patcher_init = (comfy.sd.load_vae_patcher, (str(path), metadata, None))
    return vae


def check(header: files.Header) -> None:
    """ValueError unless the file has exactly the layout of a Wan 2.1 VAE of some width."""
    names = header.tensors
    if "decoder.upsamples.0.upsamples.0.residual.2.weight" in names:
        raise ValueError(
            f"'{header.path.name}' holds the Wan 2.2 VAE (48 channels); Wan 2.1 and Phantom need the Wan 2.1 VAE."
        )
    sizes = (
        "decoder.middle.0.residual.0.gamma",
        "decoder.head.0.gamma",
        "encoder.conv1.weight",
        "decoder.head.2.weight",
    )
    if any(name not in names for name in sizes):
        raise ValueError(f"'{header.path.name}' holds {describe_other(header)}, not a Wan 2.1 VAE.")
    # The same reading of the sizes as comfy.sd.VAE.
    with torch.device("meta"):
        model = comfy.ldm.wan.vae.WanVAE(
            dim=names["decoder.head.0.gamma"].shape[0],
            z_dim=Z_CHANNELS,
            dim_mult=[1, 2, 4, 4],
            num_res_blocks=2,
            attn_scales=[],
            temperal_downsample=[False, True, True],
            image_channels=names["encoder.conv1.weight"].shape[1],
            conv_out_channels=names["decoder.head.2.weight"].shape[0],
        )
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    files.check_layout(header, expected, "", "a Wan 2.1 VAE")
