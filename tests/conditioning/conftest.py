import functools

import comfy.samplers
import pytest
import torch

from support import published as support_published
from support import tiny_families
from support.tiny_stack import cast, inference_mode, shot, stack, tiny_files  # noqa: F401


@pytest.fixture(scope="session")
def model_of(pack, tmp_path_factory):
    """`model_of("vace")`: a tiny MODEL of that family through the pack's loader; `changes` are sizes of its network."""
    loaded = {}

    def model_of(family, **changes):
        key = (family, *sorted(changes.items()))
        if key not in loaded:
            folder = tmp_path_factory.mktemp("families")
            path = tiny_families.write(folder / f"{family}.safetensors", family, **changes)
            with torch.inference_mode():
                loaded[key] = pack.submodule("model_loaders.video_dit").load_video_dit(path)
        return loaded[key]

    return model_of


@pytest.fixture(scope="session")
def rules(pack):
    return pack.submodule("idcrafter.conditioning.rules")


@pytest.fixture
def make_shot(pack, stack, cast):  # noqa: F811
    """A Shot of 64x48 px and 9 frames; every field can be given."""

    def make_shot(**changes):
        fields = {
            "positive": stack.encode("The first waves."),
            "negative": stack.encode("blurred"),
            "vae": stack.vae,
            "cast": cast,
            "width": 64,
            "height": 48,
            "length": 9,
        }
        return pack.submodule("idcrafter.conditioning.shot").Shot(**{**fields, **changes})

    return make_shot


@pytest.fixture(scope="session")
def cast_of(pack):
    """`cast_of(2, 1)`: a cast with so many random photos a subject; `size` is height and width."""
    subjects = pack.submodule("idcrafter.subjects.subject")

    def cast_of(*photo_counts, size=(24, 32)):
        generator = torch.Generator().manual_seed(3)
        return subjects.make_cast(
            [
                subjects.make_subject(f"S{i}", "person", "", torch.rand((n, *size, 3), generator=generator))
                for i, n in enumerate(photo_counts)
            ]
        )

    return cast_of


@pytest.fixture(scope="session")
def denoised():
    """`denoised(guider, latent, sigma)`: the guided prediction of the clean video at one noise level, as sampled."""

    def denoised(guider, latent, sigma=0.8, seed=0):
        samples = latent["samples"]
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
        sigmas = torch.tensor([sigma, 0.0])
        return guider.sample(noise, samples, comfy.samplers.sampler_object("euler"), sigmas, seed=seed)

    return denoised


@pytest.fixture(scope="session")
def published(pack, tmp_path_factory):
    """What the numbers in data/*.safetensors were computed from; see support/published.py."""
    return support_published.inputs(pack, tmp_path_factory.mktemp("published"))


@pytest.fixture
def published_shot(pack, published):
    """The shot of two subjects that those numbers are of."""
    return support_published.shot_of(pack, published)


@pytest.fixture
def velocity(pack, published):
    """`velocity(conditioned, model, sigma, images, text)`: the guided velocity that Sample Takes would integrate."""
    return functools.partial(support_published.velocity, pack, published)


@pytest.fixture(scope="session")
def numbers():
    """`numbers("phantom")`: tensors that the public reference code gave once; the file's metadata names the source."""
    return support_published.numbers
