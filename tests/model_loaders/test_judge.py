"""The judge's released files -> its number: against Identity-GRPO's own code, and against a plain forward pass."""

import hashlib
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from support import tiny_judge
from support.inprocess import comfyui_folder

PUBLISHED = json.loads((Path(__file__).parents[1] / "rewards" / "data" / "identity_grpo.json").read_text("utf-8"))
# As Qwen's own template writes a conversation, labels of pictures included where they are asked for.
TEMPLATE = """{%- set ns = namespace(images=0, videos=0) -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- for turn in messages -%}{{- '<|im_start|>' + turn.role + '\\n' -}}
{%- for part in turn.content -%}
{%- if part.type == 'image' -%}{%- set ns.images = ns.images + 1 -%}
{{- ('Picture ' ~ ns.images ~ ': ' if add_vision_id else '') + '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}{%- set ns.videos = ns.videos + 1 -%}
{{- ('Video ' ~ ns.videos ~ ': ' if add_vision_id else '') + '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


class File:
    """A clip as it comes out of a video file."""

    def __init__(self, frames, fps):
        self.length, self.fps = frames, fps
        self.frames = (tiny_judge.clip(frames) * 255).round() / 255

    def read(self, indices):
        for index in indices:
            yield self.frames[index]


@pytest.fixture(scope="module")
def modules(pack):
    names = ("model_loaders.judge", "model_loaders.judge_files", "idcrafter.rewards.judge")
    return SimpleNamespace(**dict(zip(("loader", "files", "rules"), map(pack.submodule, names), strict=True)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    return tiny_judge.write_judge(root / "identity_reward"), tiny_judge.write_base(root / "base")


@pytest.fixture(scope="module")
def judge(modules, folders):
    return modules.loader.load_judge(*folders, "fp32", "cpu")


@pytest.fixture
def write(tmp_path, folders):
    """A judge's folder with damages, and a base (the whole one unless it is damaged, too)."""

    def make(edit_base=None, **edits):
        base = folders[1] if edit_base is None else tiny_judge.write_base(tmp_path / "base", edit_base)
        return tiny_judge.write_judge(tmp_path / "judge", **edits), base

    return make


# Against the released code --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PUBLISHED["clips"]))
def test_the_logit_is_that_of_the_released_code(judge, name):
    gold = PUBLISHED["clips"][name]
    got = judge.score(File(gold["frames"], gold["fps"]), tiny_judge.photos())
    assert got == pytest.approx(gold["logit"], abs=5e-6)


def merged_weights():
    """Qwen's weights with those that the judge replaces, and each LoRA added to its layer; in today's names."""
    weights = tiny_judge.base_weights()
    tuned = {k.removeprefix("base_model.model."): v for k, v in tiny_judge.rest_weights().items()}
    head = tuned.pop("rm_head.weight")
    weights |= tuned
    lora = {k.removeprefix("base_model.model."): v for k, v in tiny_judge.lora_weights().items()}
    weights["model.embed_tokens.weight"] = lora.pop("model.embed_tokens.weight")
    for name in [name for name in lora if name.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        scale = tiny_judge.ALPHA / tiny_judge.RANK
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * lora[f"{layer}.lora_B.weight"] @ lora[name]
    today = {
        "language_model." + name.removeprefix("model.") if name.startswith("model.") else name: value
        for name, value in weights.items()
    }
    return today, head


@pytest.mark.parametrize("frames", [9, 33])
def test_the_logit_is_that_of_a_plain_forward_pass_with_merged_weights(judge, modules, frames):
    import transformers

    config = transformers.Qwen2_5_VLConfig.from_dict(tiny_judge.CONFIG)
    config.text_config.vocab_size = tiny_judge.TOKENS + 1
    model = transformers.Qwen2_5_VLModel(config).float().eval()
    weights, head = merged_weights()
    model.load_state_dict(weights)
    inputs = modules.rules.make_input(File(frames, 10.0), tiny_judge.photos(), judge.encode, 2)
    with torch.no_grad():
        hidden = model(
            input_ids=inputs.ids,
            mm_token_type_ids=(inputs.ids == config.image_token_id).int()
            + 2 * (inputs.ids == config.video_token_id).int(),
            pixel_values=inputs.photos,
            image_grid_thw=inputs.photo_grids,
            pixel_values_videos=inputs.video,
            video_grid_thw=inputs.video_grids,
            second_per_grid_ts=torch.tensor([modules.rules.time_step(frames, 10.0)]),
        ).last_hidden_state
    place = inputs.ids[0].tolist().index(tiny_judge.TOKENS)
    wanted = (hidden[0, place] @ head[0]).item()
    assert judge.score(File(frames, 10.0), tiny_judge.photos()) == pytest.approx(wanted, abs=5e-6)


def processor_of(tokenizer):
    import transformers

    video = transformers.models.qwen2_vl.video_processing_qwen2_vl.Qwen2VLVideoProcessor(do_sample_frames=False)
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=video,
        chat_template=TEMPLATE,
    )


