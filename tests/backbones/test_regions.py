"""Region binding in a whole model: equal to a dense mask, with everything that a MODEL is combined with."""

import comfy.samplers
import comfy.sd
import pytest
import torch

from support import tiny_families
from support.dense_attention import dense_self_attention, visibility

# 64x48 px, 5 frames: 2 latent frames of 3 x 4 patches, and two references of one frame each.
ROWS, COLUMNS, FRAME = 3, 4, 12
BOXES = "Ada: 0 0 0.5 1\nBo: 0.5 0 1 1"


@pytest.fixture(scope="module")
def bind(pack, cast):
    def bind(model, boxes=BOXES, **inputs):
        return pack.execute("IDCrafterBindRegions", model=model, cast=cast, boxes=boxes, **inputs)[0]

    return bind


def halves(frames, reach=COLUMNS // 2):
    """[2, tokens] bool: the left and the right columns."""
    column = torch.arange(COLUMNS).repeat(frames * ROWS)
    return torch.stack([column < reach, column >= COLUMNS - reach])


def mask_for(regions, references=2, outside=True, owners=(0, 1), size=FRAME):
    """The mask of a call: the video, and behind it the references, of `size` tokens each."""
    video = regions.shape[1]
    ranges = [range(video + r * size, video + (r + 1) * size) for r in range(references)]
    return visibility(regions, [0, 1], owners, 0, ranges, ranges[-1].stop, outside)


@pytest.fixture
def dense(stack):
    """Context: sampling by the dense mask of the halves in place of binding."""

    def dense(strength=1.0, regions=None, active=lambda sigma: True, **arguments):
        mask = mask_for(halves(2) if regions is None else regions, **arguments)

        def mask_of(tokens, options):
            return mask if tokens == len(mask) and active(float(options["sigmas"].max())) else None

        return dense_self_attention(stack.model.model.diffusion_model, mask_of, strength)

    return dense


@pytest.fixture
def sample(pack, stack, shot):
    """Sample one take; `model` and conditioning may be exchanged."""

    def sample(model=None, latent=None, sigmas=None, seed=3, **changes):
        inputs = {
            "positive": shot.positive, "negative_text": shot.negative_text, "negative_images": shot.negative_images,
            "cfg_text": 4.0, "cfg_images": 2.0, **changes,
        }  # fmt: skip
        guider = pack.submodule("idcrafter.sampling.guiders").make_guider(model or stack.model, **inputs)
        latent = shot.latent["samples"] if latent is None else latent
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        sigmas = shot.sigmas if sigmas is None else sigmas
        return guider.sample(noise, latent, shot.sampler, sigmas, disable_pbar=True, seed=seed)

    return sample


def difference(a, b):
    return float((a - b).abs().max())


def assert_equal(bound, expected, free, tolerance=1e-5):
    """`bound` is `expected`, and is not what comes without binding."""
    assert difference(bound, expected) <= tolerance
    assert difference(bound, free) > 1e-3


# Exactness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["all references", "no references"])
@pytest.mark.parametrize("strength", [1.0, 0.35])
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_three_branches_of_guidance_equal_the_dense_mask(bind, dense, sample, stack, outside, strength, reach):
    """Three conds in one batch, one of them with references of zeros; regions that are apart, touch, and overlap."""
    boxes = f"Ada: 0 0 {reach / 4} 1\nBo: {1 - reach / 4} 0 1 1"
    bound = sample(bind(stack.model, boxes=boxes, outside=outside, strength=strength))
    with dense(strength, halves(2, reach), outside=outside == "all references"):
        expected = sample()
    assert_equal(bound, expected, sample())


def test_masks_and_boxes_bind_alike(bind, sample, stack):
    left = torch.zeros((1, 30, 40))
    left[:, :, :20] = 1.0
    image = (1 - left)[..., None].expand(5, -1, -1, 3)
    assert torch.equal(sample(bind(stack.model)), sample(bind(stack.model, boxes="", region1=left, region2=image)))


def test_a_region_of_one_frame_of_the_video(bind, dense, sample, stack):
    regions = halves(2)
    regions[0, :FRAME] = False  # away in the first frame
    bound = sample(bind(stack.model, boxes="Ada @ 1: none\nAda @ 2: 0 0 0.5 1\nBo: 0.5 0 1 1"))
    always = sample(bind(stack.model))
    with dense(regions=regions):
        expected = sample()
    assert_equal(bound, expected, always)


def test_a_free_subject_is_seen_everywhere(bind, dense, sample, stack):
    bound = sample(bind(stack.model, boxes="Ada: 0 0 0.5 1", outside="no references"))
    mask = visibility(halves(2)[:1], [0], (0, 1), 0, [range(24, 36), range(36, 48)], 48, False)
    with dense_self_attention(stack.model.model.diffusion_model, lambda tokens, _: mask):
        expected = sample()
    assert_equal(bound, expected, sample())


def test_a_whole_frame_for_everybody_changes_nothing(bind, sample, stack):
    assert difference(sample(bind(stack.model, boxes="Ada: 0 0 1 1\nBo: 0 0 1 1")), sample()) <= 1e-5


def test_odd_latents_are_padded_as_the_model_does(pack, bind, stack, sample, cast):
    shot = pack.submodule("idcrafter.conditioning.shot").Shot(
        stack.encode("The first waves."), stack.encode(""), stack.vae, cast, 64, 48, 9
    )
    conditioned = pack.submodule("idcrafter.conditioning.phantom").condition(shot)
    latent = torch.zeros((1, 16, 3, 5, 7))  # 3 x 4 patches, the last of each cut by half

    def crop(conditioning):
        options = conditioning[0][1]
        return [[conditioning[0][0], {**options, "time_dim_concat": options["time_dim_concat"][..., :5, :7]}]]

    conds = {
        "positive": crop(conditioned.positive), "negative_text": crop(conditioned.negative_text),
        "negative_images": crop(conditioned.negative_images),
    }  # fmt: skip
    bound = sample(bind(stack.model, boxes="Ada: 0 0 0.56 1\nBo: 0.58 0 1 1"), latent=latent, **conds)
    mask = mask_for(halves(3))  # 0.56 of 7 cells end in the second patch, and 0.58 of them begin in the third
    with dense_self_attention(stack.model.model.diffusion_model, lambda tokens, _: mask):
        expected = sample(latent=latent, **conds)
    assert_equal(bound, expected, sample(latent=latent, **conds))


def test_a_prompt_as_long_as_the_video_is_not_taken_for_it(bind, dense, sample, stack, shot):
    """48 tokens on both sides of cross-attention, as in self-attention."""
    text = torch.randn((1, 48, 32), generator=torch.Generator().manual_seed(1))
    conds = {
        name: [[text * scale, getattr(shot, name)[0][1]]]
        for name, scale in (("positive", 1.0), ("negative_text", 0.5), ("negative_images", 0.5))
    }
    with dense():
        expected = sample(**conds)
    assert_equal(sample(bind(stack.model), **conds), expected, sample(**conds))


def test_references_follow_their_names(pack, bind, sample, stack, shot):
    """Named the other way round, the same references belong to the other one: as if the boxes were exchanged."""
    key = pack.submodule("idcrafter.backbones.wan").REFERENCE_NAMES
    conds = {
        name: [[getattr(shot, name)[0][0], {**getattr(shot, name)[0][1], key: ["Bo", "Ada"]}]]
        for name in ("positive", "negative_text", "negative_images")
    }
    exchanged = sample(bind(stack.model, boxes="Bo: 0 0 0.5 1\nAda: 0.5 0 1 1"))
    assert torch.equal(sample(bind(stack.model), **conds), exchanged)
    assert difference(sample(bind(stack.model)), exchanged) > 1e-3


def test_references_without_names_follow_the_cast(pack, bind, sample, stack, shot):
    from comfy_extras.nodes_wan import WanPhantomSubjectToVideo

    core = WanPhantomSubjectToVideo.execute(
        [[shot.positive[0][0], {}]], [[shot.negative_text[0][0], {}]], stack.vae, 64, 48, 5, 1, shot.references
    ).args
    conds = {"positive": core[0], "negative_text": core[1], "negative_images": core[2]}
    assert torch.equal(sample(bind(stack.model), **conds), sample(bind(stack.model)))


def test_padded_references_belong_to_nobody(pack, bind, stack, sample, cast):
    shot = pack.submodule("idcrafter.conditioning.shot").Shot(
        stack.encode("The first waves."), stack.encode(""), stack.vae, cast, 64, 48, 5
    )
    conditioned = pack.submodule("idcrafter.conditioning.skyreels_v3").condition(shot)
    conds = {"positive": conditioned.positive, "negative_text": None, "negative_images": None}
    mask = mask_for(halves(2), references=4, owners=(0, 1, None, None))
    with dense_self_attention(stack.model.model.diffusion_model, lambda tokens, _: mask):
        expected = sample(**conds)
    assert_equal(sample(bind(stack.model), **conds), expected, sample(**conds))


# Schedule -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.4), (0.3, 1.0), (0.3, 0.7)])
def test_the_schedule_follows_the_models_own_shift(pack, bind, dense, sample, stack, start, end):
    """A shift that is set after binding counts too."""
    shifted = pack.execute("ModelSamplingSD3", model=bind(stack.model, start_percent=start, end_percent=end), shift=3.0)
    sampling = shifted[0].get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 6)
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
    active = [last < float(sigma) <= first for sigma in sigmas[:-1]]
    assert True in active and False in active
    bound = sample(shifted[0], sigmas=sigmas)
    free = sample(pack.execute("ModelSamplingSD3", model=stack.model, shift=3.0)[0], sigmas=sigmas)
    with dense(active=lambda sigma: last < sigma <= first):
        expected = sample(pack.execute("ModelSamplingSD3", model=stack.model, shift=3.0)[0], sigmas=sigmas)
    assert_equal(bound, expected, free)


