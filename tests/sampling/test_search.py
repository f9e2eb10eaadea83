"""The take search: survivors are what their seeds give, the budget is kept, and an interrupt loses nothing."""

import json

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TAKES, STEPS = 5, 6


@pytest.fixture(scope="module")
def search(pack):
    return pack.submodule("idcrafter.sampling.search")


@pytest.fixture(scope="module")
def planning(pack):
    return pack.submodule("idcrafter.sampling.plan")


@pytest.fixture(scope="module")
def curve(planning):
    return planning.Curve(((0, ((0.0, 0.95), (0.6, 0.8), (1.0, 0.2))), (1, ((1.0, 0.5),))), "made up")


@pytest.fixture(scope="module")
def two_rungs(planning):
    """5 takes look ahead after step 1, 3 look again after step 3, 1 is finished: 5 * 2 + 3 * 2 + 3 of 6 steps."""
    rungs = (planning.Rung(1, 1.0, 3, ahead=1), planning.Rung(3, 0.7, 1))
    return planning.Plan(TAKES, STEPS, rungs, planning.cost(TAKES, STEPS, rungs), 1.0, "a test")


@pytest.fixture
def guider(pack, stack, shot):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    return make(stack.model, shot.positive, shot.negative_text, None, 3.0)


@pytest.fixture
def sigmas(stack):
    return schedule(stack, STEPS)


@pytest.fixture
def store(pack, tmp_path):
    return pack.submodule("idcrafter.sampling.store").TakeStore(tmp_path, "k" * 32)


@pytest.fixture
def calls(monkeypatch):
    """Conditions evaluated by the model, in a list; `calls.stop_at` presses Cancel at that call."""

    class Calls(list):
        stop_at = None

    calls = Calls()
    real = comfy.samplers._calc_cond_batch

    def count(model, conds, *args):
        if len(calls) + 1 == calls.stop_at:
            calls.stop_at = None
            raise comfy.model_management.InterruptProcessingException
        calls.append(sum(cond is not None for cond in conds))
        return real(model, conds, *args)

    monkeypatch.setattr(comfy.samplers, "_calc_cond_batch", count)
    return calls


class Scorer:
    """Stands in for PreviewScorer: any number that follows from the latent, in 0..1."""

    def __init__(self):
        self.seconds = {"decode": 0.0, "score": 0.0}
        self.calls = 0

    def __call__(self, samples, on_frame=None):
        self.calls += 1
        on_frame()
        return float(torch.sigmoid(samples.mean() * 20))


def schedule(stack, steps):
    return comfy.samplers.calculate_sigmas(stack.model.get_model_object("model_sampling"), "simple", steps)


def unpruned(pack, guider, sampler, sigmas, latent, count=TAKES, seed=7):
    takes = pack.submodule("idcrafter.sampling.run").sample_takes(guider, sampler, sigmas, latent, seed, count).takes
    return {take.seed: take.samples for take in takes}


def without_seconds(record):
    return {key: value for key, value in record.items() if not key.endswith("_seconds")}