def straight_ids(processor, rules, photos, frames):
    """The token ids of transformers' own processor, for photos [h, w, 3] and frames [4, h, w, 3] uint8 as prepared."""
    content = [{"type": "image"} for _ in photos] + [{"type": "video"}, {"type": "text", "text": rules.PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    pictures = [Image.fromarray(photo.numpy()) for photo in photos]
    made = processor(
        text=[text], images=pictures, videos=[frames.movedim(-1, 1)], return_tensors="pt", do_sample_frames=False
    )
    return made


def test_tokens_and_pixels_are_those_of_transformers_own_processor(judge, modules, folders):
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folders[1] / "tokenizer.json"))
    tokenizer.add_special_tokens({"additional_special_tokens": [modules.rules.READOUT]})
    tokenizer.image_token, tokenizer.video_token = modules.rules.IMAGE_PAD, modules.rules.VIDEO_PAD
    rules, source = modules.rules, File(9, 10.0)
    photos = [rules.prepare_photo(photo) for photo in tiny_judge.photos()]
    frames = rules.prepare_frames((source.frames[list(rules.choose_frames(9))] * 255).round().byte())
    made = straight_ids(processor_of(tokenizer), rules, photos, frames)
    ours = rules.make_input(source, tiny_judge.photos(), judge.encode, 2)
    assert made["input_ids"][0].tolist() == ours.ids[0].tolist()
    assert torch.equal(made["image_grid_thw"], ours.photo_grids)
    assert torch.equal(made["video_grid_thw"], ours.video_grids)
    # Today's processors divide by 255 and normalise in one step, which rounds differently.
    assert (made["pixel_values"] - ours.photos).abs().max() < 1e-5
    assert (made["pixel_values_videos"] - ours.video).abs().max() < 1e-5


@pytest.fixture(scope="module")
def qwens_tokenizer(tmp_path_factory):
    """Qwen2.5-VL's tokenizer.json, made from the Qwen2.5 files that ComfyUI brings: without Qwen3's four tokens."""
    import tokenizers
    import transformers

    folder = comfyui_folder() / "comfy" / "text_encoders" / "qwen25_tokenizer"
    whole = json.loads(transformers.AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["id"] < 151665]
    return tokenizers.Tokenizer.from_str(json.dumps(whole))


