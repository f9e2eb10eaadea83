"""What a trainer gets: joined groups, and the reason for everything that it does not get."""

import dataclasses

import numpy as np
import pytest
import torch

from idcrafter.rollouts import conditioning, dataset, licences, page, record
from idcrafter.rollouts.dataset import Filters
from support.rollouts import LICENCE, make_part, make_samples


def load(store, **filters):
    return dataset.load(store.folder, Filters(**filters))


def reasons(rollouts):
    return [skipped.reason for skipped in rollouts.skipped]


def rebuilt(part, **changes):
    """The part with other facts and a checksum that fits, as another program may write it."""
    from idcrafter.rollouts.digests import digest

    facts = {**part.facts, **changes}
    facts["checksum"] = digest({name: value for name, value in facts.items() if name != "checksum"})
    return record.Part(facts, part.tensors)


def test_takes_come_back_with_their_tensors(store):
    samples = make_samples()
    store.save(make_part(samples))
    (group,) = load(store).groups
    assert group.prompt == "Ada waves." and group.totals.tolist() == [0.1, 0.5, 0.9]
    assert (group.best, group.worst) == (2, 0) and group.spread == pytest.approx(np.std([0.1, 0.5, 0.9]))
    assert torch.equal(group.load(1)["x0"], samples[1].x0.bfloat16())
    assert torch.equal(group.sigmas(), torch.tensor([1.0, 0.75, 0.5, 0.1, 0.0]))
    with pytest.raises(ValueError, match="cannot be read"):
        group.load(0, ["x_t"])


def test_there_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="collect some with Save Rollouts"):
        dataset.load(tmp_path / "nothing")


def test_more_takes_of_a_shot_join_its_group(store):
    store.save(make_part(make_samples(first_seed=0)))
    store.save(make_part(make_samples(first_seed=3, totals=(0.2, 0.4))))
    (group,) = load(store).groups
    assert [take.seed for take in group.takes] == [0, 1, 2, 3, 4]
    assert group.totals.tolist() == [0.1, 0.5, 0.9, 0.2, 0.4]


def scored_again(samples):
    return [
        dataclasses.replace(sample, rewards={"judge": 7.0 + sample.seed, "motion": 9.0}, total=sample.total + 1)
        for sample in samples
    ]


def test_a_take_in_two_files_counts_once_with_the_rewards_of_both(store):
    store.save(rebuilt(make_part(), created="2026-01-01T00:00:00+00:00"))
    store.save(make_part(scored_again(make_samples()), reward={"combine": "sum"}))
    (group,) = load(store).groups
    assert len(group.takes) == 3 and group.totals.tolist() == [1.1, 1.5, 1.9]  # of equals, the newest reward
    assert group.takes[0].rewards == {"identity": 0.1, "motion": 9.0, "judge": 7.0}
    assert load(store).reward_names == ("identity", "judge", "motion")
    assert group.facts["reward"] == {"combine": "sum"}


def test_totals_of_different_rewards_are_not_compared(store):
    store.save(rebuilt(make_part(), created="2026-01-01T00:00:00+00:00"))
    # Seed 2 again, and a new take that only the other reward has seen.
    known, new = scored_again(make_samples(totals=(0, 0, 0.9, 0.1))[2:])
    store.save(make_part([known, new], reward={"combine": "sum"}))
    loaded = load(store)
    (group,) = loaded.groups
    assert [take.seed for take in group.takes] == [0, 1, 2] and group.totals.tolist() == [0.1, 0.5, 0.9]
    assert group.takes[2].rewards == {"identity": 0.9, "motion": 9.0, "judge": 9.0}
    assert "made of other rewards" in reasons(loaded)[0] and loaded.skipped[0].what.startswith("seed 3 of groups/")


def test_another_take_of_the_same_seed_is_left_out(store):
    store.save(rebuilt(make_part(), created="2026-01-01T00:00:00+00:00"))
    store.save(make_part(make_samples(salt=5)[1:]))
    loaded = load(store)
    assert len(loaded.groups[0].takes) == 3
    assert torch.equal(loaded.groups[0].load(1)["x0"], make_samples()[1].x0.bfloat16())
    assert len(loaded.skipped) == 2 and all("has another take of this seed" in reason for reason in reasons(loaded))