@pytest.mark.parametrize(("strength", "start"), [(1.0, 0.0), (0.6, 0.2)])
def test_fading_is_a_straight_line_over_sigma(bind, sample, stack, strength, start):
    sampling = stack.model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(0.8)
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 6)
    seen = []

    def share(options):
        sigma = float(options["sigmas"].max())
        seen.append(strength * (sigma - last) / (first - last) if last < sigma <= first else 0.0)
        return seen[-1]

    bound = bind(stack.model, strength=strength, start_percent=start, end_percent=0.8, fade=True)
    bound = sample(bound, sigmas=sigmas)
    mask = mask_for(halves(2))
    with dense_self_attention(stack.model.model.diffusion_model, lambda *_: mask, share):
        expected = sample(sigmas=sigmas)
    assert min(seen) == 0.0 and len(set(seen)) >= 4
    assert_equal(bound, expected, sample(bind(stack.model, strength=strength), sigmas=sigmas))


def test_a_sampler_that_starts_above_the_schedule_is_bound_in_full(bind, sample, stack):
    """Fading starts at the set strength, not above it."""
    sigmas = torch.tensor([1.2, 0.0])
    bound = sample(bind(stack.model, strength=0.7), sigmas=sigmas)
    assert torch.equal(sample(bind(stack.model, strength=0.7, fade=True), sigmas=sigmas), bound)
    assert difference(bound, sample(sigmas=sigmas)) > 1e-3


