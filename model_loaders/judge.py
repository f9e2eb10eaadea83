"""Identity-GRPO's learned judge: its released files -> an object that scores a clip against references."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch.overrides import TorchFunctionMode

from ..idcrafter.rewards.evidence import FrameSource, TensorFrames
from ..idcrafter.rewards.judge import READOUT, JudgeInput, make_input
from . import judge_files
from .judge_files import HEAD, TABLE, JudgeFiles

log = logging.getLogger(__name__)

DTYPES = ("default", "bf16", "fp32")
DEVICES = ("default", "cpu")
LICENCE = f"{judge_files.BASE_LICENCE}; {judge_files.JUDGE_LICENCE}"
# What one clip with a handful of references needs besides the weights, in bytes.
_WORKSPACE = 2 * 2**30


@dataclass(frozen=True, eq=False)
class Judge:
    """The judge, on its device only while it scores."""

    name: str
    licence: str
    dtype: torch.dtype
    tokens_per_second: float
    _tokenizer: Any = field(repr=False)
    _patcher: comfy.model_patcher.ModelPatcher = field(repr=False)

    def score(
        self,
        frames: torch.Tensor | FrameSource,
        references: Sequence[torch.Tensor],
        on_frame: Callable[[], None] | None = None,
    ) -> float:
        """How well the faces of a clip match the references: the raw logit, higher is better, without a unit.

        frames      [T, H, W, 3] in 0..1, T >= 4; or a clip to read them from
        references  photos [H, W, 3]; it was trained on one photo of each person, and their order matters a little
        on_frame    called after each frame that is read, for progress
        ComfyUI's Cancel takes effect at every frame and at every layer. Published scores lie between about 2.5 and
        4.1, in steps of 1/64, because there the head runs in bfloat16; here it runs in float32. Raises ValueError for
        frames or photos that cannot be used, RuntimeError for no number.
        """
        source = TensorFrames(frames) if isinstance(frames, torch.Tensor) else frames

        def step() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if on_frame is not None:
                on_frame()

        inputs = make_input(source, references, self.encode, self.tokens_per_second, step)
        comfy.model_management.load_models_gpu([self._patcher], memory_required=_WORKSPACE, force_full_load=True)
        with torch.inference_mode():
            logit = self._patcher.model(inputs, self._patcher.load_device).item()
        if not math.isfinite(logit):
            raise RuntimeError(f"The judge '{self.name}' came out as {logit}; load it with dtype fp32.")
        return logit

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    @property
    def summary(self) -> str:
        """One line for people: what is loaded, where it runs, its licence."""
        return f"Judge {self.name}, {self._dtype_name} on {self._patcher.load_device}, licence: {self.licence}"

    def describe(self) -> dict:
        return {"name": self.name, "licence": self.licence, "dtype": self._dtype_name}

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class JudgeNet(torch.nn.Module):
    """Qwen2_5_VLModel [vlm] and the head [1, hidden], float32, that reads one token's last hidden state."""

    def __init__(self, vlm: torch.nn.Module, head: torch.Tensor):
        super().__init__()
        self.vlm = vlm
        self.rm_head = torch.nn.Parameter(head, requires_grad=False)

    def forward(self, inputs: JudgeInput, device: torch.device) -> torch.Tensor:
        hidden = self.vlm(
            input_ids=inputs.ids.to(device),
            position_ids=inputs.positions.to(device),
            pixel_values=inputs.photos.to(device),
            image_grid_thw=inputs.photo_grids.to(device),
            pixel_values_videos=inputs.video.to(device),
            video_grid_thw=inputs.video_grids.to(device),
            use_cache=False,
        ).last_hidden_state
        return hidden[0, inputs.readout].float() @ self.rm_head[0]


class LowRank(torch.nn.Module):
    """A linear layer plus scale * B A x. The small product stays in float32, as in PEFT: added to the layer's bfloat16
    weight, most of so gentle a training would be rounded away."""

    def __init__(self, layer: torch.nn.Module, down: torch.Tensor, up: torch.Tensor, scale: float):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Parameter(down.float(), requires_grad=False)
        self.up = torch.nn.Parameter(up.float(), requires_grad=False)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = torch.nn.functional.linear
        return (self.layer(x) + linear(linear(x.float(), self.down), self.up) * self.scale).to(x.dtype)