def test_mixed_policies_are_left_out(store):
    part = make_part()
    takes = [{**take, "policy": "c" * 32 if take["index"] else take["policy"]} for take in part.facts["takes"]]
    store.save(rebuilt(part, takes=takes))
    loaded = load(store)
    assert not loaded.groups and reasons(loaded) == ["its takes are of 2 policies (aaaaaaaaaaaa, cccccccccccc)"]


def test_policies_stay_apart_and_can_be_chosen(store):
    store.save(make_part(policy="a" * 32))
    store.save(make_part(policy="c" * 32))
    loaded = load(store)
    assert len(loaded.groups) == 2 and loaded.policies == ("a" * 32, "c" * 32)
    chosen = load(store, policy="cc")
    assert chosen.policies == ("c" * 32,) and reasons(chosen) == ["it is of the policy aaaaaaaaaaaa, not cc"]


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("Apache-2.0", "allowed"),
        ("MIT", "allowed"),
        ("Apache-2.0 (as Phantom-Wan was published; the file does not say)", "allowed"),
        ("MiniMax H3 Community License", "forbidden"),
        ("tencent-hunyuan-community", "forbidden"),
        ("Tencent HY Community License", "forbidden"),
        ("CC-BY-4.0, no-training", "forbidden"),
        ("Outputs may not be used to train models", "forbidden"),
        ("Skywork Community License", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
        ("permitted", "unknown"),
    ],
)
def test_licences(licence, verdict):
    assert licences.verdict(licence)[0] == verdict


def test_data_whose_licence_forbids_training_is_left_out_always(store):
    store.save(make_part(prompt="good"))
    forbidden = {**LICENCE, "name": "h3.safetensors", "licence": "MiniMax H3 Community License"}
    store.save(make_part(prompt="bad", licences=[forbidden]))
    judge = {"what": "reward judge", "name": "j", "licence": "Hunyuan", "made_pixels": False}
    store.save(make_part(prompt="judged", licences=[LICENCE, judge]))
    for filters in ({}, {"policy": "a"}):
        loaded = load(store, **filters)
        assert {group.prompt for group in loaded.groups} == {"good", "judged"}
        assert reasons(loaded) == [
            "training on outputs of video model 'h3.safetensors' is not allowed: the MiniMax H3 Community License, "
            "V.3, forbids it"
        ]


def test_licence_filter(store):
    store.save(make_part(prompt="a"))
    store.save(make_part(prompt="b", licences=[{**LICENCE, "licence": None}]))
    loaded = load(store, licence="apache")
    assert [group.prompt for group in loaded.groups] == ["a"]
    assert reasons(loaded) == ["its licence is 'not stated', not 'apache'"]


def test_groups_that_teach_nothing(store):
    store.save(make_part(prompt="equal", totals=(0.3, 0.3, 0.3)))
    store.save(make_part(prompt="rounding", totals=(0.3, 0.3 + 1e-9)))
    store.save(make_part(prompt="alone", totals=(0.3,)))
    store.save(make_part(prompt="little", totals=(0.3, 0.31)))
    store.save(make_part(prompt="good"))
    loaded = load(store, min_spread=0.01)
    assert [group.prompt for group in loaded.groups] == ["good"]
    assert sorted(reasons(loaded)) == sorted(
        [
            *["all its takes have the same reward, so there is nothing to learn from"] * 2,
            "it has one take, which compares with nothing",
            "its rewards differ by 0.005 only (less than 0.01)",
        ]
    )


def test_another_text_encoder(store):
    store.save(make_part(prompt="same", hashes={"text_encoder": "1" * 32}))
    store.save(make_part(prompt="other", hashes={"text_encoder": "2" * 32}))
    store.save(make_part(prompt="unknown"))
    loaded = load(store, text_encoder="1" * 32)
    assert [group.prompt for group in loaded.groups] == ["same"]
    assert "collected with the text encoder 222222222222, not 111111111111" in reasons(loaded)[0] + reasons(loaded)[1]
    assert "a text encoder that was not noted" in reasons(loaded)[0] + reasons(loaded)[1]


