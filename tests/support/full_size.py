"""Video models at their released sizes, without weights or with random ones, and an identity adapter in them.

On the meta device a step costs nothing and still shows its operations and its memory; on others it can be timed.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from .storage import PeakStorage

NAMES = ["Ada", "Bo", "Cy"]
PHOTOS = 2  # of each subject


@dataclasses.dataclass(frozen=True)
class Size:
    """A video model and a video.

    kind    class in comfy.supported_models; config: what core's network is made with
    latent  channels, frames, rows, columns
    text    tokens of the prompt
    """

    kind: str
    config: dict
    latent: tuple[int, int, int, int]
    text: int
    text_width: int = 4096

    @property
    def tokens(self) -> int:
        """Of the video."""
        return self.latent[1] * (self.latent[2] // 2) * (self.latent[3] // 2)

    def shortened(self, blocks: int, latent: tuple[int, int, int, int]) -> Size:
        return dataclasses.replace(self, config={**self.config, "num_layers": blocks}, latent=latent)


_WAN = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "freq_dim": 256, "text_dim": 4096}
_VIDEO = (16, 21, 60, 104)  # 832x480, 81 frames
# Wan-Video/Wan2.1, wan/configs/wan_t2v_1_3B.py and wan_t2v_14B.py.
WAN_1_3B = Size("WAN21_T2V", {**_WAN, "dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}, _VIDEO, 512)
WAN_14B = Size("WAN21_T2V", {**_WAN, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}, _VIDEO, 512)
# zai-org/CogVideoX-5b-I2V, transformer/config.json; 720x480, 49 frames.
COGVIDEOX_5B = Size(
    "CogVideoX_I2V",
    {
        "image_model": "cogvideox",
        "num_attention_heads": 48,
        "num_layers": 42,
        "in_channels": 32,
        "use_rotary_positional_embeddings": True,
    },
    (16, 13, 60, 90),
    226,
)


def adapter_config(lib, size: Size):
    """The most costly adapter of this project for a Wan model: Ingredients' sizes, and all that Ingredients lacks.

    lib  idcrafter.modules.identity_adapter
    """
    c = size.config
    more = {"null": True, "hierarchy": 2, "reference_heads": c["num_heads"]}
    return lib.AdapterConfig("wan", c["dim"], c["num_layers"], **more)


def model_of(size: Size, dtype: torch.dtype, device: torch.device, patcher_device: torch.device | None = None):
    """A MODEL of this size on `device`; elsewhere than on the meta device its weights are random."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, size.kind)(dict(size.config))
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    _fill(model.diffusion_model, 0)
    return comfy.model_patcher.ModelPatcher(model, patcher_device or device, device)


def adapter_of(pack, config, dtype: torch.dtype, device: torch.device):
    """A ModelPatcher of an adapter; elsewhere than on the meta device its weights are random, gates too."""
    import comfy.model_patcher
    import comfy.ops

    lib = pack.submodule("idcrafter.modules.identity_adapter")
    adapter = lib.IdentityAdapter(config, comfy.ops.manual_cast, device=device, dtype=dtype)
    adapter.eval().requires_grad_(False)
    _fill(adapter, 1)
    return comfy.model_patcher.ModelPatcher(adapter, device, device)


def _fill(module: torch.nn.Module, seed: int) -> None:
    for parameter in module.parameters():
        if not parameter.is_meta:
            generator = torch.Generator(parameter.device).manual_seed(seed)
            scale = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.data.normal_(0, scale, generator=generator)


def positive_of(size: Size, dtype: torch.dtype, device: torch.device, references: int = 0) -> list:
    """CONDITIONING of a prompt; with as many references as tokens (Phantom's), the first of them Ada's."""
    values = {}
    if references:
        channels, _, rows, columns = size.latent
        latents = torch.zeros((1, channels, references, rows, columns), dtype=dtype, device=device)
        values = {"time_dim_concat": latents, "idcrafter_reference_names": NAMES[:references]}
    return [[torch.ones((1, size.text, size.text_width), dtype=dtype, device=device), values]]


