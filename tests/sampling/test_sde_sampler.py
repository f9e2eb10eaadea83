"""The sampler of random steps: on a model with a known answer, and on a tiny Wan beside core's samplers."""

import math
from types import SimpleNamespace

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import pytest
import torch

from support import tiny_families

KINDS = ["Flow-SDE", "Wan-SDE", "CPS", "Dance", "SAGE"]
HALF_LOG = 0.5 * math.log(2 * math.pi)
LEVELS = torch.tensor([1.0, 0.9757, 0.9413, 0.8889, 0.8005, 0.616, 0.0])


@pytest.fixture(scope="module")
def sde(pack):
    return pack.submodule("idcrafter.sampling.sde.sampler")


@pytest.fixture(scope="module")
def replays(pack):
    return pack.submodule("idcrafter.sampling.sde.replay")


@pytest.fixture(scope="module")
def formulas(pack):
    return pack.submodule("idcrafter.sampling.sde.steps")


@pytest.fixture(scope="module")
def run(pack):
    return pack.submodule("idcrafter.sampling.run")


@pytest.fixture
def guider(pack, stack, shot):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    return make(stack.model, shot.positive, shot.negative_text, shot.negative_images, 3.0, 2.0)


@pytest.fixture
def sigmas(stack):
    return comfy.samplers.calculate_sigmas(stack.model.get_model_object("model_sampling"), "simple", 6)


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    pass


class KnownModel:
    """A flow model as a sampler sees it, whose x0 is a smooth function of each value."""

    def __init__(self, sampling=None):
        sampling = FlowSampling() if sampling is None else sampling
        patcher = SimpleNamespace(model=self, get_model_object=lambda name: sampling)
        self.inner_model = SimpleNamespace(model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling))
        self.asked = []

    def __call__(self, x, sigma, **extra_args):
        self.asked.append(float(sigma[0]))
        return torch.tanh(x) * (1 - 0.5 * sigma.reshape(-1, *[1] * (x.ndim - 1)))


def sample(sampler, x, sigmas=LEVELS, seed=7, model=None, **more):
    return sampler.sampler_function(
        model or KnownModel(), x, sigmas, extra_args={"seed": seed, **more}, disable=True, **sampler.extra_options
    )


def start(rows=1, values=600, seed=1):
    return torch.randn((rows, values), generator=torch.Generator().manual_seed(seed))


# The window -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"start_at_step": 2, "end_at_step": 3}, [2]),
        ({"start_at_step": 4}, [4]),
        ({"end_at_step": 2}, [0, 1]),
        ({"sigma_from": 0.95, "sigma_to": 0.85}, [2, 3]),
        ({"sigma_from": 0.875, "sigma_to": 0.125}, [4]),  # 0.616 begins the step to 0, which is never random
        ({"start_at_step": 1, "sigma_to": 0.9}, [1, 2]),
    ],
)
def test_noise_comes_inside_the_window_only(sde, window, inside):
    random = sde.sde_sampler("Dance", 0.3, **window)
    options = random.extra_options
    assert sde.random_steps(LEVELS.tolist(), options["steps"], options["levels"]) == inside
    states, euler = {}, {}
    for sampler, seen in ((random, states), (comfy.samplers.sampler_object("euler"), euler)):
        model = KnownModel()

        def keep(step, seen=seen):
            seen[step["i"]] = step["x"].clone()

        seen[6] = sampler.sampler_function(
            model, start(), LEVELS, extra_args={"seed": 7}, callback=keep, disable=True, **sampler.extra_options
        )
        assert model.asked == pytest.approx(LEVELS[:-1].tolist())
    for i in range(6):
        # The Euler step of core from where the random sampler stands.
        step = comfy.k_diffusion.sampling.sample_euler(KnownModel(), states[i], LEVELS[i : i + 2], disable=True)
        assert torch.equal(step, states[i + 1]) == (i not in inside)
    assert all(torch.equal(states[i], euler[i]) for i in range(inside[0] + 1))


