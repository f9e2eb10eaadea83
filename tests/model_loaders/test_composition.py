"""What the loader returns composes with ComfyUI's own nodes, for each family: the output is that of the plain graph."""

import pytest
import safetensors.torch
import torch

from support import tiny_adapters, tiny_families
from support.composition import FRAMES, Shot, noise

DIFFUSERS = ("wan-t2v", "wan-i2v", "wan-ti2v", "vace", "cogvideox", "cogvideox-i2v")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# The models that the pack itself patches, beside the plain ones of every family.
PATCHED = {
    "refalign, by its rule": "refalign",
    "phantom, bound to regions": "phantom",
    "phantom, with people": "phantom",
    "cogvideox-i2v, with people": "cogvideox-i2v",
}
CASES = (*tiny_families.FAMILIES, *PATCHED)
# Tracing takes long: the networks that differ in what they run, and every patch.
COMPILED = ("wan-i2v", "vace", "humo", "cogvideox-i2v", *PATCHED)
NO_REFERENCES = ("wan-t2v", "wan-ti2v", "cogvideox")


@pytest.fixture(scope="module")
def load(pack):
    return pack.submodule("model_loaders.video_dit").load_video_dit


@pytest.fixture(scope="module")
def model_of(load, tmp_path_factory):
    loaded = {}

    def model_of(family):
        if family not in loaded:
            path = tiny_families.write(tmp_path_factory.mktemp("families") / family / f"{family}.safetensors", family)
            with torch.inference_mode():
                loaded[family] = load(path)
        return loaded[family]

    return model_of


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def family(case):
    return PATCHED.get(case, case)


@pytest.fixture
def shot_of(pack, case, family):
    """`shot_of(frames=5)`: conditioning and latent of this case."""

    def shot_of(**sizes):
        shot = Shot(pack, family, **sizes)
        return tiny_adapters.with_people(pack, shot) if "with people" in case else shot

    return shot_of


@pytest.fixture
def shot(shot_of):
    return shot_of()


@pytest.fixture
def patch(pack, case, cast, family, model_of, tmp_path):
    """What the pack's own nodes do to the MODEL of this case; a plain family's is left as it is."""
    if case == "refalign, by its rule":
        return pack.submodule("idcrafter.backbones.refalign").skip_text_for_references
    if case == "phantom, bound to regions":
        boxes = "Ada: 0 0 0.5 1\nBo: 0.5 0 1 1"
        return lambda model: pack.execute("IDCrafterBindRegions", model=model, cast=cast, boxes=boxes)[0]
    if "with people" in case:
        return tiny_adapters.injection(pack, model_of(family), tmp_path / "adapter.safetensors")
    return lambda model: model


@pytest.fixture
def model(model_of, family, patch):
    return patch(model_of(family))


def test_a_patched_model_is_another_one(model_of, model, shot, case, family):
    """So that the checks below are of the patches too."""
    same = torch.equal(shot.ksampler(model), shot.ksampler(model_of(family)))
    assert same == (case not in PATCHED)


def test_samplers_and_guiders_agree(model, shot):
    plain = shot.ksampler(model)
    assert plain.isfinite().all() and plain.std() > 0
    conds = {"negative": shot.negative}
    assert torch.equal(shot.custom(model, "CFGGuider", positive=shot.positive, cfg=3.0, **conds), plain)
    # The middle condition is the negative one: its guidance is nothing, and the rest is plain CFG.
    dual = shot.custom(
        model, "DualCFGGuider", cond1=shot.positive, cond2=shot.negative, cfg_conds=3.0, cfg_cond2_negative=7.0,
        style="regular", **conds,
    )  # fmt: skip
    torch.testing.assert_close(dual, plain, **CLOSE)


def test_cfg_1_is_the_positive_alone(model, shot):
    alone = shot.custom(model, "BasicGuider", conditioning=shot.positive)
    assert torch.equal(shot.ksampler(model, cfg=1.0), alone)
    assert not torch.equal(shot.ksampler(model), alone)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NO_REFERENCES], indirect=True)
def test_the_references_reach_the_network(pack, model, family):
    shot = Shot(pack, family)
    plain = shot.ksampler(model)
    for conds in (shot.positive, shot.negative):
        for key, value in conds[0][1].items():
            if isinstance(value, list) and isinstance(value[0], torch.Tensor) and key != "vace_mask":
                conds[0][1][key] = [part * 2 for part in value]
            elif isinstance(value, torch.Tensor):
                conds[0][1][key] = value * 2
    assert not torch.allclose(shot.ksampler(model), plain, **CLOSE)