def load_judge(judge: Path, base: Path, dtype: str = "default", device: str = "default") -> Judge:
    """Load the judge from its two folders (see judge_files).

    dtype   "default" is bfloat16, as it was trained, where the device computes in it, and float32 elsewhere
    device  "default" is the GPU where ComfyUI puts text encoders there; "cpu" keeps it off the GPU
    Raises FileNotFoundError for a missing file, with its download command; ValueError for files that are not those of
    the judge, before memory is used; RuntimeError for a transformers that is too old.
    """
    import tokenizers

    found = judge_files.find_judge(judge, base)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(found.tokenizer))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception
        raise ValueError(f"'{found.tokenizer}' is no tokenizer ({error}); download it again.") from error
    # The judge's table has one row more than Qwen has tokens; the rows that pad Qwen's own table are not in it.
    rows = tokenizer.get_vocab_size() + 1
    tokenizer.add_special_tokens([READOUT])
    config = _config(found.config, rows)
    with torch.device("meta"):
        judge_files.check_layout(found, _qwen()(config))
    if device not in DEVICES or dtype not in DTYPES:
        raise ValueError(f"The judge's device is one of {', '.join(DEVICES)}, its dtype one of {', '.join(DTYPES)}.")
    management = comfy.model_management
    cpu = torch.device("cpu")
    load_device = cpu if device == "cpu" else management.text_encoder_device()
    offload_device = cpu if device == "cpu" else management.text_encoder_offload_device()
    bf16 = dtype == "bf16" or (dtype == "default" and management.should_use_bf16(load_device))
    kind = torch.bfloat16 if bf16 else torch.float32
    net = build_net(found, config, rows, kind)
    loaded = Judge(
        name=judge.name,
        licence=LICENCE,
        dtype=kind,
        tokens_per_second=config.vision_config.tokens_per_second,
        _tokenizer=tokenizer,
        _patcher=comfy.model_patcher.ModelPatcher(net, load_device=load_device, offload_device=offload_device),
    )
    log.info("Loaded: %s.", loaded.summary)
    return loaded


def build_net(found: JudgeFiles, config: Any, rows: int, dtype: torch.dtype) -> JudgeNet:
    """The net with all weights, on the CPU. Files whose weights have the dtype already are mapped, not copied."""
    rest, adapter = judge_files.read_weights(found.rest), judge_files.read_weights(found.adapter)
    weights = {**judge_files.read_weights(found.base), **rest, **adapter}
    head = weights.pop(HEAD).float()
    weights[TABLE] = weights[TABLE][:rows]
    with _WeightsOnMeta():
        model = _qwen()(config)
    names = model.state_dict().keys()
    model.load_state_dict({name: weights[name].to(dtype) for name in names}, assign=True)
    for name in judge_files.lora_layers(model):
        parent, _, child = name.rpartition(".")
        layer = LowRank(
            model.get_submodule(name), adapter[f"{name}.lora_A.weight"], adapter[f"{name}.lora_B.weight"], found.scale
        )
        setattr(model.get_submodule(parent), child, layer)
    for block in (*model.visual.blocks, *model.language_model.layers):
        block.register_forward_pre_hook(_stop_when_asked)
    return JudgeNet(model, head).requires_grad_(False).eval()


def _stop_when_asked(module: torch.nn.Module, args: tuple) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def _qwen() -> type[torch.nn.Module]:
    import transformers

    if not hasattr(transformers, "Qwen2_5_VLTextModel"):
        raise RuntimeError(
            f"The judge needs transformers 4.52 or newer, found {transformers.__version__}: pip install -U transformers"
        )
    return transformers.Qwen2_5_VLModel


def _config(config: dict, rows: int) -> Any:
    import transformers

    config = {**config, "dtype": "float32", "torch_dtype": "float32"}
    place = config["text_config"] = dict(config["text_config"]) if "text_config" in config else None
    (config if place is None else place)["vocab_size"] = rows
    if place is None:
        del config["text_config"]
    return transformers.Qwen2_5_VLConfig.from_dict(config)


class _WeightsOnMeta(TorchFunctionMode):
    """Layers that are made inside get no memory, but the tables of the rotary embedding, which no file holds, do."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
