"""What a group's file holds, and what it refuses to hold."""

import dataclasses

import pytest
import safetensors.torch
import torch

from idcrafter.rollouts import record
from support.rollouts import SIGMAS, make_part, make_samples


def write(part, folder):
    path = folder / f"{part.name}.safetensors"
    path.write_bytes(part.to_bytes())
    return path


def test_everything_comes_back(tmp_path):
    seeds = make_samples(first_seed=2**64 - 3)
    part = make_part(seeds, label="campaign 7", left_out=[{"seed": 9, "why": "NaN"}])
    path = write(part, tmp_path)
    facts = record.read_facts(path)
    assert facts == part.facts
    assert [take["seed"] for take in facts["takes"]] == [2**64 - 3, 2**64 - 2, 2**64 - 1]
    assert [take["total"] for take in facts["takes"]] == [0.1, 0.5, 0.9]
    assert facts["takes"][2]["rewards"] == {"identity": 0.9, "motion": 2.0}
    assert facts["label"] == "campaign 7" and facts["left_out"] == [{"seed": 9, "why": "NaN"}]
    assert facts["shot"]["steps"] == 4 and facts["shot"]["shape"] == [4, 2, 3, 3]
    assert facts["software"]["torch"] == torch.__version__ and facts["created"].endswith("+00:00")
    tensors = record.read_tensors(path, ["sigmas", "1.x0"], facts)
    assert torch.equal(tensors["sigmas"], torch.tensor(SIGMAS)) and tensors["sigmas"].dtype == torch.float32
    assert torch.equal(tensors["1.x0"], seeds[1].x0.to(torch.bfloat16))
    assert "advantages" not in str(facts)


def test_float32_sigmas_are_stored_bit_for_bit(tmp_path):
    sigmas = torch.linspace(1, 0, 21, dtype=torch.float64).float() ** 1.3
    part = make_part(sigmas=sigmas)
    assert torch.equal(record.read_tensors(write(part, tmp_path), ["sigmas"])["sigmas"], sigmas)


def test_random_steps_are_optional_tensors(tmp_path):
    samples = make_samples()
    steps = {"x_t": torch.randn(2, 4, 2, 3, 3).bfloat16(), "log_prob": torch.tensor([-1.25, -1.5], dtype=torch.float64)}
    with_steps = dataclasses.replace(samples[1], tensors=steps, sde={"kind": "CPS", "eta": 0.8, "steps": [3, 4]})
    part = make_part([samples[0], with_steps])
    path = write(part, tmp_path)
    back = record.read_tensors(path, ["1.x_t", "1.log_prob"], part.facts)
    assert torch.equal(back["1.x_t"], steps["x_t"]) and torch.equal(back["1.log_prob"], steps["log_prob"])
    assert [take["sde"] for take in part.facts["takes"]] == [None, {"kind": "CPS", "eta": 0.8, "steps": [3, 4]}]


def test_takes_that_share_memory(tmp_path):
    batch = torch.randn(3, 4, 2, 3, 3).bfloat16()
    samples = [
        dataclasses.replace(s, x0=x0, tensors={"x_t": batch}) for s, x0 in zip(make_samples(), batch, strict=True)
    ]
    part = make_part(samples)
    back = record.read_tensors(write(part, tmp_path), ["0.x_t", "1.x_t", "2.x0"], part.facts)
    assert torch.equal(back["0.x_t"], batch) and torch.equal(back["1.x_t"], batch)
    assert torch.equal(back["2.x0"], batch[2])


def test_the_name_follows_from_what_a_take_is_made_of():
    part = make_part()
    again = make_part()
    assert (again.name, again.facts["group"]) == (part.name, part.facts["group"])
    more = make_part(first_seed=3)  # other seeds of the same shot: the same group in another file
    assert more.facts["group"] == part.facts["group"] and more.name != part.name
    others = [
        make_part(prompt="Bo waves."),
        make_part(policy="c" * 32),
        make_part(hashes={"references": "d"}),
        make_part(hashes={"text_encoder": "d"}),
        make_part(sigmas=torch.tensor([1.0, 0.5, 0.0])),
        make_part(shape=(4, 3, 3, 3)),
    ]
    assert len({other.facts["group"] for other in others} | {part.facts["group"]}) == 7
    # How takes are scored does not change which of them compare.
    assert make_part(hashes={"graph": "e"}).facts["group"] == part.facts["group"]


def test_mixed_policies_are_refused():
    samples = [*make_samples(totals=(0.1, 0.2)), *make_samples(totals=(0.3,), first_seed=2, policy="c" * 32)]
    with pytest.raises(ValueError, match="Take 2 was sampled by the policy cccccccccccc, the group is of aaaaaaaaaaaa"):
        make_part(samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 0}, "Two takes of the group have the same seed"),
        ({"x0": torch.zeros(4, 3, 3, 3)}, r"Take 1 has the shape \[4, 3, 3, 3\]"),
        ({"x0": torch.full((4, 2, 3, 3), float("nan"))}, "'1.x0' of the group holds NaN"),
        ({"total": float("inf")}, "The reward 'total' of take 1 is not a finite number"),
        ({"rewards": {"identity": 1.0}}, "Take 1 has the rewards"),
        ({"tensors": {"x_t": torch.tensor([float("inf")])}}, "'1.x_t' of the group holds NaN"),
    ],
)
def test_what_cannot_be_a_group(change, message):
    first, second, _ = make_samples()
    with pytest.raises(ValueError, match=message):
        make_part([first, dataclasses.replace(second, **change)])


def test_no_take_and_no_policy():
    with pytest.raises(ValueError, match="at least one take"):
        make_part([])
    with pytest.raises(ValueError, match="hash of the policy"):
        make_part(hashes={"policy": None})


def test_a_changed_reward_or_latent_or_name_is_noticed(tmp_path):
    part = make_part()
    path = write(part, tmp_path)
    data = path.read_bytes()
    changed = data.replace(rb"\"total\":0.9", rb"\"total\":0.8")
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="checksum"):
        record.read_facts(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    facts = record.read_facts(path)
    with pytest.raises(ValueError, match="changed since it was written"):
        record.read_tensors(path, list(facts["tensors"]), facts)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was renamed"):
        record.read_facts(path.rename(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_that_was_cut_off(tmp_path, kept):
    path = write(make_part(), tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged or cut off"):
        record.read_facts(path)


def test_other_files_and_other_versions(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}))
    with pytest.raises(ValueError, match="holds no rollouts"):
        record.read_facts(path)
    text = '{"version": 2}'
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {record.FORMAT: text}))
    with pytest.raises(ValueError, match="of version 2, this pack reads 1"):
        record.read_facts(path)
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {record.FORMAT: "[1, 2]"}))
    with pytest.raises(ValueError, match="facts of 'x.safetensors' are damaged"):
        record.read_facts(path)
