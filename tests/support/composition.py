"""A shot of any family with ComfyUI's own nodes: conditioning with references, and each way of sampling it."""

import torch

FRAMES, HEIGHT, WIDTH = 3, 6, 8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class ClipVision:
    penultimate_hidden_states = noise(1, 257, 1280, seed=3)


class Shot:
    """Conditioning with references where the family takes them, and an empty latent."""

    def __init__(self, pack, family, frames=FRAMES):
        self.run = pack.execute
        channels = 48 if family == "wan-ti2v" else 16
        size = (frames, HEIGHT, WIDTH)
        self.latent = {"samples": torch.zeros(1, channels, *size)}
        extra = {
            "phantom": {"time_dim_concat": noise(1, 16, 2, HEIGHT, WIDTH)},
            "bernini": {"context_latents": [noise(1, 16, 1, HEIGHT, WIDTH), noise(1, 16, 1, 4, 10)]},
            "vace": {
                "vace_frames": [noise(1, 32, *size)],
                "vace_mask": [torch.ones(1, 64, *size)],
                "vace_strength": [0.8],
            },
            "humo": {"reference_latents": [noise(1, 16, 2, HEIGHT, WIDTH)]},
            "wan-i2v": {"concat_latent_image": noise(1, 16, *size), "clip_vision_output": ClipVision()},
            "cogvideox-i2v": {"concat_latent_image": noise(1, 16, *size)},
        }
        extra["skyreels-v3"] = extra["refalign"] = extra["phantom"]
        extra = extra.get(family, {})
        tokens = 226 if family == "cogvideox-i2v" else 7
        self.positive = [[noise(1, tokens, 32, seed=1), dict(extra)]]
        self.negative = [[noise(1, tokens, 32, seed=2), dict(extra)]]

    def ksampler(self, model, cfg=3.0, steps=3):
        return self.run(
            "KSampler", model=model, seed=5, steps=steps, cfg=cfg, sampler_name="euler", scheduler="simple",
            positive=self.positive, negative=self.negative, latent_image=self.latent, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    def custom(self, model, guider, **inputs):
        guider = self.run(guider, model=model, **inputs)[0]
        sampler = self.run("KSamplerSelect", sampler_name="euler")[0]
        sigmas = self.run("BasicScheduler", model=model, scheduler="simple", steps=3, denoise=1.0)[0]
        random = self.run("RandomNoise", noise_seed=5)[0]
        return self.run(
            "SamplerCustomAdvanced", noise=random, guider=guider, sampler=sampler, sigmas=sigmas,
            latent_image=self.latent,
        )[0]["samples"]  # fmt: skip