def test_off_is_the_same_model(bind, stack):
    assert bind(stack.model, strength=0.0) is stack.model and bind(stack.model, boxes="") is stack.model


def test_the_given_model_is_not_changed(bind, sample, stack):
    before = sample()
    sample(bind(stack.model))
    assert torch.equal(sample(), before)
    assert "idcrafter_regions" not in stack.model.model_options["transformer_options"]


def test_the_last_binding_counts(bind, sample, stack):
    twice = bind(bind(stack.model, boxes="Ada: 0 0 0.1 0.1"), outside="no references")
    assert torch.equal(sample(twice), sample(bind(stack.model, outside="no references")))


# Composition ----------------------------------------------------------------------------------------------------------


def test_one_cond_at_a_time(bind, dense, sample, stack, shot):
    """CFG 1: core leaves the negative out."""
    conds = {"negative_images": None, "cfg_text": 1.0}
    with dense():
        expected = sample(**conds)
    assert_equal(sample(bind(stack.model), **conds), expected, sample(**conds))


def test_a_cond_without_references_is_not_bound(bind, dense, sample, stack, shot):
    bare = [[shot.negative_text[0][0], {}]]
    conds = {"negative_text": bare, "negative_images": None}
    with dense():
        expected = sample(**conds)
    assert_equal(sample(bind(stack.model), **conds), expected, sample(**conds))


def test_in_cores_ksampler(pack, bind, dense, stack, shot):
    def run(model):
        return pack.execute(
            "KSampler", model=model, seed=1, steps=3, cfg=3.0, sampler_name="euler", scheduler="simple",
            positive=shot.positive, negative=shot.negative_text, latent_image=shot.latent, denoise=1.0,
        )[0]["samples"]  # fmt: skip

    with dense():
        expected = run(stack.model)
    assert_equal(run(bind(stack.model)), expected, run(stack.model))


