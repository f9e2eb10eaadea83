"""Takes against core's SamplerCustomAdvanced, and what survives an interrupt."""

import pytest
import torch


@pytest.fixture(scope="module")
def run(pack):
    return pack.submodule("idcrafter.sampling.run")


@pytest.fixture
def guider(pack, stack, shot):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    return make(stack.model, shot.positive, shot.negative_text, shot.negative_images, 3.0, 2.0)


@pytest.fixture
def store(pack, tmp_path):
    return pack.submodule("idcrafter.sampling.store").TakeStore(tmp_path, "k" * 32)


def core_take(guider, sampler, sigmas, latent, seed):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, sigmas.clone(), latent).args[0][
        "samples"
    ]


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m", "uni_pc"])
def test_take_k_is_cores_sample_of_its_seed(run, guider, shot, name):
    import comfy.samplers

    sampler = comfy.samplers.sampler_object(name)
    takes = run.sample_takes(guider, sampler, shot.sigmas, shot.latent, 11, 3)
    assert [take.seed for take in takes.takes] == [11, 12, 13]
    for take in takes.takes:
        assert torch.equal(take.samples, core_take(guider, sampler, shot.sigmas, shot.latent, take.seed))
    assert not torch.equal(takes.takes[0].samples, takes.takes[1].samples)
    assert takes.sampler == name.replace("uni_pc", "unipc")


def test_take_k_of_a_batch_is_take_k_alone(run, guider, shot):
    many = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 5, 3)
    alone = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 7, 1)
    assert torch.equal(many.takes[2].samples, alone.takes[0].samples)


def test_the_same_seed_gives_the_same_takes_and_another_seed_others(run, guider, shot):
    def sample(seed):
        return run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, seed, 1).takes[0].samples

    assert torch.equal(sample(3), sample(3))
    assert (sample(3) - sample(4)).abs().max() > 1e-2


def test_seeds_wrap_at_the_end_of_the_range(run, guider, shot):
    takes = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 2**64 - 1, 2)
    assert [take.seed for take in takes.takes] == [2**64 - 1, 0]
    assert torch.equal(takes.takes[1].samples, core_take(guider, shot.sampler, shot.sigmas, shot.latent, 0))


def test_a_mask_and_a_given_latent_are_respected(run, guider, shot):
    latent = {
        "samples": torch.randn(shot.latent["samples"].shape, generator=torch.Generator().manual_seed(2)),
        "noise_mask": torch.zeros((1, 1, *shot.latent["samples"].shape[2:])),
    }
    latent["noise_mask"][..., :4] = 1.0
    take = run.sample_takes(guider, shot.sampler, shot.sigmas, latent, 1, 1).takes[0]
    assert torch.equal(take.samples, core_take(guider, shot.sampler, shot.sigmas, latent, 1))
    assert torch.allclose(take.samples[..., 4:], latent["samples"][..., 4:], atol=1e-4)


def test_what_is_no_single_latent_with_a_schedule_is_refused(run, guider, shot):
    batch = {"samples": shot.latent["samples"].repeat(2, 1, 1, 1, 1)}
    with pytest.raises(ValueError, match="batch of 2"):
        run.sample_takes(guider, shot.sampler, shot.sigmas, batch, 0, 1)
    for sigmas in (torch.empty(0), torch.ones(1)):
        with pytest.raises(ValueError, match="no steps"):
            run.sample_takes(guider, shot.sampler, sigmas, shot.latent, 0, 1)


@pytest.mark.parametrize("name", ["euler", "uni_pc"])
def test_inputs_and_the_model_stay_as_they_were(run, guider, stack, shot, name):
    import comfy.samplers

    weights = {name: value.clone() for name, value in stack.model.model.state_dict().items()}
    options = repr(stack.model.model_options)
    before = shot.latent["samples"].clone(), shot.sigmas.clone(), dict(shot.latent)
    run.sample_takes(guider, comfy.samplers.sampler_object(name), shot.sigmas, shot.latent, 0, 2)
    assert torch.equal(shot.latent["samples"], before[0]) and torch.equal(shot.sigmas, before[1])
    assert shot.latent.keys() == before[2].keys()
    assert repr(stack.model.model_options) == options
    after = stack.model.model.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)


def test_facts_for_the_report(run, guider, stack, shot):
    takes = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 0, 1)
    assert takes.model["family"] == "wan-t2v" and takes.model["file"] == "tiny_dit.safetensors"
    assert takes.model["size"] == sum(p.numel() for p in stack.model.model.diffusion_model.parameters())
    assert torch.equal(takes.sigmas, shot.sigmas)
    assert takes.takes[0].seconds > 0 and not takes.takes[0].resumed
    takes.model["family"] = "changed"
    assert run.model_facts(stack.model)["family"] == "wan-t2v"
    stranger = stack.model.clone()
    stranger.remove_attachments("idcrafter")
    assert run.model_facts(stranger) == {"family": "WAN21", "size": takes.model["size"]}


def interrupting(sampler, calls, take, step):
    """The sampler, pressing Cancel at this step of this take (both counted from 1)."""
    import comfy.model_management
    import comfy.samplers

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        calls.append(len(calls))

        def stepped(state):
            if len(calls) == take and state["i"] + 1 == step:
                comfy.model_management.interrupt_current_processing()
            callback(state)

        return sampler.sampler_function(
            model, x, sigmas, extra_args=extra_args, callback=stepped, disable=disable, **options
        )

    return comfy.samplers.KSAMPLER(function)


def test_an_interrupt_in_take_3_leaves_takes_1_and_2(run, guider, store, shot):
    import comfy.model_management

    calls = []
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run.sample_takes(guider, interrupting(shot.sampler, calls, 3, 2), shot.sigmas, shot.latent, 20, 4, store)
    assert len(calls) == 3
    assert sorted(path.name for path in store.folder.iterdir()) == ["20.safetensors", "21.safetensors"]

    resumed = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 20, 4, store)
    assert [take.resumed for take in resumed.takes] == [True, True, False, False]
    fresh = run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 20, 4)
    for a, b in zip(resumed.takes, fresh.takes, strict=True):
        assert a.seed == b.seed and torch.equal(a.samples, b.samples)


def test_stored_takes_are_not_sampled_again(run, guider, store, shot):
    run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 0, 2, store)
    calls = []
    never = interrupting(shot.sampler, calls, 0, 0)
    takes = run.sample_takes(guider, never, shot.sigmas, shot.latent, 1, 2, store)
    assert len(calls) == 1
    assert [(take.seed, take.resumed) for take in takes.takes] == [(1, True), (2, False)]


def test_progress_counts_all_takes_and_carries_previews(run, guider, store, shot, monkeypatch):
    import comfy.cli_args
    import comfy.utils

    run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 0, 1, store)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.Latent2RGB)
    seen = []

    def hook(value, total, preview, **_):
        seen.append((value, total, preview is not None))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    run.sample_takes(guider, shot.sampler, shot.sigmas, shot.latent, 0, 3, store)
    steps = len(shot.sigmas) - 1
    assert seen[0] == (steps, 3 * steps, False)  # the stored take, at once
    assert seen[-1][:2] == (3 * steps, 3 * steps)
    values = [value for value, _, _ in seen]
    assert values == sorted(values) and {total for _, total, _ in seen} == {3 * steps}
    assert [value for value, _, preview in seen if preview] == list(range(steps + 1, 3 * steps + 1))