@pytest.mark.parametrize("levels", [[1.0, 0.0], [0.5, 0.5, 0.0], [0.4, 0.6, 0.0]])
def test_a_schedule_without_a_step_that_can_be_random_is_refused(sde, levels):
    with pytest.raises(ValueError, match="can be random"):
        sample(sde.sde_sampler("CPS"), start(), torch.tensor(levels))


def test_a_window_beside_the_schedule_is_refused(sde):
    with pytest.raises(ValueError, match=r"None of the 6 steps .* steps 6 to 9999 .* Widen the window"):
        sample(sde.sde_sampler("CPS", start_at_step=6), start())


def test_settings_that_cannot_be_are_refused(sde):
    for window in ({"start_at_step": 3, "end_at_step": 3}, {"sigma_from": 0.2, "sigma_to": 0.3}):
        with pytest.raises(ValueError, match="holds no step; widen it"):
            sde.sde_sampler("CPS", **window)
    with pytest.raises(ValueError, match="eta of CPS lies between 0 and 1, not at 1.5"):
        sde.sde_sampler("CPS", 1.5)
    with pytest.raises(ValueError, match="needs a seed"):
        sample(sde.sde_sampler("CPS"), start(), seed=None)


# What comes out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_moments_of_a_hundred_thousand_draws(sde, formulas, kind):
    """One step from a constant latent: mean and variance as the formula says, and a normal distribution."""
    count, x_t, level = 100_000, 0.7, 3
    levels = LEVELS[level : level + 2]
    x_next = sample(sde.sde_sampler(kind), torch.full((1, count), x_t), levels, seed=11).double()
    v = float((x_t - KnownModel()(torch.tensor([[x_t]]), levels[:1])) / levels[0])
    eta = formulas.KINDS[kind].eta or 0.0
    step = formulas.transition(kind, *levels.tolist(), eta, levels.tolist())
    centre = step.x_share * x_t + step.v_share * v
    assert abs(x_next.mean() - centre) < 4 * step.std / count**0.5
    assert abs(x_next.var() / step.std**2 - 1) < 4 * (2 / count) ** 0.5
    standard = (x_next - centre) / step.std
    assert abs((standard**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((standard**4).mean() - 3) < 4 * (96 / count) ** 0.5
    # Minus the entropy of the Gaussian; without variance and constant (CPS) minus the variance.
    log_prob = float(formulas.log_prob(kind, x_next, torch.full_like(x_next, centre), step.std))
    expected, scale = (-(step.std**2), 2 * step.std**2) if kind == "CPS" else (-0.5 - math.log(step.std) - HALF_LOG, 1)
    assert abs(log_prob - expected) < 4 * scale * (0.5 / count) ** 0.5


@pytest.mark.parametrize("kind", ["Flow-SDE", "CPS", "Dance", "SAGE"])
def test_eta_zero_is_cores_euler_to_the_last_bit(sde, kind):
    euler = sample(comfy.samplers.sampler_object("euler"), start())
    assert torch.equal(sample(sde.sde_sampler(kind, 0.0), start()), euler)
    assert not torch.equal(sample(sde.sde_sampler(kind), start()), euler)


@pytest.mark.parametrize("eta", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("level", range(5))
def test_cps_is_cores_euler_ancestral_at_the_mapped_eta(sde, formulas, eta, level):
    levels = LEVELS[level : level + 2]
    generator = sde.noise_generators(7, 1)[0]
    core = comfy.k_diffusion.sampling.sample_euler_ancestral_RF(
        KnownModel(), start(), levels, disable=True, eta=eta,
        noise_sampler=lambda sigma, sigma_next: torch.randn(600, generator=generator)[None],
    )  # fmt: skip
    mapped = formulas.cps_eta(*levels.tolist(), eta)
    ours = sample(sde.sde_sampler("CPS", mapped), start(), levels)
    assert torch.allclose(ours, core, atol=2e-6)
    assert not torch.allclose(ours, sample(sde.sde_sampler("CPS", mapped * 0.9), start(), levels), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_sigma_one_to_zero_is_finite(sde, kind):
    for steps in (2, 6, 50):
        levels = torch.tensor([8 * t / (1 + 7 * t) for t in torch.linspace(1, 0, steps + 1).tolist()])
        assert torch.isfinite(sample(sde.sde_sampler(kind), start(), levels)).all()


@pytest.mark.parametrize("record", [False, True])
def test_a_row_of_a_batch_is_that_row_alone(sde, record):
    sampler = sde.sde_sampler("Flow-SDE", record=record)
    together = sample(sampler, start(3), seed=2**64 - 2)
    for k, seed in enumerate((2**64 - 2, 2**64 - 1, 0)):
        assert torch.equal(together[k : k + 1], sample(sampler, start(3)[k : k + 1], seed=seed))
    assert not torch.equal(together[0], together[1])


def test_noise_is_neither_the_first_noise_nor_a_neighbours(sde):
    def draw(generator):
        return torch.randn(500, generator=generator)

    first = [draw(torch.Generator().manual_seed(seed)) for seed in range(4)]
    noise = [draw(generator) for generator in sde.noise_generators(0, 4)]
    correlations = torch.corrcoef(torch.stack(first + noise)) - torch.eye(8)
    assert correlations.abs().max() < 0.2
    assert torch.equal(noise[2], draw(sde.noise_generators(2, 1)[0]))


# Which models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction", ["EPS", "V_PREDICTION", "V_PREDICTION_DDPM", "EDM", "X0", "COSMOS_RFLOW", "IMG_TO_IMG_FLOW"]
)
def test_models_that_are_no_flow_are_refused_by_name(sde, prediction):
    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, getattr(comfy.model_sampling, prediction)):
        pass

    with pytest.raises(ValueError, match=f"KnownModel is not one: it predicts {prediction}. Choose euler_ancestral"):
        sample(sde.sde_sampler("CPS"), start(), model=KnownModel(Sampling()))


def test_noise_of_another_strength_is_refused(sde):
    sampling = FlowSampling()
    sampling.set_noise_scale(8.0)
    with pytest.raises(ValueError, match="noise 8 times as strong"):
        sample(sde.sde_sampler("CPS"), start(), model=KnownModel(sampling))


def test_cogvideox_is_refused(pack, sde, stack, shot, tmp_path):
    loader = pack.submodule("model_loaders.video_dit")
    model = loader.load_video_dit(tiny_families.write(tmp_path / "cog.safetensors", "cogvideox"))
    guider = pack.execute("BasicGuider", model=model, conditioning=stack.encode("sun"))[0]
    with pytest.raises(ValueError, match="CogVideoX is not one: it predicts V_PREDICTION_DDPM"):
        guider.sample(
            torch.zeros(1, 16, 2, 6, 8), torch.zeros(1, 16, 2, 6, 8), sde.sde_sampler("CPS"), shot.sigmas, seed=0
        )


# On a tiny Wan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_takes_are_what_core_samples_with_it(pack, sde, run, guider, sigmas, shot, kind):
    sampler = sde.sde_sampler(kind, start_at_step=1, end_at_step=4)
    many = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 3)
    alone = run.sample_takes(guider, sampler, sigmas, shot.latent, 7, 1)
    assert torch.equal(many.takes[2].samples, alone.takes[0].samples)
    assert many.sampler == "sde" and all(take.sde is None for take in many.takes)
    core = pack.execute(
        "SamplerCustomAdvanced", noise=pack.execute("RandomNoise", noise_seed=5)[0], guider=guider, sampler=sampler,
        sigmas=sigmas, latent_image=shot.latent,
    )[0]  # fmt: skip
    assert torch.equal(many.takes[0].samples, core["samples"])
    euler = run.sample_takes(guider, shot.sampler, sigmas, shot.latent, 5, 1)
    assert (many.takes[0].samples - euler.takes[0].samples).abs().max() > 1e-2


def test_a_batch_of_takes_is_the_takes(run, sde, guider, sigmas, shot):
    """With the first noise of seed, seed + 1, ... in its rows, through the same guider at once."""
    sampler = sde.sde_sampler("CPS")
    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    noise = torch.cat([run.take_noise(latent, seed) for seed in (20, 21)])
    both = guider.sample(noise, latent["samples"].repeat(2, 1, 1, 1, 1), sampler, sigmas, seed=20, disable_pbar=True)
    takes = run.sample_takes(guider, sampler, sigmas, shot.latent, 20, 2).takes
    for row, take in zip(both, takes, strict=True):
        assert torch.allclose(row, take.samples[0], atol=1e-3)
    assert (both[0] - both[1]).abs().max() > 0.1


def test_an_interrupt_stops_it_before_the_next_step(sde):
    model = KnownModel()
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(sde.sde_sampler("Flow-SDE"), start(), model=model)
    assert not model.asked and not comfy.model_management.processing_interrupted()


def test_an_interrupt_from_the_progress_passes_through(sde, run, guider, sigmas, shot):
    seen = []

    def interrupt(step, *others):
        seen.append(step)
        raise comfy.model_management.InterruptProcessingException

    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    noise, sampler = run.take_noise(latent, 1), sde.sde_sampler("Flow-SDE")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        guider.sample(noise, latent["samples"], sampler, sigmas, callback=interrupt, seed=1)
    assert seen == [0]


# Recording and replay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_replay_gives_exactly_the_recorded_log_probability(sde, replays, run, guider, sigmas, shot, kind):
    sampler = sde.sde_sampler(kind, start_at_step=1, end_at_step=4, record=True)
    take = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 1).takes[0]
    record = take.sde
    assert (record.kind, record.steps) == (kind, (1, 2, 3))
    assert torch.equal(record.sigmas, torch.stack([sigmas[1:4], sigmas[2:5]], dim=1))
    assert record.x_t.shape == record.x_next.shape == record.mean.shape == (3, *take.samples.shape[1:])
    assert record.x_t.dtype == record.x_next.dtype == torch.bfloat16
    assert record.std.dtype == record.log_prob.dtype == torch.float64
    assert torch.equal(record.x_next[:-1], record.x_t[1:])  # of steps in a row, in the same rounding
    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    replayed = replays.replay(guider, record, sigmas, latent, take.seed)
    assert torch.equal(replayed, record.log_prob)
    assert (replayed - record.log_prob).exp().tolist() == [1.0] * 3
    # Noise of the size that the record states has been added to its mean.
    spread = ((record.x_next.double() - record.mean.double()) / record.std.reshape(-1, 1, 1, 1, 1)).flatten(1)
    assert ((spread.var(1) - 1).abs() < 5 * (2 / spread.shape[1]) ** 0.5 + 1e-2).all()