def test_dates_and_labels(store):
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        store.save(rebuilt(make_part(prompt=day, label=day[-1]), created=f"{day}T12:00:00+00:00"))
    days = lambda **filters: [group.prompt[-1] for group in load(store, **filters).groups]  # noqa: E731
    assert days(since="2026-03-02") == ["2", "3"] and days(until="2026-03-02") == ["1", "2"]
    assert days(since="2026-03-02", until="2026-03-02") == ["2"] and days(label="3") == ["3"]
    assert "it was collected on 2026-03-01T12:00:00+00:00" in reasons(load(store, since="2026-03-02"))


def test_takes_of_another_size_do_not_join(store):
    first = make_part()
    store.save(rebuilt(first, created="2026-01-01T00:00:00+00:00"))
    other = make_part(make_samples(first_seed=9, shape=(4, 5, 3, 3)))
    store.save(rebuilt(other, group=first.facts["group"]))
    loaded = load(store)
    assert len(loaded.groups[0].takes) == 3 and "its takes are not [4, 2, 3, 3]" in reasons(loaded)[0]


def test_advantages_are_made_at_load(store):
    store.save(make_part(prompt="a"))
    store.save(make_part(prompt="b", totals=(0.0, 1.0)))
    rollouts = load(store)
    by_prompt = dict(zip([group.prompt for group in rollouts.groups], rollouts.advantages(), strict=True))
    std = np.std([0.1, 0.5, 0.9]) + 1e-4
    assert np.allclose(by_prompt["a"], np.array([-0.4, 0, 0.4]) / std) and np.allclose(
        by_prompt["b"], [-1, 1], atol=3e-4
    )
    mixed = rollouts.advantages("weighted", {"motion": 1.0})
    assert [len(each) for each in mixed] == [len(group.takes) for group in rollouts.groups]
    with pytest.raises(ValueError, match="Not every take has the reward 'judge'; all have: identity, motion"):
        rollouts.advantages("gdpo", {"judge": 1.0})


# Conditioning ---------------------------------------------------------------------------------------------------------


def conds():
    text = torch.zeros(1, 512, 8)
    text[:, :5] = torch.randn(1, 5, 8)
    latents = [torch.randn(1, 4, 1, 3, 3), torch.randn(1, 4, 1, 3, 3).bfloat16()]
    options = {
        "time_dim_concat": latents[0],
        "reference_latents": latents,
        "strength": 0.5,
        "uuid": object(),
        "on": None,
    }
    return {"positive": [[text, options]], "negative_text": [[torch.zeros(1, 512, 8), {"pooled_output": None}]]}


def test_conditioning_comes_back_bit_for_bit_and_is_stored_once(store):
    given = conds()
    plan, tensors = conditioning.pack(given)
    assert plan == conditioning.pack(given)[0] and len(tensors) == 4
    assert sum(t.numel() for t in tensors.values()) == 5 * 8 + 8 + 36 + 36  # no padding, nothing twice
    for prompt in ("a", "b"):
        store.save(make_part(prompt=prompt, plan=plan), tensors)
    assert len(list(store.objects.iterdir())) == 4
    rollouts = load(store)
    back = rollouts.conditioning(rollouts.groups[0])
    (text, options), (before, wanted) = back["positive"][0], given["positive"][0]
    assert torch.equal(text, before) and torch.equal(options["time_dim_concat"], wanted["time_dim_concat"])
    assert options["reference_latents"][1].dtype == torch.bfloat16 and options["strength"] == 0.5
    assert "uuid" not in options and options["on"] is None
    assert torch.equal(back["negative_text"][0][0], torch.zeros(1, 512, 8))
    assert store.verify() == []