def test_in_cores_dual_cfg_guider(pack, bind, dense, stack, shot):
    """SamplerCustomAdvanced, with two videos in a batch."""
    latent = {"samples": shot.latent["samples"].repeat(2, 1, 1, 1, 1)}
    noise = pack.execute("RandomNoise", noise_seed=3)[0]

    def run(model):
        guider = pack.execute(
            "DualCFGGuider", model=model, cond1=shot.positive, cond2=shot.negative_text, negative=shot.negative_images,
            cfg_conds=4.0, cfg_cond2_negative=2.0, style="regular",
        )[0]  # fmt: skip
        return pack.execute(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=shot.sampler, sigmas=shot.sigmas.clone(),
            latent_image=latent,
        )[0]["samples"]  # fmt: skip

    with dense():
        expected = run(stack.model)
    assert expected.shape[0] == 2
    assert_equal(run(bind(stack.model)), expected, run(stack.model))


def test_in_sample_takes(pack, bind, sample, stack, shot):
    takes = pack.execute(
        "IDCrafterSampleTakes", model=bind(stack.model), sampler=shot.sampler, sigmas=shot.sigmas,
        latent_image=shot.latent, seed=40, takes=2, positive=shot.positive, negative_text=shot.negative_text,
        negative_images=shot.negative_images, cfg_text=4.0, cfg_images=2.0,
    )[0]  # fmt: skip
    for take in takes.takes:
        guider = pack.submodule("idcrafter.sampling.guiders").make_guider(
            bind(stack.model), shot.positive, shot.negative_text, shot.negative_images, 4.0, 2.0
        )
        alone = pack.execute(
            "SamplerCustomAdvanced", noise=pack.execute("RandomNoise", noise_seed=take.seed)[0], guider=guider,
            sampler=shot.sampler, sigmas=shot.sigmas.clone(), latent_image=shot.latent,
        )[0]["samples"]  # fmt: skip
        assert torch.equal(take.samples, alone)