def test_with_qwens_tokens_the_prompt_is_the_released_one(modules, qwens_tokenizer):
    gold = PUBLISHED["real_tokens"]
    assert qwens_tokenizer.get_vocab_size() == 151665
    qwens_tokenizer.add_special_tokens([modules.rules.READOUT])
    photos = [height * width // 28**2 for height, width in gold["photos"]]
    text = modules.rules.chat(photos, 2 * gold["frames"][0] * gold["frames"][1] // 28**2)
    ids = qwens_tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == gold["length"] and ids.index(151665) == gold["readout"]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == gold["sha256"]


# Layouts --------------------------------------------------------------------------------------------------------------


def score(modules, folders, dtype="fp32"):
    return modules.loader.load_judge(*folders, dtype, "cpu").score(tiny_judge.clip(), tiny_judge.photos())


@pytest.fixture(scope="module")
def wanted(judge):
    return judge.score(tiny_judge.clip(), tiny_judge.photos())


def renamed(rename):
    def edit(weights):
        for name in list(weights):
            weights[rename(name)] = weights.pop(name)

    return edit


def without_table(weights):
    for name in [name for name in weights if "embed_tokens" in name or "lm_head" in name]:
        del weights[name]


def test_a_rest_in_safetensors_is_the_same(modules, write, wanted):
    assert score(modules, write(safe=True)) == wanted


def test_names_of_newer_transformers_are_understood(modules, write, wanted):
    def newer(name):
        name = name.replace("base_model.model.model.", "base_model.model.model.language_model.")
        return name.replace("base_model.model.visual.", "base_model.model.model.visual.")

    def base(name):
        return f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)

    folders = write(renamed(base), edit_lora=renamed(newer), edit_rest=renamed(newer))
    assert score(modules, folders) == wanted


def test_without_a_table_of_its_own_the_readout_is_qwens_padding_row(modules, write, wanted):
    def give_row(weights):
        weights["model.embed_tokens.weight"][tiny_judge.TOKENS] = tiny_judge.values("readout", 1, tiny_judge.HIDDEN)[0]

    assert score(modules, write(give_row, edit_lora=without_table)) == wanted


def test_an_archive_that_unpacks_into_a_folder_of_its_own(modules, write, wanted):
    judge, base = write()
    (judge / "identity_reward").mkdir()
    for checkpoint in judge.glob("checkpoint-*"):
        checkpoint.rename(judge / "identity_reward" / checkpoint.name)
    assert score(modules, (judge, base)) == wanted


def test_everything_that_was_trained_counts(modules, write, wanted):
    def louder(name):
        def edit(weights):
            weights[name] = weights[name] * 1.5

        return edit

    layer = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    assert abs(score(modules, write(edit_lora=louder(layer))) - wanted) > 1e-3


@pytest.mark.parametrize("name", ["rm_head.weight", "visual.merger.mlp.2.bias", "visual.patch_embed.proj.weight"])
def test_the_head_and_the_tower_count(modules, write, wanted, name):
    def edit(weights):
        weights[f"base_model.model.{name}"] = weights[f"base_model.model.{name}"] * 1.5

    assert abs(score(modules, write(edit_rest=edit)) - wanted) > 1e-3


def test_the_vision_towers_that_the_judge_replaces_do_not_count(modules, write, wanted):
    def edit(weights):
        weights["visual.merger.mlp.2.bias"] += 1

    assert score(modules, write(edit)) == wanted


def test_bf16_keeps_the_lora_and_the_head_in_float32(modules, folders, wanted):
    judge = modules.loader.load_judge(*folders, "bf16", "cpu")
    net = judge._patcher.model
    layer = net.vlm.language_model.layers[0].mlp.down_proj
    assert layer.layer.weight.dtype == net.vlm.visual.patch_embed.proj.weight.dtype == torch.bfloat16
    assert layer.down.dtype == layer.up.dtype == net.rm_head.dtype == torch.float32
    got = judge.score(tiny_judge.clip(), tiny_judge.photos())
    assert got != wanted and got == pytest.approx(wanted, abs=0.1)
    assert judge.describe()["dtype"] == "bfloat16"


def test_the_licences_are_said(modules, folders, caplog):
    with caplog.at_level(logging.INFO):
        judge = modules.loader.load_judge(*folders, "fp32", "cpu")
    for text in (judge.summary, judge.describe()["licence"], caplog.text):
        assert "Qwen Research Licence, non-commercial" in text and "no licence stated for its weights" in text
    assert judge.describe()["name"] == "identity_reward"
    assert "float32 on cpu" in judge.summary


def test_memory_is_comfyuis_to_manage(judge, wanted):
    import comfy.model_management as management

    assert any(each.model is judge._patcher for each in management.current_loaded_models)
    management.unload_all_models()
    assert not any(each.model is judge._patcher for each in management.current_loaded_models)
    assert judge.score(tiny_judge.clip(), tiny_judge.photos()) == wanted


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gone, remedy",
    [
        ("model_config.json", "curl"),
        (f"checkpoint-{tiny_judge.STEP}/adapter_model.safetensors", "identity_reward.tgz"),
        (f"checkpoint-{tiny_judge.STEP}/non_lora_state_dict.pth", "identity_reward.tgz"),
    ],
)
def test_a_missing_file_of_the_judge(modules, write, gone, remedy):
    judge, base = write()
    (judge / gone).unlink()
    with pytest.raises(FileNotFoundError) as error:
        score(modules, (judge, base))
    assert str(judge / gone) in str(error.value) and remedy in str(error.value)
    assert "no licence stated for its weights" in str(error.value)


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_missing_file_of_the_base(modules, write, gone):
    judge, base = write(lambda weights: None)
    (base / gone).unlink()
    with pytest.raises(FileNotFoundError, match="config.json|hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir"):
        score(modules, (judge, base))


