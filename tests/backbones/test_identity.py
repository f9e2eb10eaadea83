"""An identity adapter on ComfyUI's own samplers: what it adds, to whom, when, and what must not change."""

from collections import deque

import pytest
import torch

from support.composition import FRAMES, HEIGHT, WIDTH, Shot
from support.tiny_people import people

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FAMILIES = ("wan-t2v", "phantom", "wan-i2v", "vace", "humo", "cogvideox", "cogvideox-i2v")


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.backbones.identity")


@pytest.fixture
def injected(lib, model_of, adapter_of, pack):
    """(model, shot) of a family: two subjects with one and two photos in the positive prompt, none in the negative."""

    def injected(family, subjects=2, adapter=None, order=None, padding=(0, 0), **injection):
        model = model_of(family)
        key = lib.next_key(model)
        patched = lib.inject(model, key, adapter or adapter_of(family), lib.Injection(**injection))
        shot = Shot(pack, family)
        shot.positive, shot.negative = people(lib, shot, key, subjects, order, padding)
        return patched, shot

    return injected


class Calls:
    """Counts a model's calls and keeps what they were given."""

    def __init__(self, model):
        self.rows = []
        model.set_model_unet_function_wrapper(self)

    def __call__(self, apply_model, args):
        self.rows.append(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])


@pytest.mark.parametrize("family", FAMILIES)
def test_people_change_the_video_and_the_model_stays_what_it_was(injected, model_of, family):
    model, shot = injected(family)
    before = shot.ksampler(model_of(family))
    with_people = shot.ksampler(model)
    assert with_people.isfinite().all() and not torch.allclose(with_people, before, **CLOSE)
    assert torch.equal(shot.ksampler(model_of(family)), before)
    assert torch.equal(shot.ksampler(model), with_people)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("off", [{"strength": 0.0}, {"subjects": 0}, {"first": 99}, {"end": 0.0}])
def test_off_is_exactly_off(injected, model_of, family, off):
    model, shot = injected(family, **off)
    assert torch.equal(shot.ksampler(model), shot.ksampler(model_of(family)))


def test_a_new_adapter_is_exactly_off(injected, adapter_of, model_of, pack):
    patcher = adapter_of("phantom")
    pack.submodule("idcrafter.modules.identity_adapter").initialise(patcher.model, 3)
    model, shot = injected("phantom", adapter=patcher)
    assert torch.equal(shot.ksampler(model), shot.ksampler(model_of("phantom")))


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_order_and_padding_of_subjects_do_not_matter(injected, adapter_of, family):
    adapter = adapter_of(family)
    model, shot = injected(family, subjects=3, adapter=adapter)
    expected = shot.ksampler(model)
    _, other = injected(family, subjects=3, adapter=adapter, order=(2, 0, 1), padding=(2, 1))
    torch.testing.assert_close(other.ksampler(model), expected, **CLOSE)


@pytest.mark.parametrize("family", ["phantom", "vace", "cogvideox"])
def test_guidance_is_one_batched_call_a_step(injected, family):
    model, shot = injected(family)
    calls = Calls(model)
    batched = shot.ksampler(model)
    assert calls.rows == [[1, 0]] * 3
    # Without the key on one side core must call the model twice, and gets the same.
    model, shot = injected(family)
    calls = Calls(model)
    shot.negative[0][1].pop("model_conds")
    torch.testing.assert_close(shot.ksampler(model), batched, rtol=1e-3, atol=1e-4)  # rounds differently
    assert len(calls.rows) == 6


def test_a_row_without_people_is_left_as_it_is(injected, model_of):
    """With the people in the negative prompt only, the positive one's part of a batch is the plain model's."""
    model, shot = injected("phantom")
    shot.positive, shot.negative = shot.negative, shot.positive
    positive = shot.custom(model, "BasicGuider", conditioning=shot.positive)
    assert torch.equal(positive, shot.custom(model_of("phantom"), "BasicGuider", conditioning=shot.positive))


def test_rows_without_people_cost_nothing(injected, lib, model_of, monkeypatch):
    """Of the two rows of a call, only the one with people is looked at; with nobody in either, none is."""
    model, shot = injected("phantom")
    whole = shot.ksampler(model)
    rows = []
    insert = lib.insert
    monkeypatch.setattr(lib, "insert", lambda *args: rows.append(len(args[2])) or insert(*args))
    assert torch.equal(shot.ksampler(model), whole) and set(rows) == {1}
    rows.clear()
    shot.negative = [[shot.negative[0][0], shot.positive[0][1]]]
    shot.ksampler(model)
    assert set(rows) == {2}
    rows.clear()
    _, nobody = injected("phantom", subjects=0)
    assert torch.equal(nobody.ksampler(model), nobody.ksampler(model_of("phantom"))) and rows == []


def test_different_numbers_of_people_share_a_batch(injected, lib, model_of):
    model, shot = injected("phantom", subjects=3)
    (key,) = shot.positive[0][1]["model_conds"]
    _, fewer = injected("phantom", subjects=1)
    calls = Calls(model)
    shot.negative = fewer.positive
    together = shot.ksampler(model)
    assert calls.rows == [[1, 0]] * 3
    apart = {name: shot.custom(model, "BasicGuider", conditioning=getattr(shot, name)) for name in ("positive",)}
    assert torch.equal(shot.ksampler(model, cfg=1.0), apart["positive"])
    assert key == lib.next_key(model_of("phantom")) and together.isfinite().all()


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_a_run_computes_the_subjects_once(injected, adapter_of, family, monkeypatch):
    adapter = adapter_of(family)
    model, shot = injected(family, adapter=adapter)
    counted = []
    identities = adapter.model.identities
    monkeypatch.setattr(adapter.model, "identities", lambda *args: counted.append(1) or identities(*args))
    shot.ksampler(model)
    assert len(counted) == 1
    shot.ksampler(model)
    assert len(counted) == 2