def test_replay_follows_a_noise_mask(sde, replays, run, guider, sigmas, shot):
    latent = {
        "samples": torch.randn(shot.latent["samples"].shape, generator=torch.Generator().manual_seed(2)),
        "noise_mask": torch.zeros((1, 1, *shot.latent["samples"].shape[2:])),
    }
    latent["noise_mask"][..., :4] = 1.0
    sampler = sde.sde_sampler("Dance", record=True)
    take = run.sample_takes(guider, sampler, sigmas, latent, 5, 1).takes[0]
    assert torch.allclose(take.samples[..., 4:], latent["samples"][..., 4:], atol=1e-4)
    latent = run.prepare_latent(guider.model_patcher, latent)
    assert torch.equal(replays.replay(guider, take.sde, sigmas, latent, 5), take.sde.log_prob)


def test_other_guidance_or_another_step_has_another_log_probability(
    pack, sde, replays, run, guider, stack, sigmas, shot
):
    sampler = sde.sde_sampler("Flow-SDE", start_at_step=2, end_at_step=3, record=True)
    take = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 1).takes[0]
    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    other = make(stack.model, shot.positive, shot.negative_text, shot.negative_images, 3.5, 2.0)
    assert not torch.equal(replays.replay(other, take.sde, sigmas, latent, 5), take.sde.log_prob)