def test_no_checkpoint_at_all(modules, write):
    judge, base = write()
    for path in sorted(judge.glob("checkpoint-*/*")):
        path.unlink()
    for path in judge.glob("checkpoint-*"):
        path.rmdir()
    with pytest.raises(FileNotFoundError, match="checkpoint-<step>"):
        score(modules, (judge, base))


def test_a_shard_that_is_missing(modules, write):
    judge, base = write(lambda weights: None)
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        score(modules, (judge, base))


def drop(name):
    return lambda weights: weights.pop(f"base_model.model.{name}")


def reshape(name, *shape):
    return lambda weights: weights.update({f"base_model.model.{name}": torch.zeros(shape)})


def damage(name):
    def edit(weights):
        weights[f"base_model.model.{name}"].view(-1)[3] = float("nan")

    return edit


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "edits, said",
    [
        ({"edit_rest": drop("rm_head.weight")}, "1 of its .* are missing .first: rm_head.weight"),
        ({"edit_rest": drop("visual.merger.ln_q.weight")}, "missing .first: visual.merger.ln_q.weight"),
        ({"edit_rest": reshape("rm_head.weight", 3, tiny_judge.HIDDEN)}, r"rm_head.weight has the shape \[3, 32\]"),
        ({"edit_lora": drop(f"{LAYER}.lora_B.weight")}, r"language_model.layers.0.self_attn.q_proj.lora_B.weight"),
        ({"edit_lora": reshape(f"{LAYER}.lora_A.weight", 8, tiny_judge.HIDDEN)}, r"\[8, 32\] instead of \[4, 32\]"),
        ({"edit_lora": reshape("visual.blocks.0.attn.qkv.lora_A.weight", 4, 32)}, "does not have"),
        ({"edit_lora": damage(f"{LAYER}.lora_A.weight")}, "adapter_model.safetensors' holds NaN"),
        ({"edit_rest": damage("rm_head.weight")}, "non_lora_state_dict.pth' holds NaN .* rm_head.weight"),
        (
            {"edit_base": lambda w: w.pop("model.layers.1.mlp.up_proj.weight")},
            "missing .first: language_model.layers.1",
        ),
        (
            {"edit_base": lambda w: w["model.norm.weight"].view(-1)[0:1].fill_(float("inf"))},
            "NaN or infinite weights .first: language_model.norm.weight",
        ),
    ],
)
def test_files_that_are_not_the_judges(modules, write, edits, said):
    with pytest.raises(ValueError, match=said):
        score(modules, write(**edits))


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("data_config", "num_frames", 8.0),
        ("data_config", "prompt_template_type", "detailed_special"),
        ("model_config", "output_dim", 3),
        ("model_config", "reward_token", "last"),
        ("peft_lora_config", "vision_lora", True),
    ],
)
def test_a_judge_that_was_trained_on_something_else_is_refused(modules, write, section, name, value):
    recipe = {**tiny_judge.RECIPE, section: {**tiny_judge.RECIPE[section], name: value}}
    with pytest.raises(ValueError, match=f"was trained with {name} {value!r} instead of"):
        score(modules, write(recipe=recipe))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"data_config": 3}'])