def test_what_is_added_is_the_insertion_after_each_block(injected, adapter_of, model_of, lib, pack):
    """Against the same sums through block replacement, on the video's tokens only."""
    insertion = pack.submodule("idcrafter.modules.insertion")
    adapter = adapter_of("phantom", every=1)
    model, shot = injected("phantom", adapter=adapter)
    got = shot.custom(model, "BasicGuider", conditioning=shot.positive)
    tokens, photos = shot.positive[0][1]["model_conds"]["idcrafter_identity_0"].cond
    context = shot.positive[0][0]
    identities = adapter.model.identities(tokens, photos, context)
    video = FRAMES * (HEIGHT // 2) * (WIDTH // 2)

    def replace(i):
        def block(args, extra):
            img = extra["original_block"](args)["img"]
            net, router = adapter.model.perceiver_cross_attention[i], adapter.model.router[i]
            added = insertion.insert(net, router, img[:, :video], identities[i])[0]
            return {"img": torch.cat([img[:, :video] + added, img[:, video:]], dim=1)}

        return block

    by_hand = model_of("phantom").clone()
    for i in range(2):
        by_hand.set_model_patch_replace(replace(i), "dit", "double_block", i)
    assert torch.equal(shot.custom(by_hand, "BasicGuider", conditioning=shot.positive), got)


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_ranges_of_the_schedule_and_of_blocks(injected, adapter_of, family):
    adapter = adapter_of(family)
    full, shot = injected(family, adapter=adapter)
    results = [shot.ksampler(full)]
    for part in ({"start": 0.4}, {"end": 0.4}, {"first": 1}, {"last": 0}):
        model, shot = injected(family, adapter=adapter, **part)
        results.append(shot.ksampler(model))
    for i, first in enumerate(results):
        assert not any(torch.allclose(first, second, **CLOSE) for second in results[:i])


def test_several_adapters_add_up(injected, lib, adapter_of, model_of):
    first, second = adapter_of("phantom", seed=1), adapter_of("phantom", seed=2)
    model, shot = injected("phantom", adapter=first)
    once = shot.ksampler(model)
    key = lib.next_key(model)
    assert key == "idcrafter_identity_1"
    twice = lib.inject(model, key, second, lib.Injection())
    shot.positive, shot.negative = people(lib, shot, key)
    both = shot.ksampler(twice)
    assert not torch.allclose(both, once, **CLOSE)
    off = lib.inject(model, key, second, lib.Injection(strength=0.0))
    assert torch.equal(shot.ksampler(off), once)


def test_the_unconditional_residual_goes_to_both(injected, lib, adapter_of):
    """What Ingredients' pipeline does under guidance: both rows get what the unconditional one would."""
    adapter = adapter_of("cogvideox", hierarchy=0)
    own, shot = injected("cogvideox", adapter=adapter)
    shared, _ = injected("cogvideox", adapter=adapter, unconditional_residual=True)
    shot.negative = [[shot.negative[0][0], shot.positive[0][1]]]  # the same people in both prompts
    assert not torch.allclose(shot.ksampler(own), shot.ksampler(shared), **CLOSE)
    # Where there is no unconditional row, its residual is nobody's.
    assert torch.equal(shot.ksampler(own, cfg=1.0), shot.ksampler(shared, cfg=1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_record_tells_who_is_where(injected, lib, family):
    model, shot = injected(family)
    model.model_options["transformer_options"][lib.RECORD] = record = deque()
    shot.custom(model, "BasicGuider", conditioning=shot.positive)
    blocks = len(model.get_model_object("diffusion_model").blocks)
    assert [routing.block for routing in record] == list(range(blocks)) * 3
    for routing in record:
        assert routing.grid == (FRAMES, HEIGHT // 2, WIDTH // 2)
        assert routing.weights.shape == (1, FRAMES * (HEIGHT // 2) * (WIDTH // 2), 2)
        torch.testing.assert_close(routing.weights.sum(-1), torch.ones(routing.weights.shape[:2]))


def test_an_adapter_of_another_model_is_refused(injected, adapter_of):
    with pytest.raises(
        ValueError, match="for a cogvideox model of width 128 with 2 blocks; the MODEL is wan of width 32"
    ):
        injected("phantom", adapter=adapter_of("cogvideox"))


@pytest.mark.parametrize("family", ["phantom", "cogvideox"])
def test_compiled_models_notice_every_change(pack, injected, lib, adapter_of, family):
    """Core's compile node drops the guards on transformer_options: nothing of one run may stay for the next."""
    import torch._dynamo

    adapter = adapter_of(family)
    model, shot = injected(family, adapter=adapter, start=0.4)
    torch._dynamo.reset()
    compiled = pack.execute("TorchCompileModel", model=model, backend="eager")[0]
    for subjects in (2, 3, 0, 2):
        _, other = injected(family, subjects=subjects, adapter=adapter)
        torch.testing.assert_close(other.ksampler(compiled), other.ksampler(model), rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()
