"""A take that is paused and played on is the take that was never paused, with every sampler of core."""

import comfy.samplers
import pytest
import torch

# All of core's samplers but ddim (euler under another name).
SAMPLERS = [name for name in comfy.samplers.SAMPLER_NAMES if name != "ddim"]


@pytest.fixture(scope="module")
def tape(pack):
    return pack.submodule("idcrafter.sampling.tape")


@pytest.fixture
def guider(pack, stack, shot):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    return make(stack.model, shot.positive, shot.negative_text, shot.negative_images, 3.0, 2.0)


@pytest.fixture
def latent(pack, guider, shot):
    return pack.submodule("idcrafter.sampling.run").prepare_latent(guider.model_patcher, shot.latent)


@pytest.fixture
def sigmas(stack):
    return comfy.samplers.calculate_sigmas(stack.model.get_model_object("model_sampling"), "simple", 6)


@pytest.fixture
def counted(monkeypatch):
    """The number of real evaluations of the conditions, in a list."""
    calls = []
    real = comfy.samplers._calc_cond_batch

    def count(model, conds, *args):
        calls.append(sum(cond is not None for cond in conds))
        return real(model, conds, *args)

    monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", count)
    return calls


@pytest.mark.parametrize("name", SAMPLERS)
def test_pausing_changes_nothing(tape, pack, guider, latent, sigmas, counted, name):
    sampler = comfy.samplers.sampler_object(name)
    whole = pack.submodule("idcrafter.sampling.run").sample_takes(guider, sampler, sigmas, latent, 7, 1).takes[0]
    needed = sum(counted)
    counted.clear()
    record = tape.Tape()
    passes = others = 0
    for until in (sigmas[1], sigmas[3], None):
        other = tape.play(guider, sampler, sigmas, latent, 8, tape.Tape(), sigmas[2])  # somebody else's turn
        segment = tape.play(guider, sampler, sigmas, latent, 7, record, until)
        assert segment.finished == (until is None) and passes <= segment.passes <= needed
        assert segment.samples.shape == whole.samples.shape and not torch.equal(segment.samples, other.samples)
        passes = segment.passes
        others += other.passes
    assert torch.equal(segment.samples, whole.samples)
    assert passes == needed
    assert sum(counted) == needed + others  # no call of this take was made twice


def without_guidance(pack, stack, shot):
    return pack.execute("BasicGuider", model=stack.model, conditioning=shot.positive)[0]


def cfg_of_one(pack, stack, shot):
    """Core leaves the negative condition out of the call."""
    return pack.execute("CFGGuider", model=stack.model, positive=shot.positive, negative=shot.negative_text, cfg=1.0)[0]


def several_conditions(pack, stack, shot):
    """Three texts at once, one of them only late in the schedule and one weak."""
    late = pack.execute("ConditioningSetTimestepRange", conditioning=stack.encode("rain"), start=0.4, end=1.0)[0]
    weak = pack.execute("ConditioningSetAreaStrength", conditioning=stack.encode("sun"), strength=0.3)[0]
    texts = [*shot.positive, *late, *weak]
    return pack.execute("CFGGuider", model=stack.model, positive=texts, negative=shot.negative_text, cfg=3.0)[0]


def three_calls_a_step(pack, stack, shot):
    """A guider that asks for its conditions one by one, and a guidance above it that remembers its steps."""
    model = pack.execute("APG", model=stack.model, eta=1.0, norm_threshold=5.0, momentum=0.5)[0]
    skipping = pack.execute(
        "SkipLayerGuidanceDiT", model=model, double_layers="0", single_layers="0", scale=2.0, start_percent=0.0,
        end_percent=1.0, rescaling_scale=0.5,
    )[0]  # fmt: skip
    return pack.execute(
        "CFGGuider", model=skipping, positive=shot.positive, negative=shot.negative_text, cfg=3.0
    )[0]  # fmt: skip


def context_windows(pack, stack, shot):
    """Three overlapping windows over the clip, one call each, and noise that is shuffled for them."""
    model = pack.execute(
        "ContextWindowsManual", model=stack.model, context_length=4, context_overlap=2,
        context_schedule="standard_uniform", context_stride=1, closed_loop=False, fuse_method="pyramid", dim=2,
        freenoise=True,
    )[0]  # fmt: skip
    return pack.execute("CFGGuider", model=model, positive=shot.positive, negative=shot.negative_text, cfg=3.0)[0]


GUIDERS = [without_guidance, cfg_of_one, several_conditions, three_calls_a_step, context_windows]


@pytest.mark.parametrize("name", ["euler_ancestral", "uni_pc"])
@pytest.mark.parametrize("make", GUIDERS, ids=lambda make: make.__name__)
def test_pausing_changes_nothing_under_any_guidance(tape, pack, stack, shot, sigmas, counted, make, name):
    guider, sampler = make(pack, stack, shot), comfy.samplers.sampler_object(name)
    shape = list(shot.latent["samples"].shape)
    shape[2] = 8
    latent = {"samples": torch.zeros(shape)}
    whole = pack.submodule("idcrafter.sampling.run").sample_takes(guider, sampler, sigmas, latent, 7, 1).takes[0]
    needed = sum(counted)
    counted.clear()
    record = tape.Tape()
    ahead = [float(sigmas[4]), float(sigmas[5])]
    first = tape.play(guider, sampler, sigmas, latent, 7, record, sigmas[1], ahead)
    assert first.looked > 0 and sum(counted) == first.passes + first.looked
    second = tape.play(guider, sampler, sigmas, latent, 7, record, None)
    assert torch.equal(second.samples, whole.samples)
    assert second.passes == needed and sum(counted) == needed + first.looked