@pytest.mark.parametrize(
    "name",
    ["euler", "heun", "dpmpp_2m", "uni_pc", "lcm", "euler_ancestral", "dpmpp_sde", "dpmpp_3m_sde", "res_multistep"],
)
def test_survivors_are_what_their_seeds_give_and_the_report_tells_the_rest(
    search, pack, guider, shot, sigmas, two_rungs, calls, name
):
    sampler = comfy.samplers.sampler_object(name)
    whole = unpruned(pack, guider, sampler, sigmas, shot.latent)
    generation = sum(calls) / TAKES
    calls.clear()
    found = search.search_takes(guider, sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Scorer())
    record = json.loads(json.dumps(found.search, allow_nan=False))
    assert len(found.takes) == 1
    assert torch.equal(found.takes[0].samples, whole[found.takes[0].seed])
    assert record["passes"] == sum(calls) and record["passes_per_generation"] == generation
    assert record["cost"] == pytest.approx(sum(calls) / generation, abs=1e-4) and record["cost"] <= 3.2
    if name == "euler":
        assert sum(calls) == 2 * (5 * 2 + 3 * 2 + 3) and record["cost"] == pytest.approx(two_rungs.cost, abs=1e-4)
    assert [(rung["step"], rung["ahead"], rung["keep"], rung["scored"]) for rung in record["rungs"]] == [
        (1, 1, 3, 5),
        (3, 0, 1, 3),
    ]
    # Every look is on record, and everybody who is not finished was pruned once, for a reason.
    assert [entry["rank"] for entry in record["previews"]] == [1, 2, 3, 4, 5, 1, 2, 3]
    for rung in ([entry for entry in record["previews"] if entry["step"] == step] for step in (1, 3)):
        scores = [entry["score"] for entry in rung]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
        assert [entry["kept"] for entry in rung] == [k < {5: 3, 3: 1}[len(rung)] for k in range(len(rung))]
    gone = {entry["seed"] for entry in record["pruned"]}
    assert gone | {take.seed for take in found.takes} == set(range(7, 12)) and len(record["pruned"]) == 4
    assert all(entry["why"].startswith("preview score 0.") for entry in record["pruned"])
    lines = search.summary(record).splitlines()
    assert "1 of 5 takes finished" in lines[0] and "budget 3.2" in lines[0] and len(lines) == 5
    assert all("Pruned seed" in line and "rank" in line for line in lines[1:])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    takes=st.integers(1, 5),
    steps=st.integers(2, 8),
    budget=st.floats(1.0, 6.0),
    name=st.sampled_from(["euler", "heun", "dpmpp_2m_sde", "uni_pc", "dpm_2_ancestral", "deis"]),
    guided=st.booleans(),
)
def test_no_search_costs_more_than_its_budget(search, pack, stack, shot, curve, takes, steps, budget, name, guided):
    make = pack.submodule("idcrafter.sampling.guiders").make_guider
    guider = make(stack.model, shot.positive, shot.negative_text if guided else None, None, 3.0)
    sampler, sigmas = comfy.samplers.sampler_object(name), schedule(stack, steps)
    try:
        plan = search.plan_for(guider, sigmas, takes, budget, curve)
    except ValueError as error:
        assert "too small" in str(error)
        return
    found = search.search_takes(guider, sampler, sigmas, shot.latent, 7, plan, budget, Scorer())
    assert 1 <= len(found.takes) <= takes and found.search["cost"] <= max(min(budget, takes), 1) + 1e-4
    whole = unpruned(pack, guider, sampler, sigmas, shot.latent, takes)
    assert all(torch.equal(take.samples, whole[take.seed]) for take in found.takes)
    if budget >= takes:  # nothing is pruned, and nothing is looked at
        assert len(found.takes) == takes and found.search["cost"] == takes
        assert found.search["previews"] == found.search["pruned"] == []


@pytest.mark.parametrize("stop_at", range(1, 20))
def test_an_interrupt_anywhere_loses_nothing(
    search, pack, guider, shot, sigmas, two_rungs, store, calls, tmp_path, stop_at
):
    """19 calls: 5 takes with a step and a look ahead each, 3 with two more steps, 1 with three more."""

    def find(store):
        return search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Scorer(), store, "s")

    whole = find(pack.submodule("idcrafter.sampling.store").TakeStore(tmp_path / "other", "k" * 32))
    assert len(calls) == 19
    calls.clear()
    calls.stop_at = stop_at
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find(store)
    again = find(store)
    assert len(calls) == 19  # not one answer of the model was asked for twice
    assert torch.equal(again.takes[0].samples, whole.takes[0].samples)
    assert without_seconds(again.search) == without_seconds(whole.search)
    # The third time everything is there: no model call, no preview, the same record.
    calls.clear()
    scorer = Scorer()
    third = search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, scorer, store, "s")
    assert calls == [] and scorer.calls == 0 and third.takes[0].resumed
    assert torch.equal(third.takes[0].samples, whole.takes[0].samples)
    assert without_seconds(third.search) == without_seconds(whole.search)
    files = sorted(path.name for path in store.folder.iterdir())
    assert files == sorted([f"{seed}.previews.json" for seed in range(7, 12)] + [f"{third.takes[0].seed}.safetensors"])


def test_an_interrupt_while_scoring_keeps_what_was_sampled(search, guider, shot, sigmas, two_rungs, store, calls):
    class Cancelled(Scorer):
        def __call__(self, samples, on_frame=None):
            if self.calls == 6:
                raise comfy.model_management.InterruptProcessingException
            return super().__call__(samples, on_frame)

    def find(scorer):
        return search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, scorer, store, "s")

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        find(Cancelled())
    done, scorer = len(calls), Scorer()
    find(scorer)
    assert (done, len(calls), scorer.calls) == (16, 19, 2)


def test_other_scores_and_other_runs_do_not_mix(search, guider, shot, sigmas, two_rungs, store, caplog):
    def find(key):
        scorer = Scorer()
        found = search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, scorer, store, key)
        return found, scorer.calls

    first, scored = find("vae 1")
    assert scored == 8 and find("vae 1")[1] == 0
    second, scored = find("vae 2")  # the finished take stays without a look; the others are looked at again
    assert scored == 4 + 3 and first.takes[0].seed in [take.seed for take in second.takes]
    for file in store.folder.glob("*.previews.json"):
        file.write_text("{")
    assert find("vae 2")[1] > 0 and "previews are made again" in caplog.text