def injected(pack, model, patcher, positive: list, subjects: int = len(NAMES)):
    """(MODEL, CONDITIONING) with people of two photos each, as Inject Identity gives them."""
    lib = pack.submodule("idcrafter.backbones.identity")
    prompt, config = positive[0][0], patcher.model.config
    names = [*NAMES, *(f"person {i}" for i in range(len(NAMES), subjects))]
    tokens = prompt.new_ones((subjects, PHOTOS, config.tokens, config.token_width))
    if not tokens.is_meta:
        tokens.normal_(generator=torch.Generator(tokens.device).manual_seed(2))
    key = lib.next_key(model)
    people = lib.attach_subjects(positive, key, tokens, prompt.new_ones((subjects, PHOTOS)), names)
    return lib.inject(model, key, patcher, lib.Injection(), names), people


def step_of(model, positive: list, size: Size) -> Callable[[], torch.Tensor]:
    """A function that calls the network once, as the steps of one run of a sampler do.

    Without the sampler itself, which asks for numbers that tensors on the meta device lack.
    """
    import comfy.patcher_extension
    import comfy.sampler_helpers

    (prompt, values), *_ = positive
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, {"positive": []}, options)
    guider = SimpleNamespace(model_options=options, model_patcher=model, conds={"positive": [values]})
    sigma = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    facts = {"sigmas": torch.tensor([sigma]), "cond_or_uncond": [0], "uuids": [uuid.uuid4()]}
    channels, *sides = size.latent
    x = prompt.new_zeros((1, size.config.get("in_channels", channels), *sides))

    def begin(noise, latent):
        # What lasts for the run is in these options.
        return {**guider.model_options["transformer_options"], **facts}

    types = comfy.patcher_extension.WrappersMP
    wrappers = comfy.patcher_extension.get_all_wrappers(types.OUTER_SAMPLE, options, is_model_options=True)
    now = comfy.patcher_extension.WrapperExecutor.new_class_executor(begin, guider, wrappers).execute(x, x)
    given = {key: cond.cond for key, cond in values.get("model_conds", {}).items()}
    given |= {key: values[key] for key in ("time_dim_concat",) if key in values}
    network, timestep = model.get_model_object("diffusion_model"), prompt.new_full((1,), 500.0)
    return lambda: network(x, timestep, context=prompt, transformer_options=now, **given)


def flops_of(pack, model, positive: list, size: Size) -> tuple[int, int]:
    """Floating point operations of one step, and those that only the first step of a run has, all counted."""
    step, counted = step_of(_with_attention(model, _dense), positive, size), []
    for _ in range(2):
        with _everybody(pack), FlopCounterMode(display=False) as counter:
            step()
        counted.append(counter.get_total_flops())
    return counted[1], counted[0] - counted[1]


def peak_of(pack, model, positive: list, size: Size) -> int:
    """Bytes of tensors alive at the worst moment of a run, without weights and inputs.

    All attention is taken for one that needs nothing but its result, as flash kernels do.
    """
    lib = pack.submodule("idcrafter.modules.insertion")
    step = step_of(_with_attention(model, _flash), positive, size)
    attend = mock.patch.object(lib, "attend", lambda q, *_: torch.empty_like(q))
    with _everybody(pack), attend, PeakStorage() as storage:
        step()
        step()
    return storage.peak


def _everybody(pack):
    """There are people in all rows: tensors on the meta device can't be asked."""
    lib = pack.submodule("idcrafter.backbones.identity")
    return mock.patch.object(lib, "_rows_with_people", lambda photos: slice(0, len(photos)))


def _with_attention(model, attention):
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    return model


def _dense(kernel, q, k, v, heads, *_, skip_reshape=False, **__):
    if not skip_reshape:
        q, k, v = (tensor.unflatten(2, (heads, -1)).transpose(1, 2) for tensor in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _flash(kernel, q, k, v, heads, *_, **__):
    return torch.empty_like(q)