def test_the_pause_shows_what_cores_preview_shows(tape, guider, latent, sigmas):
    sampler = comfy.samplers.sampler_object("euler")
    shown = []

    def keep(step, x0, x, total):
        shown.append(guider.model_patcher.model.process_latent_out(x0.clone()))

    tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(), None, on_step=keep)
    paused = tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(), sigmas[2])
    assert len(shown) == 6 and paused.passes == 9
    assert torch.equal(paused.samples, shown[2].cpu())


def test_an_image_mask_is_respected_over_a_pause(tape, pack, guider, latent, sigmas):
    sampler = comfy.samplers.sampler_object("dpmpp_2m")
    latent = {
        "samples": torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(2)),
        "noise_mask": torch.zeros((1, 1, *latent["samples"].shape[2:])),
    }
    latent["noise_mask"][..., :4] = 1.0
    whole = pack.submodule("idcrafter.sampling.run").sample_takes(guider, sampler, sigmas, latent, 7, 1).takes[0]
    record = tape.Tape()
    tape.play(guider, sampler, sigmas, latent, 7, record, sigmas[2])
    assert torch.equal(tape.play(guider, sampler, sigmas, latent, 7, record, None).samples, whole.samples)


def test_a_tape_on_disk_is_played_by_another_process(tape, guider, latent, sigmas, counted, tmp_path, caplog):
    sampler = comfy.samplers.sampler_object("uni_pc")
    whole = tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(), None).samples
    tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(tmp_path / "7.part", "key"), sigmas[2])
    files = sorted((tmp_path / "7.part").iterdir())
    assert [file.name for file in files] == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]
    counted.clear()
    again = tape.Tape(tmp_path / "7.part", "key")
    assert torch.equal(tape.play(guider, sampler, sigmas, latent, 7, again, None).samples, whole)
    assert len(counted) == 3
    # Another run's answers, and damaged ones, are asked for again.
    counted.clear()
    assert torch.equal(
        tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(tmp_path / "7.part", "other"), None).samples, whole
    )
    assert len(counted) == 6
    counted.clear()
    files[1].write_bytes(files[1].read_bytes()[:50])
    again = tape.Tape(tmp_path / "7.part", "other")
    assert torch.equal(tape.play(guider, sampler, sigmas, latent, 7, again, None).samples, whole)
    assert len(counted) == 1 and "cannot be read" in caplog.text
    again.discard()
    assert not (tmp_path / "7.part").exists()


def test_answers_of_another_seed_or_schedule_are_not_used(tape, guider, latent, sigmas):
    sampler = comfy.samplers.sampler_object("euler")
    record = tape.Tape()
    tape.play(guider, sampler, sigmas, latent, 7, record, sigmas[2])
    other = tape.play(guider, sampler, sigmas, latent, 8, record, None).samples
    assert torch.equal(other, tape.play(guider, sampler, sigmas, latent, 8, tape.Tape(), None).samples)


def test_a_folder_that_cannot_be_written_costs_only_a_warning(tape, guider, latent, sigmas, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    sampler = comfy.samplers.sampler_object("euler")
    record = tape.Tape(tmp_path / "file" / "7.part")
    tape.play(guider, sampler, sigmas, latent, 7, record, sigmas[2])
    assert "kept in memory" in caplog.text
    whole = tape.play(guider, sampler, sigmas, latent, 7, tape.Tape(), None).samples
    assert torch.equal(tape.play(guider, sampler, sigmas, latent, 7, record, None).samples, whole)


def test_the_model_and_its_guider_stay_as_they_were(tape, guider, latent, sigmas, stack):
    options = repr(stack.model.model_options), repr(guider.model_options)
    tape.play(guider, comfy.samplers.sampler_object("euler"), sigmas, latent, 7, tape.Tape(), sigmas[1])
    assert (repr(stack.model.model_options), repr(guider.model_options)) == options
    assert not hasattr(guider, "inner_model")


def test_step_caches_are_refused(tape, pack, stack, shot):
    cached = pack.execute(
        "EasyCache", model=stack.model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
    )[0]
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    with pytest.raises(ValueError, match="EasyCache or LazyCache"):
        tape.refuse_state(make(cached, shot.positive))
    tape.refuse_state(make(stack.model, shot.positive))


def test_a_sampler_that_previews_a_part_is_refused(tape, guider, latent, sigmas):
    def parts(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x0 = model(x, sigmas[0] * x.new_ones([1]), **extra_args)
        callback({"i": 0, "denoised": x0[:, :, :1], "x": x})
        return x0

    with pytest.raises(ValueError, match="cannot be compared"):
        tape.play(guider, comfy.samplers.KSAMPLER(parts), sigmas, latent, 7, tape.Tape(), sigmas[0])
