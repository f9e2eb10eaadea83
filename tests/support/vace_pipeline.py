"""What diffusers' WanVACEPipeline gives its transformer, and what core gives its own, from the same pictures."""

from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image

from . import tiny_families, tiny_models

LIMIT = 1e-4


def make_pipeline(vae_file: Path):
    """The pipeline around the tiny VAE of a file in native names."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanVACEPipeline, WanVACETransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    vae = AutoencoderKLWan(base_dim=tiny_models.VAE_WIDTH, z_dim=16)
    vae.load_state_dict(convert_wan_vae_to_diffusers(safetensors.torch.load_file(vae_file)), strict=True)
    config = tiny_families.diffusers_config("vace")
    config.pop("_class_name")
    return WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=WanVACETransformer3DModel(**config),
    )


def photos() -> list[torch.Tensor]:
    """Three photos of exactly the video's size with 8 bits a channel, so that nobody has anything to scale."""
    generator = torch.Generator().manual_seed(21)
    return [(torch.rand((48, 64, 3), generator=generator) * 255).round() / 255 for _ in range(3)]


def control() -> tuple[torch.Tensor, torch.Tensor]:
    """A video [9, 48, 64, 3] with 8 bits a channel and a binary mask [9, 48, 64] of blocks that move."""
    generator = torch.Generator().manual_seed(22)
    video = (torch.rand((9, 48, 64, 3), generator=generator) * 255).round() / 255
    mask = torch.zeros((9, 48, 64))
    for t in range(9):
        mask[t, 8:40, 4 * t : 4 * t + 20] = 1.0
    return video, mask


def context_of_pipeline(pipeline, references, video=None, mask=None, length: int = 9) -> torch.Tensor:
    """The 96 channels that diffusers gives its transformer."""

    def pictures(frames):
        return None if frames is None else [Image.fromarray((f * 255).round().byte().numpy()) for f in frames]

    arguments = pipeline.preprocess_conditions(
        pictures(video), pictures(mask), pictures(references), 1, 48, 64, length, torch.float32, torch.device("cpu")
    )
    latents = pipeline.prepare_video_latents(*arguments, device=torch.device("cpu"))
    return torch.cat([latents, pipeline.prepare_masks(*arguments[1:])], dim=1)


def context_of_core(conditioning, model, latent) -> torch.Tensor:
    """The 96 channels that core gives its model."""
    conds = model.model.extra_conds(noise=latent["samples"], device=torch.device("cpu"), **conditioning[0][1])
    return conds["vace_context"].cond[:, 0]


def checks(pack, folder: Path) -> Iterator[dict]:
    """{"name", "max_abs", "ok"}: three references alone, and with a control video and masks.

    In the cast's order. diffusers puts each reference before the last, so it is given them from last to first.
    """
    loaders = {name: pack.submodule(f"model_loaders.{name}") for name in ("vae", "video_dit")}
    subjects, vace = pack.submodule("idcrafter.subjects.subject"), pack.submodule("idcrafter.conditioning.vace")
    vae_file = tiny_models.write_vae(folder / "vae.safetensors")
    vae = loaders["vae"].load_vae(vae_file)
    model = loaders["video_dit"].load_video_dit(tiny_families.write(folder / "vace.safetensors", "vace"))
    pipeline = make_pipeline(vae_file)
    people = [subjects.make_subject(n, "person", "", photo[None]) for n, photo in zip("ABC", photos(), strict=True)]
    prompt = [[torch.zeros(1, 7, 32), {}]]
    for name, (video, mask) in (("", (None, None)), (", control video and masks", control())):
        shot = pack.submodule("idcrafter.conditioning.shot").Shot(
            prompt, prompt, vae, subjects.make_cast(people), 64, 48, 9, model=model,
            control_video=video, control_masks=mask,
        )  # fmt: skip
        out = vace.condition(shot)
        ours = context_of_core(out.positive, model, out.latent)
        theirs = context_of_pipeline(pipeline, photos()[::-1], video, mask)
        difference = float((ours - theirs).abs().max())
        yield {
            "name": f"vace, conditioning of 3 references{name}, diffusers' pipeline",
            "max_abs": difference,
            "ok": difference <= LIMIT,
        }
