"""References as tokens: they see themselves through their gates, and get the identity of whose they are."""

import pytest
import torch

from support.composition import FRAMES, HEIGHT, WIDTH, Shot
from support.tiny_people import people

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
NAMES = ["Ada", "Bo"]


@pytest.fixture(scope="module")
def lib(pack):
    return pack.submodule("idcrafter.backbones.identity")


def with_gates(lib, pack, adapter_of, model_of, gate, family="phantom", owners=("Ada", "Bo"), photos=(1, 1), **more):
    """(model, shot): only the gates of the references do something; the insertions are off."""
    adapter = adapter_of(family, reference_heads=2)
    adapter.model.reference_gates.copy_(torch.full((2, 2), gate))
    for attention in adapter.model.perceiver_cross_attention:
        attention.to_out.weight.zero_()
    model = more.pop("model", None) or model_of(family)
    key = lib.next_key(model)
    shot = Shot(pack, family)
    for conditioning in (shot.positive, shot.negative):
        conditioning[0][1]["idcrafter_reference_names"] = list(owners)
    shot.positive, shot.negative = people(lib, shot, key)
    for conditioning in (shot.positive, shot.negative):
        tokens, exist = conditioning[0][1]["model_conds"][key].cond
        exist.copy_(torch.tensor(photos, dtype=exist.dtype)[None, :, None].expand_as(exist))
    return lib.inject(model, key, adapter, lib.Injection(**more), NAMES), shot


