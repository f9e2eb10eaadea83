"""The released files of Identity-GRPO's judge: where they lie, what is in them, and under which names.

    <judge>/model_config.json                               how it was trained
    <judge>/checkpoint-<step>/adapter_model.safetensors     LoRA on every linear layer of the language model
    <judge>/checkpoint-<step>/non_lora_state_dict.pth       the vision tower and the head, tuned as a whole
    <base>/config.json, tokenizer.json, model*.safetensors  Qwen2.5-VL-3B-Instruct as published

Names in them are those of transformers 4.51 under PEFT (base_model.model.visual., base_model.model.model.layers.);
since 4.52 both towers live one level deeper. Here every tensor goes by its name in today's Qwen2_5_VLModel.
Source: github.com/alibaba/identity-grpo vace_reward/{train_reward, utils, inference}.py and outputs/identity_reward/;
the saver is that of github.com/KwaiVGI/VideoAlign, trainer.py and utils.py.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ..idcrafter.rewards.judge import MAX_PIXELS, MERGE, PATCH
from . import checkpoint, files, pretrained

# The names under which the download commands put the two folders.
JUDGE, BASE = "identity_reward", "Qwen2.5-VL-3B-Instruct"
JUDGE_LICENCE = "Identity-GRPO judge: code MIT, no licence stated for its weights"
BASE_LICENCE = "Qwen2.5-VL-3B-Instruct: Qwen Research Licence, non-commercial"
RECIPE = "model_config.json"
HEAD = "rm_head.weight"
TABLE = "language_model.embed_tokens.weight"
_TEXT_OUTPUT = "lm_head.weight"  # Qwen's; a judge writes nothing
_ADAPTER = "adapter_model.safetensors"
_REST = ("non_lora_state_dict.safetensors", "non_lora_state_dict.pth")
_RENAMED = (("model.visual.", "visual."), ("model.language_model.", "language_model."), ("model.", "language_model."))
# What the judge must have been trained with for idcrafter.rewards.judge to show it what it knows.
_RECIPE = {
    "data_config": {
        "num_frames": 5.0,
        "max_frame_pixels": MAX_PIXELS,
        "sample_type": "uniform",
        "prompt_template_type": "subject_alignment_special",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_enable": True, "vision_lora": False},
}
_VISION = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}


@dataclass(frozen=True, eq=False)
class JudgeFiles:
    """A judge's files, found and of the right settings; `check_layout` compares their tensors with a net.

    base, rest, adapter  headers under today's names: Qwen's weights, the tensors that replace some, and the LoRA
    rank, scale          of the LoRA: scale times B A is added to a layer's weight
    config               Qwen's config.json
    """

    base: files.Header
    rest: files.Header
    adapter: files.Header
    rank: int
    scale: float
    config: dict
    tokenizer: Path


def find_judge(judge: Path, base: Path) -> JudgeFiles:
    """FileNotFoundError says which file of the two folders is missing and how to get it, ValueError what is wrong."""
    recipe = _read_recipe(judge)
    step = _last_checkpoint(judge)
    lora = recipe["peft_lora_config"]
    rank = int(lora["lora_r"])
    config = pretrained.read_config(base) if base.is_dir() else _missing(base / "config.json", download_base(base))
    if config["model_type"] != "qwen2_5_vl" or any(config["vision_config"].get(k) != v for k, v in _VISION.items()):
        raise ValueError(
            f"'{base}' holds a {config['model_type']}, but the judge was trained on Qwen2.5-VL-3B-Instruct."
        )
    return JudgeFiles(
        base=_today(_open_base(base)),
        rest=_today(files.read_header(_one_of(step, _REST, judge))),
        adapter=_today(files.read_header(_one_of(step, (_ADAPTER,), judge))),
        rank=rank,
        scale=lora["lora_alpha"] / (math.sqrt(rank) if lora.get("use_rslora") else rank),
        config=config,
        tokenizer=_present(base / "tokenizer.json", download_base(base)),
    )


def check_layout(judge: JudgeFiles, model: torch.nn.Module) -> None:
    """Compare every tensor of the files with the net [Qwen2_5_VLModel, on the meta device]; ValueError names the first
    that is missing, too much, or of another shape."""
    full = {name: tensor.shape for name, tensor in model.state_dict().items()}
    table, hidden = full[TABLE]
    head = {HEAD: (1, hidden)}
    pairs = {}
    for layer in lora_layers(model):
        outputs, inputs = full[f"{layer}.weight"]
        pairs |= {f"{layer}.lora_A.weight": (judge.rank, inputs), f"{layer}.lora_B.weight": (outputs, judge.rank)}
    tower = {name: shape for name, shape in full.items() if name.startswith("visual.")}
    for header, needed, kind, ignored in (
        (judge.base, full, "Qwen2.5-VL", None),
        (judge.rest, {**tower, **head}, "what the judge has besides its LoRA", ()),
        (judge.adapter, pairs, "the judge's LoRA", ()),
    ):
        # Which more of Qwen's tensors a file repeats is up to its saver: PEFT adds the token table to the LoRA.
        also = {name: full[name] for name in header.tensors if name in full}
        if TABLE in header.tensors:
            header = replace(header, tensors={**header.tensors, TABLE: header.tensors[TABLE][:table]})
        files.check_layout(header, {**needed, **also}, "", kind, ignored)


def lora_layers(model: torch.nn.Module) -> list[str]:
    """The names of the layers that have a LoRA: every linear one of the language model."""
    return [
        name
        for name, module in model.named_modules()
        if name.startswith("language_model.") and isinstance(module, torch.nn.Linear)
    ]


def read_weights(header: files.Header) -> dict[str, torch.Tensor]:
    """All tensors of a header of `JudgeFiles` by today's names. Pickles stay closed; NaN is a ValueError."""
    weights: dict[str, torch.Tensor] = {}
    for part in header.parts or (header.path,):
        for name, tensor in comfy.utils.load_torch_file(str(part), safe_load=True).items():
            if todays_name(name) in header.tensors:
                weights[todays_name(name)] = tensor
    checkpoint.check_finite(weights, header.path.name)
    return weights