def test_an_interrupt_leaves_nothing_behind(bind, sample, stack):
    """In the middle of a model call, while keys are moved."""
    import comfy.model_management as management

    bound, calls = bind(stack.model), []
    before, options = sample(bound), dict(stack.model.model_options["transformer_options"])

    def stop(kernel, q, k, v, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()
        return kernel(q, k, v, *args, **kwargs)

    interrupted = bound.clone()
    interrupted.model_options["transformer_options"]["optimized_attention_override"] = stop
    with pytest.raises(management.InterruptProcessingException):
        sample(interrupted)
    assert "idcrafter_regions" not in bound.model_options["transformer_options"]
    assert stack.model.model_options["transformer_options"] == options
    assert torch.equal(sample(bound), before)


def with_lora(model):
    model = model.clone()
    generator = torch.Generator().manual_seed(9)
    keys = [key for key in model.model.state_dict() if ".self_attn." in key and key.endswith("weight")]
    shapes = {key: model.model.state_dict()[key].shape for key in keys}
    model.add_patches({key: ("diff", (0.1 * torch.randn(shapes[key], generator=generator),)) for key in keys})
    return model


def test_a_lora_before_and_after(bind, dense, sample, stack):
    after = sample(with_lora(bind(stack.model)))
    assert torch.equal(after, sample(bind(with_lora(stack.model))))
    with dense():
        expected = sample(with_lora(stack.model))
    assert_equal(after, expected, sample(bind(stack.model)))


def test_partial_load(bind, sample, stack, monkeypatch):
    """Two thirds of the weights stay where they are and are patched when they are used."""
    import comfy.model_patcher

    plain = sample(with_lora(bind(stack.model)))
    load, lowvram = comfy.model_patcher.ModelPatcher.load, []

    def partial(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        load(self, device_to, self.model_size() // 3, force_patch_weights, False)
        lowvram.append(self.model.model_lowvram)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", partial)
    assert difference(sample(with_lora(bind(stack.model))), plain) <= 1e-5
    assert lowvram and all(lowvram)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2"])
def test_fp8_weights(pack, bind, sample, tiny_files, dtype):
    model = pack.submodule("model_loaders.video_dit").load_video_dit(tiny_files.dit, dtype)
    mask = mask_for(halves(2))
    with dense_self_attention(model.model.diffusion_model, lambda tokens, _: mask):
        expected = sample(model)
    assert_equal(sample(bind(model)), expected, sample(model))


@pytest.mark.parametrize("order", ["cache first", "binding first"])
def test_easycache(pack, bind, dense, sample, stack, order):
    sigmas = comfy.samplers.calculate_sigmas(stack.model.get_model_object("model_sampling"), "simple", 10)

    def cached(model):
        return pack.execute(
            "EasyCache", model=model, reuse_threshold=0.6, start_percent=0.1, end_percent=0.95, verbose=False
        )[0]

    bound = bind(cached(stack.model)) if order == "cache first" else cached(bind(stack.model))
    calls = []
    handle = stack.model.model.diffusion_model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    bound = sample(bound, sigmas=sigmas)
    handle.remove()
    assert 0 < len(calls) < 10  # some steps were skipped
    with dense():
        expected = sample(cached(stack.model), sigmas=sigmas)
    assert_equal(bound, expected, sample(cached(stack.model), sigmas=sigmas))


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform", "looped_uniform"])
def test_context_windows_see_the_places_of_their_own_frames(pack, bind, sample, stack, shot, schedule):
    """Ada walks from left to right in 33 frames; windows of 4 latent frames, with the frame before them in front."""
    boxes = "Ada @ 1: 0 0 0.25 1\nAda @ 33: 0.75 0 1 1\nBo: 0.5 0.5 1 1"
    latent = torch.zeros((1, 16, 9, 6, 8))
    regions = pack.submodule("idcrafter.subjects.regions")
    tracks = regions.parse_tracks(boxes, bind_cast(pack))
    seen = set()

    def windowed(model):
        return pack.execute(
            "WanContextWindowsManual", model=model, context_length=13, context_overlap=5, context_schedule=schedule,
            context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=False,
        )[0]  # fmt: skip

    def mask_of(tokens, options):
        window = options["context_window"]
        anchor = getattr(window, "causal_anchor_index", None)
        frames = ([] if anchor is None or anchor < 0 else [anchor]) + list(window.index_list)
        seen.add(tuple(frames))
        place = regions.token_regions(list(tracks.values()), frames, 6, 8, (2, 2))
        assert tokens == FRAME * (len(frames) + 2)
        return mask_for(place)

    conds = {"negative_images": None}
    bound = sample(bind(windowed(stack.model), boxes=boxes), latent=latent, **conds)
    with dense_self_attention(stack.model.model.diffusion_model, mask_of):
        expected = sample(windowed(stack.model), latent=latent, **conds)
    assert len(seen) > 1
    # Each step adds up several windows, and the result has values of 5.
    assert_equal(bound, expected, sample(windowed(stack.model), latent=latent, **conds), tolerance=5e-5)


def bind_cast(pack):
    subjects = pack.submodule("idcrafter.subjects.subject")
    photo = torch.rand((1, 32, 32, 3))
    return subjects.make_cast([subjects.make_subject(name, "person", "", photo) for name in ("Ada", "Bo")])


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_nodes_attention_still_does_the_work(bind, sample, stack, order):
    """As sage or sparse attention nodes do: their function computes each part, wherever they are in the graph."""
    calls = []

    def theirs(kernel, q, k, v, *args, **kwargs):
        calls.append((q.shape[1], k.shape[1]))
        return kernel(q, k, v, *args, **kwargs)

    def with_theirs(model):
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = theirs
        return model

    model = bind(with_theirs(stack.model)) if order == "before" else with_theirs(bind(stack.model))
    assert torch.equal(sample(model), sample(bind(stack.model)))
    assert (12, 36) in calls and (48, 48) not in calls  # half of the video, which sees all of it and one reference


def test_other_packs_patches_are_called(bind, sample, stack):
    """`attn1_patch` gets the keys as the model made them, also those that were moved meanwhile."""
    found = {}

    def remember(name):
        def patch(args):
            found.setdefault(name, args["k"].clone())
            return args["x"]

        return patch

    for name, model in (("free", stack.model), ("bound", bind(stack.model))):
        model = model.clone()
        model.set_model_patch(remember(name), "attn1_patch")
        sample(model)
    assert torch.equal(found["free"], found["bound"])


def test_torch_compile(pack, bind, sample, stack):
    """Binding comes, fades and goes between the steps of one compiled model."""
    import torch._dynamo

    torch._dynamo.reset()
    bound = bind(stack.model, start_percent=0.2, end_percent=0.7, fade=True)
    compiled = pack.execute("TorchCompileModel", model=bound, backend="inductor")[0]
    assert difference(sample(compiled), sample(bound)) <= 1e-4
    assert difference(sample(compiled, seed=4), sample(bound, seed=4)) <= 1e-4
    torch._dynamo.reset()


# Other families -------------------------------------------------------------------------------------------------------


def load(family, **changes):
    import json

    sizes = json.dumps({"transformer": tiny_families.tiny_models.DIT_CONFIG})
    return comfy.sd.load_diffusion_model_state_dict(
        tiny_families.weights(family, **changes), metadata={"config": sizes}
    )


def condition(pack, stack, cast, rule, **inputs):
    shot = pack.submodule("idcrafter.conditioning.shot").Shot(
        stack.encode("The first waves."), stack.encode(""), stack.vae, cast, 64, 48, 5, **inputs
    )
    return pack.submodule(f"idcrafter.conditioning.{rule}").condition(shot)


@pytest.mark.parametrize(("family", "rule"), [("bernini", "bernini"), ("humo", "humo"), ("vace", "phantom_vace")])
def test_families_with_reference_tokens(pack, bind, stack, sample, cast, family, rule):
    model = load(family)
    conditioned = condition(pack, stack, cast, rule)
    conds = {"positive": conditioned.positive, "negative_text": conditioned.negative_text, "negative_images": None}
    lengths = [FRAME, FRAME]
    if family == "bernini":
        lengths = [
            latent.shape[3] // 2 * (latent.shape[4] // 2) for latent in conds["positive"][0][1]["context_latents"]
        ]
        assert lengths[0] != lengths[1]
    references, start = [], 2 * FRAME
    for length in lengths:
        references.append(range(start, start + length))
        start += length
    mask = visibility(halves(2), [0, 1], [0, 1], 0, references, start, True)
    with dense_self_attention(model.model.diffusion_model, lambda tokens, _: mask[:tokens, :tokens]):
        expected = sample(model, **conds)
    bound = sample(bind(model), **conds)
    assert difference(bound, expected) <= 1e-4 and difference(bound, sample(model, **conds)) > 1e-4


def test_refaligns_blocks(pack, bind, dense, stack, sample, cast):
    conditioned = condition(pack, stack, cast, "refalign", model=stack.model)
    conds = {"positive": conditioned.positive, "negative_text": conditioned.negative_text, "negative_images": None}
    with dense():
        expected = sample(conditioned.model, **conds)
    assert_equal(sample(bind(conditioned.model), **conds), expected, sample(conditioned.model, **conds))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_cogvideox_is_refused(bind):
    with pytest.raises(ValueError, match="takes references as tokens.*CogVideoXTransformer3DModel"):
        bind(load("cogvideox"))


def test_vace_without_reference_tokens_is_refused(pack, bind, sample, stack, cast):
    conditioned = condition(pack, stack, cast, "vace")
    conds = {"positive": conditioned.positive, "negative_text": conditioned.negative_text, "negative_images": None}
    with pytest.raises(ValueError, match="VACE model has its references inside of the video"):
        sample(bind(load("vace")), **conds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positive": [{}], "negative_text": [{}]}, "no reference tokens in the conditioning: use the outputs of Cast"),
        ({"positive": [{"names": ["Ada", "Cy"]}]}, "'Bo' has a region, but none of the references"),
        ({"positive": [{"names": ["Bo", "Ada"]}]}, "2 references each, but of different subjects"),
    ],
)
def test_conditioning_that_does_not_fit(pack, bind, sample, stack, shot, changes, message):
    key = pack.submodule("idcrafter.backbones.wan").REFERENCE_NAMES
    conds = {"negative_images": None}
    for name, (options,) in changes.items():
        text, mine = getattr(shot, name)[0]
        conds[name] = [[text, {**mine, key: options["names"]} if options else {}]]
    if "'Bo'" in message:
        conds["negative_text"] = conds["positive"]
    with pytest.raises(ValueError, match=message):
        sample(bind(stack.model), **conds)


def test_more_references_than_photos(bind, sample, stack, shot):
    text, options = shot.positive[0]
    three = [[text, {"time_dim_concat": torch.cat([options["time_dim_concat"]] * 2, dim=2)}]]
    with pytest.raises(ValueError, match="4 references, but the cast has 2 photos"):
        sample(bind(stack.model), positive=three, negative_text=None, negative_images=None)


def test_masks_of_another_length(bind, sample, stack):
    with pytest.raises(ValueError, match="'Ada' has 4 frames, the video has 5"):
        sample(bind(stack.model, boxes="", region1=torch.ones((4, 8, 8))))


def test_a_region_that_is_never_in_the_video(bind, sample, stack):
    with pytest.raises(ValueError, match="'Ada' lies outside of the whole video"):
        sample(bind(stack.model, boxes="Ada: -0.5 0 0 1\nBo: 0 0 1 1"))