@pytest.mark.parametrize("family", ["phantom", "humo"])
def test_references_see_themselves_through_their_gates(lib, pack, adapter_of, model_of, family):
    """Against the same sum by hand: attention of each subject's reference among itself, by heads."""
    plain = Shot(pack, family).ksampler(model_of(family))
    closed, shot = with_gates(lib, pack, adapter_of, model_of, 0.0, family)
    assert torch.equal(shot.ksampler(closed), plain)
    opened, shot = with_gates(lib, pack, adapter_of, model_of, 0.7, family)
    got = shot.custom(opened, "BasicGuider", conditioning=shot.positive)
    frame = (HEIGHT // 2) * (WIDTH // 2)
    video = FRAMES * frame

    def override(kernel, q, k, v, *args, **kwargs):
        out = kernel(q, k, v, *args, **kwargs)
        if q.shape[1] != video + 2 * frame or k.shape[1] != q.shape[1]:
            return out
        for start in (video, video + frame):
            own = slice(start, start + frame)
            out[:, own] += 0.7 * kernel(q[:, own], k[:, own], v[:, own], *args, **kwargs)
        return out

    by_hand = model_of(family).clone()
    by_hand.model_options["transformer_options"]["optimized_attention_override"] = override
    expected = shot.custom(by_hand, "BasicGuider", conditioning=shot.positive)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert not torch.allclose(got, shot.custom(model_of(family), "BasicGuider", conditioning=shot.positive), **CLOSE)


def test_gates_are_for_those_who_are_there_and_named(lib, pack, adapter_of, model_of):
    plain = Shot(pack, "phantom").ksampler(model_of("phantom"))

    def run(**changes):
        model, shot = with_gates(lib, pack, adapter_of, model_of, 0.7, **changes)
        return shot.ksampler(model)

    both, ada = run(), run(photos=(1, 0))
    assert not torch.allclose(both, plain, **CLOSE) and not torch.allclose(ada, both, **CLOSE)
    torch.testing.assert_close(run(owners=("Ada", None)), ada, **CLOSE)
    for nobody in ({"photos": (0, 0)}, {"owners": (None, None)}, {"strength": 0.0}, {"levels": lib.Levels(intra=0.0)}):
        assert torch.equal(run(**nobody), plain), nobody


def test_gates_and_regions_in_any_order(lib, pack, adapter_of, model_of, cast):
    """Binding splits self-attention; the gates stay around it."""
    boxes = "Ada: 0 0 0.5 1\nBo: 0.5 0 1 1"

    def bind(model):
        return pack.execute("IDCrafterBindRegions", model=model, cast=cast, boxes=boxes)[0]

    model, shot = with_gates(lib, pack, adapter_of, model_of, 0.7)
    after = shot.ksampler(bind(model))
    before, _ = with_gates(lib, pack, adapter_of, model_of, 0.7, model=bind(model_of("phantom")))
    torch.testing.assert_close(shot.ksampler(before), after, **CLOSE)
    assert not torch.allclose(after, shot.ksampler(bind(model_of("phantom"))), **CLOSE)
    assert not torch.allclose(after, shot.ksampler(model), **CLOSE)


def test_gates_of_another_model_are_refused(lib, adapter_of, model_of):
    with pytest.raises(ValueError, match="gates for 3 heads a block; the MODEL has 2"):
        lib.inject(model_of("phantom"), "a", adapter_of("phantom", reference_heads=3), lib.Injection(), NAMES)


@pytest.mark.parametrize(("owners", "own"), [(("Ada", "Bo"), (0, 1)), (("Bo", None), (1, None)), ((None, None), ())])
def test_references_get_the_identity_of_whose_they_are(lib, pack, adapter_of, model_of, owners, own):
    """Against the same sums through block replacement; who is not named is left out."""
    insertion = pack.submodule("idcrafter.modules.insertion")
    adapter = adapter_of("phantom", on_references=True)
    model = model_of("phantom")
    shot = Shot(pack, "phantom")
    shot.positive[0][1]["idcrafter_reference_names"] = list(owners)
    key = lib.next_key(model)
    shot.positive, _ = people(lib, shot, key)
    injected = lib.inject(model, key, adapter, lib.Injection(), NAMES)
    got = shot.custom(injected, "BasicGuider", conditioning=shot.positive)
    tokens, photos = shot.positive[0][1]["model_conds"][key].cond
    identities = adapter.model.identities(tokens, photos, shot.positive[0][0])
    frame = (HEIGHT // 2) * (WIDTH // 2)
    video = FRAMES * frame

    def replace(i):
        def block(args, extra):
            img = extra["original_block"](args)["img"]
            net, router, identity = (
                adapter.model.perceiver_cross_attention[i],
                adapter.model.router[i],
                identities[i],
            )
            out = img.clone()
            out[:, :video] += insertion.insert(net, router, img[:, :video], identity)[0]
            for place, subject in enumerate(own):
                if subject is not None:
                    mine = slice(video + place * frame, video + (place + 1) * frame)
                    q = net.to_q(net.norm2(img[:, mine]))
                    k, v = identity.keys[:, subject], identity.values[:, subject]
                    heads = [x.unflatten(-1, (net.heads, -1)).transpose(1, 2) for x in (q, k, v)]
                    weights = (heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5).softmax(-1)
                    out[:, mine] += net.to_out((weights @ heads[2]).transpose(1, 2).flatten(2))
            return {"img": out}

        return block

    by_hand = model.clone()
    for i in range(2):
        by_hand.set_model_patch_replace(replace(i), "dit", "double_block", i)
    expected = shot.custom(by_hand, "BasicGuider", conditioning=shot.positive)
    torch.testing.assert_close(got, expected, **CLOSE)


def test_references_of_nobody_who_is_there_stay_as_they_are(lib, pack, adapter_of, model_of):
    """In the branch of guidance without people, and with the adapter off."""
    model = model_of("phantom")
    plain = Shot(pack, "phantom").ksampler(model)
    for photos, strength in (((0, 0), 1.0), ((1, 1), 0.0)):
        adapter = adapter_of("phantom", on_references=True)
        shot = Shot(pack, "phantom")
        for conditioning in (shot.positive, shot.negative):
            conditioning[0][1]["idcrafter_reference_names"] = ["Ada", "Bo"]
        key = lib.next_key(model)
        shot.positive, shot.negative = people(lib, shot, key)
        for conditioning in (shot.positive, shot.negative):
            exist = conditioning[0][1]["model_conds"][key].cond[1]
            exist.copy_(torch.tensor(photos, dtype=exist.dtype)[None, :, None].expand_as(exist))
        injected = lib.inject(model, key, adapter, lib.Injection(strength), NAMES)
        assert torch.equal(shot.ksampler(injected), plain)