def todays_name(name: str) -> str:
    """A tensor's name in any of the released layouts -> its name in today's Qwen2_5_VLModel."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default.", ".")
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def judge_names() -> list[str]:
    """The folders of judges in models/idcrafter_rewards, and the released one's, whether it is there or not."""
    roots = folder_paths.get_folder_paths(pretrained.FOLDER)
    found = {path.parent.name for root in roots for path in Path(root).glob("*/model_config.json")}
    return sorted(found | {JUDGE})


def require(judge: str, base: str) -> tuple[Path, Path]:
    """The two folders by their names; a missing one's error has the command that downloads it, and its licence."""
    root = Path(folder_paths.get_folder_paths(pretrained.FOLDER)[0])
    return (
        files.require(pretrained.FOLDER, judge, download_judge(root / judge)),
        files.require(pretrained.FOLDER, base, download_base(root / base)),
    )


def download_judge(folder: Path) -> str:
    """The command that fills a judge's folder, and the licence of what it brings."""
    archive = folder / "identity_reward.tgz"
    url = "https://cloudbook-public-daily.oss-cn-hangzhou.aliyuncs.com/identity_grpo/identity_reward.tgz"
    config = "https://raw.githubusercontent.com/alibaba/identity-grpo/main/outputs/identity_reward/model_config.json"
    return (
        f'curl -L --create-dirs -o "{archive}" {url} && tar -xzf "{archive}" -C "{folder}" && '
        f'curl -L -o "{folder / RECIPE}" {config} ({JUDGE_LICENCE})'
    )


def download_base(folder: Path) -> str:
    """The command that fills the folder of Qwen2.5-VL-3B, and its licence."""
    return f'hf download Qwen/{BASE} --local-dir "{folder}" ({BASE_LICENCE})'


def _today(header: files.Header) -> files.Header:
    renamed = {todays_name(name): tensor for name, tensor in header.tensors.items()}
    renamed.pop(_TEXT_OUTPUT, None)
    return replace(header, tensors=renamed)


def _read_recipe(judge: Path) -> dict:
    path = _present(judge / RECIPE, download_judge(judge))
    try:
        recipe = json.loads(path.read_text("utf-8"))
        for section, wanted in _RECIPE.items():
            for name, value in wanted.items():
                if recipe[section][name] != value:
                    raise ValueError(
                        f"The judge in '{judge}' was trained with {name} {recipe[section][name]!r} instead of "
                        f"{value!r}; only Identity-GRPO's released judge is known here."
                    )
        return recipe
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"'{path}' is not the config of a judge ({error!r}); download it again.") from error


def _last_checkpoint(judge: Path) -> Path:
    """The checkpoint of the highest step, in the folder or in one folder below it, as the archive may unpack."""
    found = [path for path in (*judge.glob("checkpoint-*"), *judge.glob("*/checkpoint-*")) if path.is_dir()]
    steps = {int(path.name.rpartition("-")[2]): path for path in found if path.name.rpartition("-")[2].isdigit()}
    return steps[max(steps)] if steps else _missing(judge / "checkpoint-<step>", download_judge(judge))


def _open_base(base: Path) -> files.Header:
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (base / name).is_file():
            return checkpoint.open_checkpoint(base / name)
    return _missing(base / "model.safetensors.index.json", download_base(base))


def _one_of(folder: Path, names: tuple[str, ...], judge: Path) -> Path:
    return next((folder / n for n in names if (folder / n).is_file()), None) or _missing(
        folder / names[-1], download_judge(judge)
    )


def _present(path: Path, download: str) -> Path:
    return path if path.is_file() else _missing(path, download)


def _missing(path: Path, download: str):
    raise FileNotFoundError(f"The judge needs '{path}', which does not exist. Get it with: {download}")
