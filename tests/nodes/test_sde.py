"""SDE Sampler as a node, with Sample Takes."""

import pytest
import torch


@pytest.fixture
def sampler(pack):
    def make(kind, **changes):
        inputs = {"start_at_step": 0, "end_at_step": 10000, "sigma_from": 1.0, "sigma_to": 0.0, "record": False}
        return pack.execute("IDCrafterSDESampler", kind=kind, **{**inputs, **changes})[0]

    return make


def test_every_kind_is_offered_with_its_usual_eta(pack):
    kinds = pack.submodule("idcrafter.sampling.sde.steps").KINDS
    options = pack.nodes["IDCrafterSDESampler"].INPUT_TYPES()["required"]["kind"][1]["options"]
    assert [option["key"] for option in options] == list(kinds)
    for option, kind in zip(options, kinds.values(), strict=True):
        etas = [entry[1]["default"] for entry in option["inputs"]["required"].values()] if option["inputs"] else []
        assert etas == ([] if kind.eta is None else [kind.eta])


def test_the_window_and_eta_reach_the_sampler(sampler):
    options = sampler({"kind": "CPS", "eta": 0.4}, start_at_step=2, end_at_step=3, sigma_from=0.9).extra_options
    assert options == {"kind": "CPS", "eta": 0.4, "steps": (2, 3), "levels": (0.9, 0.0), "record": False}
    assert sampler({"kind": "Wan-SDE"}).extra_options["eta"] == 0.0


def test_recorded_takes(pack, sampler, stack, shot):
    def takes(**changes):
        return pack.execute(
            "IDCrafterSampleTakes", model=stack.model, sampler=sampler({"kind": "Wan-SDE"}, **changes),
            sigmas=shot.sigmas, latent_image=shot.latent, seed=3, takes=2, positive=shot.positive,
        )[0]  # fmt: skip

    recorded = takes(record=True, start_at_step=1, end_at_step=2)
    assert recorded.sampler == "sde"
    for take in recorded.takes:
        assert take.sde.steps == (1,) and torch.isfinite(take.sde.log_prob).all()
    first, second = (take.sde for take in recorded.takes)
    assert not torch.equal(first.x_next - first.x_t, second.x_next - second.x_t)
    assert all(take.sde is None for take in takes().takes)


def test_its_settings_are_part_of_the_key_of_a_run(pack, sampler):
    signature = pack.submodule("idcrafter.sampling.fingerprint").sampler_signature
    seen = [
        str(signature(made))
        for made in (
            sampler({"kind": "CPS", "eta": 0.4}),
            sampler({"kind": "CPS", "eta": 0.5}),
            sampler({"kind": "CPS", "eta": 0.4}, record=True),
            sampler({"kind": "CPS", "eta": 0.4}, end_at_step=4),
            sampler({"kind": "Dance", "eta": 0.4}),
        )
    ]
    assert len(set(seen)) == 5