@pytest.mark.parametrize("name", ["wan-t2v", "wan-i2v", "wan-ti2v", "vace", "humo"])
def test_native_files_give_what_cores_loader_gives(pack, model_of, tmp_path, name):
    import comfy.sd

    core = comfy.sd.load_diffusion_model(str(tiny_families.write(tmp_path / "m.safetensors", name)))
    shot = Shot(pack, name)
    assert torch.equal(shot.ksampler(model_of(name)), shot.ksampler(core))


@pytest.mark.parametrize("name", DIFFUSERS)
@pytest.mark.parametrize("layout", ["diffusers", "shards"])
def test_every_layout_gives_the_same_video(pack, load, model_of, tmp_path, name, layout):
    folder = load(tiny_families.write(tmp_path / "transformer", name, layout))
    assert folder.get_attachment("idcrafter")["layout"] == "diffusers"
    shot = Shot(pack, name)
    assert torch.equal(shot.ksampler(folder), shot.ksampler(model_of(name)))


def factors(model, module, seed, rank=2):
    """Two small factors for a native module: (down, up)."""
    weight = model.model.diffusion_model.state_dict()[f"{module}.weight"]
    return noise(rank, weight.shape[1], seed=seed) * 0.3, noise(weight.shape[0], rank, seed=seed + 1) * 0.3


def test_loras_before_and_after(pack, model_of, patch, shot, family, load, tmp_path):
    """Ours, core's and the pack's own patch, in any order, are the weights of a file that was merged before."""
    import comfy.sd

    lora = pack.submodule("model_loaders.lora")
    names = tiny_families.names_of(family)
    q, k = ("q", "k") if family.startswith("cogvideox") else ("self_attn.q", "self_attn.k")
    modules = [f"blocks.0.{q}", f"blocks.1.{k}"]
    ours, core = (factors(model_of(family), module, seed) for module, seed in zip(modules, (10, 20), strict=True))
    theirs = names.to_diffusers(modules[0])
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(
        {f"transformer.{theirs}.lora_A.weight": ours[0], f"transformer.{theirs}.lora_B.weight": ours[1]}, path
    )
    core_lora = {
        f"diffusion_model.{modules[1]}.lora_down.weight": core[0],
        f"diffusion_model.{modules[1]}.lora_up.weight": core[1],
    }

    def with_ours(m):
        return lora.apply_lora(m, lora.load_lora(path, m).weights, 0.5)

    def with_core(m):
        return comfy.sd.load_lora_for_models(m, None, dict(core_lora), 0.7, 0.0)[0]

    def merge(weights):
        for module, (down, up), strength in ((modules[0], ours, 0.5), (modules[1], core, 0.7)):
            weight = weights[f"{module}.weight"]
            weights[f"{module}.weight"] = (weight.float() + strength * up @ down).to(weight.dtype)

    model = patch(model_of(family))
    plain, before = shot.ksampler(model), shot.ksampler(with_core(with_ours(model)))
    assert not torch.allclose(before, plain, **CLOSE)
    for ordered in (with_ours(with_core(model)), with_ours(patch(with_core(model_of(family))))):
        torch.testing.assert_close(shot.ksampler(ordered), before, **CLOSE)
    assert with_ours(model).get_attachment("idcrafter") == model.get_attachment("idcrafter")
    merged = load(tiny_families.write(tmp_path / family / "merged.safetensors", family, edit=merge))
    # HuMo's tiny weights are bf16: merging rounds them, the patch does not.
    bound = {"rtol": 0.05, "atol": 0.05} if family == "humo" else CLOSE
    torch.testing.assert_close(shot.ksampler(patch(merged)), before, **bound)
    assert torch.equal(shot.ksampler(model), plain)


def test_fp8_is_the_model_with_rounded_weights(model, patch, shot, family, load, tmp_path):
    """The whole difference to float32 is the rounding of the weights."""
    path = tiny_families.write(tmp_path / family / "model.safetensors", family)
    small = load(path, "fp8_e4m3fn")
    weights = small.model.diffusion_model.state_dict()
    assert sum(t.numel() for t in weights.values() if t.dtype == torch.float8_e4m3fn) > sum(
        t.numel() for t in weights.values() if t.dtype != torch.float8_e4m3fn
    )
    rounded = load(
        tiny_families.write(
            tmp_path / f"{family}-rounded" / "rounded.safetensors",
            family,
            edit=lambda found: found.update({name: weights[name].float() for name in found}),
        )
    )
    result = shot.ksampler(patch(small))
    torch.testing.assert_close(result.float(), shot.ksampler(patch(rounded)).float(), rtol=1e-3, atol=1e-3)
    assert not torch.equal(result, shot.ksampler(model))


