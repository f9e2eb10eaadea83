"""The Phantom and RefAlign rules against numbers that their public reference code gave once.

The numbers are in tests/conditioning/data/*.safetensors; each file's metadata names the repository, its commit and the
functions that were run, on the weights, photos, noise and prompts below (float32, CPU).
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import comfy.samplers
import safetensors
import torch

from . import tiny_models

LIMIT = 1e-4
_DATA = Path(__file__).resolve().parents[1] / "conditioning" / "data"


def numbers(name: str) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(_DATA / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def inputs(pack, folder: Path) -> dict:
    """What the numbers were computed from: weights, photos, noise and two encoded prompts."""
    generator = torch.Generator().manual_seed(13)
    photos = (torch.rand((2, 48, 64, 3), generator=generator) * 255).round() / 255
    wide = torch.rand((6, 10, 3), generator=generator)
    wide = torch.nn.functional.interpolate(
        ((wide * 255).round() / 255).movedim(-1, 0)[None], size=(60, 100), mode="bicubic"
    )
    wide = (wide.clamp(0, 1)[0].movedim(0, -1) * 255).round() / 255
    noise = torch.randn((1, 16, 3, 6, 8), generator=generator)
    prompt, negative = (torch.randn((1, 24, 32), generator=generator) for _ in range(2))
    dit = tiny_models.write_dit(folder / "refalign.safetensors", seed=11, dim=48)
    vae = tiny_models.write_vae(folder / "vae.safetensors", seed=12)
    with torch.inference_mode():
        return {
            "model": pack.submodule("model_loaders.video_dit").load_video_dit(dit),
            "vae": pack.submodule("model_loaders.vae").load_vae(vae),
            "photos": photos,
            "wide": wide,
            "noise": noise,
            "positive": [[prompt, {}]],
            "negative": [[negative, {}]],
        }


def shot_of(pack, published: dict):
    """The shot of two subjects that the numbers are of."""
    subjects = pack.submodule("idcrafter.subjects.subject")
    people = [subjects.make_subject(f"S{i}", "person", "", photo[None]) for i, photo in enumerate(published["photos"])]
    return pack.submodule("idcrafter.conditioning.shot").Shot(
        published["positive"], published["negative"], published["vae"], subjects.make_cast(people), 64, 48, 9,
        model=published["model"],
    )  # fmt: skip


def velocity(pack, published: dict, conditioned, model, sigma: float, images: float = 5.0, text: float = 7.5):
    """The guided velocity that Sample Takes would integrate."""
    guider = pack.submodule("idcrafter.sampling.guiders").make_guider(
        model, conditioned.positive, conditioned.negative_text, conditioned.negative_images, text, images
    )
    # With noise / sigma the sampler starts from the noise itself, whatever the noise level.
    latent, noise = conditioned.latent["samples"], published["noise"]
    clean = guider.sample(
        noise / sigma, latent, comfy.samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), seed=0
    )
    return (noise - model.model.process_latent_in(clean)) / sigma


def checks(pack, folder: Path) -> Iterator[dict]:
    """{"name", "max_abs", "ok"} of every number."""
    published = inputs(pack, folder)
    shot = shot_of(pack, published)
    rules = SimpleNamespace(
        **{name: pack.submodule(f"idcrafter.conditioning.{name}") for name in ("phantom", "refalign")}
    )
    phantom, refalign = rules.phantom.condition(shot), rules.refalign.condition(shot)
    theirs = numbers("phantom")
    references = published["model"].model.process_latent_in(phantom.positive[0][1]["time_dim_concat"])
    yield _check("phantom, encoded references, public reference code", references, theirs["references"])
    for time in (900, 400):
        ours = velocity(pack, published, phantom, published["model"], time / 1000)
        yield _check(f"phantom, guided velocity at {time}, public reference code", ours, theirs[f"velocity_{time}"])
    theirs = numbers("refalign")
    for time in (900, 400):
        for name, scales in (("velocity", {}), ("prompt", {"images": 1.0, "text": 1.0})):
            ours = velocity(pack, published, refalign, refalign.model, time / 1000, **scales)
            yield _check(f"refalign, {name} at {time}, public reference code", ours, theirs[f"{name}_{time}"])


def _check(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> dict:
    difference = float((ours - theirs).abs().max())
    return {"name": name, "max_abs": difference, "ok": difference <= LIMIT}
