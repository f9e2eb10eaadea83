"""Which rule a MODEL gets, and what a rule refuses."""

import logging

import pytest
import torch

FAMILIES = {
    "wan-t2v": "phantom",
    "phantom": "phantom",
    "skyreels-v3": "skyreels-v3",
    "refalign": "refalign",
    "bernini": "bernini",
    "vace": "vace",
    "humo": "humo",
    "cogvideox-i2v": "ingredients",
}


def unnamed(model):
    """The MODEL as another pack's loader would give it: without our facts."""
    model = model.clone()
    model.remove_attachments("idcrafter")
    assert model.get_attachment("idcrafter") is None
    return model


@pytest.mark.parametrize(("family", "rule"), FAMILIES.items())
def test_auto_follows_the_facts(rules, model_of, family, rule):
    assert rules.choose_rule("auto", model_of(family)).name == rule


@pytest.mark.parametrize(
    ("family", "rule"), [("refalign", "phantom"), ("bernini", "phantom"), ("vace", "vace"), ("humo", "humo")]
)
def test_a_model_of_another_pack_is_known_by_its_class(rules, model_of, family, rule, caplog):
    with caplog.at_level(logging.WARNING):
        assert rules.choose_rule("auto", unnamed(model_of(family))).name == rule
    assert ("Set the rule by hand" in caplog.text) == (rule == "phantom")


def test_a_published_plain_model_is_warned_of(rules, model_of, caplog):
    model = model_of("wan-t2v").clone()
    facts = model.get_attachment("idcrafter")
    with caplog.at_level(logging.WARNING):
        rules.choose_rule("auto", model)
        assert not caplog.text
        model.set_attachments("idcrafter", {**facts, "size": 1_418_996_800})
        assert rules.choose_rule("auto", model).name == "phantom"
    assert f"'{facts['file']}' is taken for plain Wan text-to-video" in caplog.text


def test_auto_without_a_model_is_phantom(rules):
    assert rules.choose_rule("auto").name == "phantom"


def test_a_chosen_rule_wins_over_the_facts(rules, model_of):
    assert rules.choose_rule("skyreels-v3", model_of("phantom")).name == "skyreels-v3"
    assert rules.choose_rule("phantom+vace", model_of("vace")).name == "phantom+vace"


@pytest.mark.parametrize("family", ["wan-i2v", "wan-ti2v", "cogvideox"])
def test_models_without_references_are_named(rules, model_of, family):
    for rule in ("auto", "phantom"):
        with pytest.raises(ValueError, match=rf"\({family}\) takes no references.*Connect a Phantom"):
            rules.choose_rule(rule, model_of(family))
    with pytest.raises(ValueError, match=r"\((WAN|Cog)\w+\) takes no references"):
        rules.choose_rule("auto", unnamed(model_of(family)))


@pytest.mark.parametrize(
    ("rule", "family", "message"),
    [
        (
            "vace",
            "phantom",
            "needs a VACE model, but the MODEL is a plain Wan text-to-video one.*auto or one of phantom",
        ),
        ("phantom", "vace", "but the MODEL is a VACE one. Set the rule to auto or one of vace, phantom"),
        ("refalign", "humo", "but the MODEL is a HuMo one"),
        ("humo", "bernini", "needs a HuMo model"),
    ],
)
def test_a_rule_of_another_kind_is_refused(rules, model_of, rule, family, message):
    with pytest.raises(ValueError, match=message):
        rules.choose_rule(rule, model_of(family))


def test_unknown_rules_and_missing_models_are_named(rules):
    with pytest.raises(ValueError, match="'wan' is unknown; choose auto or one of phantom, skyreels-v3"):
        rules.choose_rule("wan")
    with pytest.raises(ValueError, match="RefAlign rule changes the model; connect the MODEL"):
        rules.choose_rule("refalign")


@pytest.mark.parametrize("name", ["phantom", "skyreels-v3", "refalign", "humo", "bernini"])
def test_options_without_a_meaning_are_refused(rules, make_shot, name):
    rule = rules.RULES[name]
    with pytest.raises(ValueError, match="has no strength of references.*cfg_images"):
        rules.apply_rule(rule, make_shot(strength=0.5))
    with pytest.raises(ValueError, match="takes no control masks"):
        rules.apply_rule(rule, make_shot(control_masks=torch.ones((48, 64))))
    if name != "bernini":
        with pytest.raises(ValueError, match="takes no control video"):
            rules.apply_rule(rule, make_shot(control_video=torch.ones((9, 48, 64, 3))))


@pytest.mark.parametrize("name", ["phantom", "skyreels-v3", "refalign", "vace", "phantom+vace", "humo", "bernini"])
def test_every_rule_keeps_to_the_same_contract(rules, make_shot, model_of, name, cast):
    """Inputs unchanged, every branch complete, references in cast order, batch 1, the model given back."""
    rule = rules.RULES[name]
    family = next((f for f, r in FAMILIES.items() if r == name), "vace")
    shot = make_shot(model=model_of(family))
    before = [dict(shot.positive[0][1]), dict(shot.negative[0][1])]
    out = rules.apply_rule(rule, shot)
    assert [shot.positive[0][1], shot.negative[0][1]] == before
    assert torch.equal(out.positive[0][0], shot.positive[0][0])
    for negative in (out.negative_text, out.negative_images):
        assert torch.equal(negative[0][0], shot.negative[0][0])
    assert out.latent["samples"].shape == (1, 16, 3 + out.trim, 6, 8) and not out.latent["samples"].any()
    assert [ref.subject for ref in out.used] == [0, 1] and out.references.shape[0] == 2 and not out.left_out
    assert out.references.min() >= 0 and out.references.max() <= 1
    assert (out.model is shot.model) != rule.patches
    assert rule.limit >= len(cast.subjects) and rules.kind_of(shot.model) == rule.kind