def test_easycache(pack, model_of, family, patch, shot):
    """At threshold 0 nothing is reused and nothing changes. At a high one up to four of five steps are: how far that
    takes the video of random weights means nothing, but it does not depend on which of the two nodes comes first.
    """
    model, calls = patch(model_of(family)), []

    def cached(model, threshold):
        return pack.execute(
            "EasyCache", model=model, reuse_threshold=threshold, start_percent=0.1, end_percent=0.95, verbose=False
        )[0]

    def sample(model):
        calls.clear()
        return shot.ksampler(model, steps=10), len(calls)

    embedding = next(iter(model.model.diffusion_model.children()))
    handle = embedding.register_forward_hook(lambda *_: calls.append(1))
    try:
        plain, everything = sample(model)
        never, as_many = sample(cached(model, 0.0))
        often, fewer = sample(cached(model, 0.8))
        other_order, _ = sample(patch(cached(model_of(family), 0.8)))
    finally:
        handle.remove()
    assert torch.equal(never, plain) and as_many == everything
    assert torch.equal(often, other_order) and everything / 5 < fewer < everything
    assert often.isfinite().all() and not torch.equal(often, plain)


def windows(pack, model, length):
    return pack.execute(
        "ContextWindowsManual", model=model, context_length=length, context_overlap=1,
        context_schedule="standard_static", context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
        freenoise=False, cond_retain_index_list="", causal_window_fix=False,
    )[0]  # fmt: skip


def test_context_windows(pack, model, shot, shot_of, family):
    """One window over everything is the plain video; several give a video of the same size."""
    plain = shot.ksampler(model)
    torch.testing.assert_close(shot.ksampler(windows(pack, model, FRAMES)), plain, **CLOSE)
    if family == "cogvideox-i2v":
        return  # its positions are learned for its own number of frames
    longer = shot_of(frames=5)
    result, plain = longer.ksampler(windows(pack, model, 3)), longer.ksampler(model)
    # Each window sees 3 of the 5 frames, so the video is another one, but of the same noise.
    assert result.shape == plain.shape and 0 < (result - plain).square().mean() < plain.var()


@pytest.mark.parametrize("case", COMPILED, indirect=True)
def test_torch_compile(pack, model, shot):
    """Traced by core's node (backend eager: the graph without a compiler) the network gives the same."""
    import torch._dynamo

    torch._dynamo.reset()
    compiled = pack.execute("TorchCompileModel", model=model, backend="eager")[0]
    torch.testing.assert_close(shot.ksampler(compiled), shot.ksampler(model), **CLOSE)
    torch._dynamo.reset()


def test_partial_load(pack, model, shot, family, monkeypatch):
    """With two thirds of the weights left behind, and a LoRA on one, the video is that of the model loaded whole."""
    import comfy.model_management
    import comfy.model_patcher

    module = "blocks.0.q" if family.startswith("cogvideox") else "blocks.0.self_attn.q"
    down, up = factors(model, module, 30)
    patched = pack.submodule("model_loaders.lora").apply_lora(
        model, {f"diffusion_model.{module}.lora_A.weight": down, f"diffusion_model.{module}.lora_B.weight": up}, 1.0
    )
    whole = shot.ksampler(patched)
    comfy.model_management.unload_all_models()
    load, lowvram = comfy.model_patcher.ModelPatcher.load, []

    def partial(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        load(self, device_to, self.model_size() // 3, force_patch_weights, False)
        lowvram.append(self.model.model_lowvram)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", partial)
    try:
        torch.testing.assert_close(shot.ksampler(patched), whole, **CLOSE)
    finally:
        comfy.model_management.unload_all_models()
    assert lowvram and all(lowvram)


@pytest.mark.parametrize("name", ["vace", "cogvideox-i2v"])
def test_a_clone_for_another_device_is_made_from_the_file(load, tmp_path, name):
    """What core's multi-GPU nodes and the compile node call: the same weights, and for CogVideoX the same positions."""
    model = load(tiny_families.write(tmp_path / "transformer", name, "shards"))
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    ours, theirs = (m.model.diffusion_model for m in (model, again))
    assert type(ours) is type(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
