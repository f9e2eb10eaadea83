"""A native MODEL with a LoRA as a policy: what sampled a take is what the trainer computes, to the last digits."""

from types import SimpleNamespace

import pytest
import torch

from support import tiny_rollouts, tiny_training
from support.composition import Shot
from support.tiny_stack import cast, shot  # noqa: F401

SIGMA = torch.tensor([0.6, 0.3])
FAMILIES = ("phantom", "vace", "cogvideox")


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.training.policy")


def lora_of(pack, model, used=False):
    lora = pack.submodule("idcrafter.training.lora").LoRA(model.model.diffusion_model, 3, 5)
    if used:
        with torch.no_grad():
            for up in lora.lora_up:
                up.copy_(tiny_training.noise(*up.shape, seed=8) * 0.2)
    return lora


def group_of(name="g" * 32, **guidance):
    return SimpleNamespace(name=name, facts={"shot": {"guidance": guidance}})


def conditioned(pack, family):
    own = Shot(pack, family)
    return lambda group: {"positive": own.positive, "negative_text": own.negative}


def noisy(rows=2, seed=3):
    return tiny_training.noise(rows, 16, 3, 6, 8, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_lora_leaves_all_policies_the_same(pack, lib, model_of, family):
    model = model_of(family)
    policy = lib.LoraPolicy(model, lora_of(pack, model), conditioned(pack, family), checkpoint=2)
    group = group_of(cfg_text=4.0)
    for guided in (False, True):
        new = policy.velocity(noisy(), SIGMA, group, guided)
        assert new.requires_grad and new.dtype == torch.float32
        assert torch.equal(new, policy.old_velocity(noisy(), SIGMA, group, guided))
        assert torch.equal(new, policy.reference_velocity(noisy(), SIGMA, group, guided))
    new.sum().backward()
    # Only the ups have a gradient while they are zero.
    assert all(up.grad.any() for up in policy.lora.lora_up)
    assert {name.split(".")[0] for name, _ in policy.named_parameters()} == {"network"}
    assert len(list(policy.parameters())) == 2 * len(policy.lora.names) and policy.old_is_reference


def test_checkpointing_changes_no_gradient(pack, lib, model_of):
    model = model_of("phantom")
    found = []
    for depth in (0, 2):
        policy = lib.LoraPolicy(model, lora_of(pack, model, True), conditioned(pack, "phantom"), checkpoint=depth)
        (policy.velocity(noisy(), SIGMA, group_of()) ** 2).sum().backward()
        found.append([p.grad for p in policy.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-6)


def test_old_and_reference_are_other_policies(pack, lib, model_of):
    model = model_of("phantom")
    inputs = conditioned(pack, "phantom")
    plain = lib.LoraPolicy(model, lora_of(pack, model), inputs)
    policy = lib.LoraPolicy(model, lora_of(pack, model, True), inputs, old=lora_of(pack, model, True))
    group = group_of()
    new, old, reference = (
        call(noisy(), SIGMA, group) for call in (policy.velocity, policy.old_velocity, policy.reference_velocity)
    )
    assert not policy.old_is_reference and torch.equal(new, old) and not old.requires_grad
    assert torch.equal(reference, plain.velocity(noisy(), SIGMA, group))
    assert not torch.allclose(new, reference, atol=1e-3)
    policy.follow({name: p.detach() * 0 for name, p in policy.named_parameters()})
    assert torch.equal(policy.old_velocity(noisy(), SIGMA, group), reference)
    assert torch.equal(policy.velocity(noisy(), SIGMA, group), new)
    with pytest.raises(RuntimeError, match="no LoRA that could follow"):
        plain.follow({})


def test_rows_are_independent_and_groups_have_their_own_inputs(pack, lib, model_of):
    model = model_of("phantom")
    other = Shot(pack, "phantom")
    other.positive = [[tiny_training.noise(1, 7, 32, seed=21), other.positive[0][1]]]
    own = conditioned(pack, "phantom")
    calls = []

    def inputs(group):
        calls.append(group.name)
        return own(group) if group.name == "a" else {"positive": other.positive}

    policy = lib.LoraPolicy(model, lora_of(pack, model, True), inputs)
    with torch.no_grad():
        both = policy.velocity(noisy(), SIGMA, group_of("a"))
        alone = policy.velocity(noisy()[1:], SIGMA[1:], group_of("a"))
        second = policy.velocity(noisy(), SIGMA, group_of("b"))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, second, atol=1e-3) and calls == ["a", "b"]


def test_guidance():
    """Of the branches that Sample Takes and core's guiders have; on numbers instead of velocities."""
    from idcrafter.training.policy import guidance

    values = {"positive": 7.0, "negative_text": 3.0, "negative_images": 1.0}

    def combined(branches, **facts):
        return sum(values[name] * pull for name, pull in guidance(group_of(**facts), branches))

    two, three = ("positive", "negative_text"), ("positive", "negative_text", "negative_images")
    assert combined(("positive",)) == 7.0
    assert combined(two, cfg_text=4.5) == 3 + 4.5 * 4
    assert combined(two, guider="CFGGuider", cfg=4.5) == 3 + 4.5 * 4
    wanted = 1 + 5.0 * (3 - 1) + 7.5 * (7 - 3)
    assert combined(three, cfg_text=7.5, cfg_images=5.0) == wanted
    assert combined(three, guider="Guider_DualCFG", cfg1=7.5, cfg2=5.0, nested=False) == wanted
    with pytest.raises(ValueError, match="does not say how strongly"):
        combined(three, cfg_text=7.5)
    with pytest.raises(ValueError, match="guider Guider_DualCFG, which training does not know"):
        combined(three, guider="Guider_DualCFG", cfg1=7.5, cfg2=5.0, nested=True)
    with pytest.raises(ValueError, match="guider Other"):
        combined(two, guider="Other", cfg=2.0)


def test_several_prompts_at_once_are_refused(pack, lib, model_of):
    model = model_of("phantom")
    own = Shot(pack, "phantom").positive
    policy = lib.LoraPolicy(model, lora_of(pack, model), lambda group: {"positive": own * 2})
    with pytest.raises(ValueError, match="'positive' of group gggggggggggg has 2 parts"):
        policy.velocity(noisy(), SIGMA, group_of())


@pytest.fixture(scope="module")
def collected(pack, stack, shot, tmp_path_factory):  # noqa: F811
    store = tiny_rollouts.collect(pack, stack, shot, tmp_path_factory.mktemp("collected"))
    return pack.submodule("idcrafter.rollouts.dataset").load(store.folder)


@pytest.fixture(scope="module")
def train(pack, lib, stack, collected):
    def train(folder, method="flash_grpo", lora=None, **changes):
        settings = pack.submodule("idcrafter.training.rl_settings").Settings(
            method, steps=4, groups=1, takes=4, rate=0.01, **changes
        )
        policy = lib.LoraPolicy(stack.model, lora_of(pack, stack.model) if lora is None else lora, collected)
        result = pack.submodule("idcrafter.training.rl").train_rl(policy, collected, folder, settings)
        return policy, result

    return train


def test_the_trainer_computes_what_the_sampler_recorded(pack, lib, stack, collected):
    """Through three passes of guidance and the stored conditioning; and its ratio is exactly 1."""
    rl, settings = (pack.submodule(f"idcrafter.training.{name}") for name in ("rl", "rl_settings"))
    batches = pack.submodule("idcrafter.training.rollout_batches")
    chosen = settings.Settings("flash_grpo", groups=1, takes=4)
    policy = lib.LoraPolicy(stack.model, lora_of(pack, stack.model), collected, checkpoint=2)
    step = rl.RLStep(batches.RolloutBatches(collected, chosen.plan()), chosen, policy.noising)
    seen = set()
    for n in range(6):
        (batch,) = step.batches.draw(n, "steps")
        seen.add(batch.sigma)
        found = step.losses(policy, batch)
        assert torch.equal(found["ratio"], torch.ones(4, dtype=torch.float64))
        assert float(found["mismatch"].max()) < 1e-5
    assert len(seen) == 2


@pytest.mark.parametrize("method", ["nft", "flash_grpo", "identity_grpo", "dpo", "crd", "rwr"])
def test_it_trains_a_lora_that_core_loads(pack, stack, train, tmp_path, method):
    import comfy.sd

    policy, result = train(tmp_path, method)
    assert result.steps == 4 and all(up.any() for up in policy.lora.lora_up)
    loaded, _ = comfy.sd.load_lora_for_models(stack.model, None, policy.lora.export(), 1.0, 0.0)
    assert len(loaded.patches) == len(policy.lora.names)


def test_training_goes_on_where_it_stopped(pack, lib, stack, collected, train, tmp_path):
    whole, _ = train(tmp_path / "whole", "nft")
    rl, settings = (pack.submodule(f"idcrafter.training.{name}") for name in ("rl", "rl_settings"))
    policy = lib.LoraPolicy(stack.model, lora_of(pack, stack.model), collected)

    def stop(done, what):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen = settings.Settings("nft", steps=4, groups=1, takes=4, rate=0.01)
        rl.train_rl(policy, collected, tmp_path / "parts", chosen, on_progress=stop)
    resumed, _ = train(tmp_path / "parts", "nft")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert float((a - b).detach().abs().max()) <= 1e-6


def test_conditioning_that_was_not_stored(pack, lib, stack, collected):
    group = collected.groups[0]
    bare = {**group.facts, "shot": {k: v for k, v in group.facts["shot"].items() if k != "conditioning"}}
    other = type(group)(group.name, bare, group.takes)
    policy = lib.LoraPolicy(stack.model, lora_of(pack, stack.model), collected)
    with pytest.raises(ValueError, match="stored without its conditioning"):
        policy.velocity(group.load(0)["x0"][None].float(), torch.tensor([0.5]), other)