def test_a_damaged_config(modules, write, text):
    judge, base = write()
    (judge / "model_config.json").write_text(text)
    with pytest.raises(ValueError, match="is not the config of a judge"):
        score(modules, (judge, base))


def test_another_base_is_refused(modules, write):
    judge, base = write(lambda weights: None)
    (base / "config.json").write_text(json.dumps({**tiny_judge.CONFIG, "model_type": "qwen2_vl"}))
    with pytest.raises(ValueError, match="holds a qwen2_vl, but the judge was trained on Qwen2.5-VL-3B"):
        score(modules, (judge, base))


def test_a_pickle_is_not_opened(modules, write):
    judge, base = write()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (judge / "sprung",))

    torch.save(
        {"base_model.model.rm_head.weight": Trap()}, judge / f"checkpoint-{tiny_judge.STEP}/non_lora_state_dict.pth"
    )
    with pytest.raises(ValueError, match="needs unpickling"):
        score(modules, (judge, base))
    assert not (judge / "sprung").exists()


@pytest.mark.parametrize("dtype, device", [("fp16", "cpu"), ("fp32", "cuda")])
def test_unknown_choices(modules, folders, dtype, device):
    with pytest.raises(ValueError, match="The judge's device is one of default, cpu, its dtype one of default"):
        modules.loader.load_judge(*folders, dtype, device)


def test_a_logit_that_is_no_number_is_an_error(modules, write):
    def edit(weights):
        weights["base_model.model.rm_head.weight"].fill_(3e38)

    with pytest.raises(RuntimeError, match="load it with dtype fp32"):
        score(modules, write(edit_rest=edit))


@pytest.mark.parametrize("when", ["frames", "layers"])
def test_cancel_takes_effect(judge, modules, when, monkeypatch):
    import comfy.model_management as management

    source = File(9, 10.0) if when == "layers" else tiny_judge.clip()
    if when == "layers":
        monkeypatch.setattr(
            management, "load_models_gpu", lambda *a, **k: management.interrupt_current_processing(True)
        )
        judge._patcher.patch_model(device_to=torch.device("cpu"))
    calls = []

    def on_frame():
        calls.append(1)
        if when == "frames" and len(calls) == 2:
            management.interrupt_current_processing(True)

    with pytest.raises(management.InterruptProcessingException):
        judge.score(source, tiny_judge.photos(), on_frame)
    assert len(calls) == (2 if when == "frames" else 4)
    assert not management.processing_interrupted()


def test_the_full_size_is_the_released_one(modules):
    """Names and shapes at full size, on the meta device: those that a release of rank 64 has."""
    import transformers

    text = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "num_key_value_heads": 2,
        "num_hidden_layers": 36, "vocab_size": 151666, "tie_word_embeddings": True,
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    config = transformers.Qwen2_5_VLConfig.from_dict(
        {**tiny_judge.CONFIG, **text, "vision_config": {**tiny_judge.CONFIG["vision_config"], **vision}}
    )
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLModel(config)
    layers = modules.files.lora_layers(model)
    assert len(layers) == 36 * 7 and not any("visual" in name for name in layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes[modules.files.TABLE] == (151666, 2048)
    assert sum(name.startswith("visual.") for name in shapes) == 1 + 32 * 12 + 5
    assert shapes["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["language_model.layers.35.mlp.down_proj.weight"] == (2048, 11008)
    # Every name of the released layout has its place, and none is left over.
    old = {
        name.replace("language_model.", "model.", 1) if name.startswith("language_model.") else name for name in shapes
    }
    assert {modules.files.todays_name(f"base_model.model.{name}") for name in old} == set(shapes)
    assert {modules.files.todays_name(name) for name in old} == set(shapes)