def test_another_conditioning_has_another_hash():
    plan, _ = conditioning.pack(conds())
    assert conditioning.pack(conds())[0] != plan  # other random tensors
    hooks = lambda weight: {"positive": [[None, {"hooks": Hook(torch.tensor([weight]))}]]}  # noqa: E731
    assert conditioning.pack(hooks(1.0))[0] == conditioning.pack(hooks(1.0))[0] != conditioning.pack(hooks(2.0))[0]


@dataclasses.dataclass
class Hook:
    weight: torch.Tensor


def test_what_was_only_hashed_says_so(store, monkeypatch):
    plan, tensors = conditioning.pack({"positive": [[None, {"hooks": Hook(torch.zeros(1))}]]})
    store.save(make_part(plan=plan), tensors)
    rollouts = load(store)
    with pytest.raises(ValueError, match="holds Hook of which only the hash was stored"):
        rollouts.conditioning(rollouts.groups[0])
    monkeypatch.setattr(conditioning, "MAX_BYTES", 10)
    for large in (torch.ones(1, 4, 4), torch.ones(1, 2, 3, 4, 4)):
        plan, tensors = conditioning.pack({"positive": [[large, {}]]})
        assert not tensors and "only_hashed" in plan["positive"][0][0]


def test_large_videos_are_stored_by_frames_that_shots_share(store, monkeypatch):
    """Two shots of VACE: three frames of references of their own, and the same ones that are to be made."""
    monkeypatch.setattr(conditioning, "MAX_BYTES", 500)
    grey, shots, names = torch.full((1, 2, 9, 4, 4), 0.5), [], set()
    for i in range(2):
        own = torch.randn((1, 2, 3, 4, 4), generator=torch.Generator().manual_seed(i))
        shots.append({"positive": [[torch.ones(1, 2, 4), {"vace_frames": [torch.cat([own, grey], 2)]}]]})
        plan, tensors = conditioning.pack(shots[-1])
        assert conditioning.names_of(plan) == set(tensors)
        names |= set(tensors)
        store.save(make_part(plan=plan, prompt=f"shot {i}"), tensors)
    assert len(names) == 1 + 2 * 3 + 1 and len(list(store.objects.glob("*"))) == len(names)
    rollouts = load(store)
    for group, shot in zip(sorted(rollouts.groups, key=lambda group: group.prompt), shots, strict=True):
        found = rollouts.conditioning(group)["positive"][0][1]["vace_frames"][0]
        assert torch.equal(found, shot["positive"][0][1]["vace_frames"][0])


def test_groups_without_conditioning(store):
    store.save(make_part())
    rollouts = load(store)
    with pytest.raises(ValueError, match="stored without its conditioning"):
        rollouts.conditioning(rollouts.groups[0])


# The page -------------------------------------------------------------------------------------------------------------


def test_page(store, fill):
    fill(20)
    store.save(make_part(prompt="equal", totals=(0.3, 0.3)))
    rollouts = load(store)
    text = page.report(rollouts)
    assert "20 groups, 60 takes, 1 policies" in text and "Licences: Apache-2.0" in text
    assert "The newest 16 of 20 groups" in text and "all its takes have the same reward" in text
    plain = page.draw(rollouts)
    best, worst = torch.zeros(5, 16, 24, 3), torch.ones(5, 16, 24, 3)
    frames = page.side_by_side(best, worst)
    assert frames.shape == (5, 16, 52, 3)
    shown = page.draw(rollouts, 19, frames)
    assert plain.shape[0] == 1 and plain.shape[2:] == (960, 3) and shown.shape[1] > plain.shape[1]
    assert 0 <= shown.min() and shown.max() <= 1
    film = shown[0, plain.shape[1] + 40 :, 16:-16]
    assert film[:, :400].mean() < 0.2 < 0.8 < film[:, -400:].mean()  # best on the left, worst on the right


def test_an_empty_page(store, fill):
    store.save(make_part(totals=(0.3, 0.3)))
    rollouts = load(store)
    assert "0 groups" in page.report(rollouts) and page.draw(rollouts).ndim == 4