def test_replay_in_a_batch_is_equal_but_for_rounding(sde, replays, run, guider, sigmas, shot):
    sampler = sde.sde_sampler("Flow-SDE", start_at_step=2, end_at_step=3, record=True)
    records = [take.sde for take in run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 2).takes]
    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    answers = []

    def ask(model, x, sigmas, extra_args=None, callback=None, disable=None):
        forced = torch.cat([record.x_t for record in records]).float()
        answers.append(model(forced, sigmas[2] * x.new_ones([2]), **extra_args))
        return x

    samples = latent["samples"].repeat(2, 1, 1, 1, 1)
    guider.sample(torch.zeros_like(samples), samples, comfy.samplers.KSAMPLER(ask), sigmas, seed=5, disable_pbar=True)
    for k, record in enumerate(records):
        together = replays.replay_log_prob(record, 0, answers[0][k : k + 1], sigmas.tolist())
        # The 1e-6 of a model pass in another batch size; a clip range of 1e-3 sees nothing of it.
        assert abs(float(together - record.log_prob[0])) < 1e-5


def test_recording_is_asked_for(sde, guider):
    plain = sde.sde_sampler("CPS")
    assert sde.with_recorder(guider, plain) == (guider, None)
    assert sde.with_recorder(guider, comfy.samplers.sampler_object("euler")) == (guider, None)
    copied, recorder = sde.with_recorder(guider, sde.sde_sampler("CPS", record=True))
    assert recorder.kind == "CPS" and copied is not guider
    assert sde.RECORDER not in guider.model_options and copied.model_options[sde.RECORDER] is recorder