def test_finished_takes_are_kept_whatever_their_rank_and_cost_nothing(
    search, pack, guider, shot, sigmas, two_rungs, store, calls
):
    run = pack.submodule("idcrafter.sampling.run")
    run.sample_takes(guider, shot.sampler, sigmas, shot.latent, 8, 2, store)
    calls.clear()
    found = search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Scorer(), store, "s")
    assert {8, 9} < {take.seed for take in found.takes} and len(found.takes) == 3
    assert [rung["scored"] for rung in found.search["rungs"]] == [3, 3] and found.search["passes"] == sum(calls)
    everybody = run.sample_takes(guider, shot.sampler, sigmas, shot.latent, 7, TAKES, store)
    calls.clear()
    again = search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Scorer(), store, "t")
    assert calls == [] and [t.seed for t in again.takes] == [t.seed for t in everybody.takes]
    assert again.search["cost"] is None and "for nothing new" in search.summary(again.search)


def test_an_adaptive_sampler_may_be_finished_before_the_rung(search, pack, guider, shot, sigmas, planning):
    """dpm_adaptive reports no step at the rung's noise level when its steps are large: it is scored as it is."""
    rungs = (planning.Rung(4, 0.3, 2), planning.Rung(5, 0.1, 1))
    plan = planning.Plan(3, STEPS, rungs, planning.cost(3, STEPS, rungs), 1.0, "a test")

    def one_step(model, x, sigmas, extra_args=None, callback=None, disable=None):
        x0 = model(x, sigmas[0] * x.new_ones([1]), **extra_args)
        callback({"i": 0, "denoised": x0, "x": x})
        return x0

    sampler = comfy.samplers.KSAMPLER(one_step)
    found = search.search_takes(guider, sampler, sigmas, shot.latent, 7, plan, 2.5, Scorer())
    whole = unpruned(pack, guider, sampler, sigmas, shot.latent, 3)
    assert {take.seed: True for take in found.takes} == dict.fromkeys(whole, True)
    assert all(torch.equal(take.samples, whole[take.seed]) for take in found.takes)
    assert found.search["cost"] == 3.0 and found.search["pruned"] == []


def test_previews_that_cannot_be_scored_go_first_and_blind_choices_are_said(
    search, guider, shot, sigmas, planning, two_rungs
):
    class Blind(Scorer):
        def __init__(self, scores):
            super().__init__()
            self.scores = iter(scores)

        def __call__(self, samples, on_frame=None):
            return next(self.scores)

    def find(scores):
        found = search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Blind(scores))
        return [take.seed for take in found.takes], found.search

    seeds, record = find([None, 0.0, 0.1, None, 0.2, 0.0, 0.3, 0.1])
    assert seeds == [9] and record["warnings"] == []
    assert [entry["why"] for entry in record["pruned"] if entry["score"] is None] == [
        "its preview holds NaN or infinite values"
    ] * 2
    seeds, record = find([0.0] * 8)
    assert seeds == [7] and len(record["warnings"]) == 2 and "no preview's score differs" in record["warnings"][0]
    assert "Warning: after step 1" in search.summary(record)
    seeds, record = find([None] * 8)
    assert seeds == [7] and "no preview's score holds finite values" in record["warnings"][0]


def test_a_model_that_remembers_steps_is_refused_before_any_sampling(
    search, pack, stack, shot, sigmas, two_rungs, calls
):
    cached = pack.execute(
        "EasyCache", model=stack.model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
    )[0]
    guider = pack.submodule("idcrafter.sampling.guiders").make_guider(cached, shot.positive)
    with pytest.raises(ValueError, match="EasyCache or LazyCache"):
        search.search_takes(guider, shot.sampler, sigmas, shot.latent, 7, two_rungs, 3.2, Scorer())
    assert calls == []


def test_sigmas_of_other_models_are_read_as_the_share_of_noise(search, stack):
    assert search.flow_sigmas(stack.model, torch.tensor([1.0, 0.5, 0.0])) == [1.0, 0.5, 0.0]
    stranger = stack.model.clone()
    stranger.add_object_patch("model_sampling", comfy.model_sampling.ModelSamplingDiscrete())
    assert search.flow_sigmas(stranger, torch.tensor([9.0, 1.0, 0.0])) == [0.9, 0.5, 0.0]