def test_without_a_random_step_there_is_no_record(sde, run, guider, sigmas, shot):
    none = sde.sde_sampler("CPS", 0.0, record=True)
    assert run.sample_takes(guider, none, sigmas, shot.latent, 5, 1).takes[0].sde is None


def test_records_survive_on_disk_and_a_pause(pack, sde, run, guider, sigmas, shot, tmp_path):
    sampler = sde.sde_sampler("CPS", start_at_step=1, end_at_step=3, record=True)
    store = pack.submodule("idcrafter.sampling.store").TakeStore(tmp_path, "k" * 32)
    fresh = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 1, store).takes[0]
    stored = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 1, store).takes[0]
    assert stored.resumed and not fresh.resumed
    tape = pack.submodule("idcrafter.sampling.tape")
    latent = run.prepare_latent(guider.model_patcher, shot.latent)
    answers = tape.Tape()
    assert tape.play(guider, sampler, sigmas, latent, 5, answers, float(sigmas[2])).sde is None
    paused = tape.play(guider, sampler, sigmas, latent, 5, answers, None).sde
    for record in (stored.sde, paused):
        assert record.settings() == fresh.sde.settings() == {"kind": "CPS", "eta": 0.8, "steps": [1, 2]}
        assert all(
            torch.equal(a, b) for a, b in zip(record.tensors().values(), fresh.sde.tensors().values(), strict=True)
        )


def test_a_damaged_record_is_refused(pack, sde, run, guider, sigmas, shot):
    sampler = sde.sde_sampler("CPS", start_at_step=1, end_at_step=3, record=True)
    record = run.sample_takes(guider, sampler, sigmas, shot.latent, 5, 1).takes[0].sde
    tensors, settings = record.tensors(), record.settings()
    with pytest.raises(ValueError, match="no record of random steps"):
        type(record).from_parts({"x_t": tensors["x_t"]}, settings)
    with pytest.raises(ValueError, match="as many latents as steps"):
        type(record).from_parts(tensors, {**settings, "steps": [1]})
