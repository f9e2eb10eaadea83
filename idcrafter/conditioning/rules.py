"""Every reference rule, and the one for a model.

What a model is, its facts tell (the attachment of our loaders) or, for a MODEL of another pack (GGUF), its class.
Models of the same layout that take references by different rules cannot be told apart that way: Phantom, SkyReels-V3,
RefAlign and Bernini are all plain text-to-video models, and then `phantom` is assumed.
"""

from __future__ import annotations

import logging

import comfy.model_base

from . import bernini, humo, ingredients, phantom, phantom_vace, refalign, skyreels_v3, vace
from .shot import Conditioned, Rule, Shot

log = logging.getLogger(__name__)

RULES: dict[str, Rule] = {
    module.RULE.name: module.RULE
    for module in (phantom, skyreels_v3, refalign, vace, phantom_vace, humo, bernini, ingredients)
}
# "family" of the facts -> rule. The nano model is a plain text-to-video model that was trained by Phantom's rule.
FAMILIES = {
    "wan-t2v": "phantom",
    "phantom": "phantom",
    "skyreels-v3": "skyreels-v3",
    "refalign": "refalign",
    "vace": "vace",
    "humo": "humo",
    "bernini": "bernini",
    "cogvideox-i2v": "ingredients",
}
# Parameters from which on a "wan-t2v" file is a published one and not a small one of our own.
PLAIN_SIZE = 1e9
ATTACHMENT = "idcrafter"
KINDS = {
    "t2v": "plain Wan text-to-video",
    "vace": "VACE",
    "humo": "HuMo",
    "cogvideox-i2v": "CogVideoX image-to-video",
}
_DEFAULT_OF_KIND = {"t2v": "phantom", "vace": "vace", "humo": "humo", "cogvideox-i2v": "ingredients"}


def choose_rule(name: str, model=None) -> Rule:
    """The rule of this name, or for "auto" the MODEL's; without a MODEL "auto" is phantom.

    Raises ValueError for an unknown name, for a MODEL that takes no references, and for one that is of another kind
    than the rule's.
    """
    if name != "auto" and name not in RULES:
        raise ValueError(f"The rule '{name}' is unknown; choose auto or one of {', '.join(RULES)}.")
    if model is None:
        rule = RULES["phantom" if name == "auto" else name]
        if rule.patches:
            raise ValueError(
                f"The {rule.title} rule changes the model; connect the MODEL, and sample with the one given."
            )
        return rule
    kind = kind_of(model)
    facts = model.get_attachment(ATTACHMENT) or {}
    family = facts.get("family")
    if kind is None:
        what = family or type(model.model).__name__
        raise ValueError(
            f"The MODEL ({what}) takes no references of subjects. Connect a Phantom, SkyReels-V3, RefAlign, VACE, HuMo "
            "or Bernini model, or CogVideoX image-to-video."
        )
    if name == "auto":
        rule = RULES[FAMILIES.get(family, _DEFAULT_OF_KIND[kind])]
        if family not in FAMILIES and kind == "t2v":
            log.warning(
                "The MODEL is a plain Wan text-to-video model without a name; the rule is phantom. Set the rule by "
                "hand for SkyReels-V3, RefAlign or Bernini, or their family in Load Video DiT."
            )
        if family == "wan-t2v" and facts.get("size", 0) >= PLAIN_SIZE:
            log.warning(
                "'%s' is taken for plain Wan text-to-video, which has never seen references. If it is Phantom or "
                "another model, choose its family in Load Video DiT.",
                facts.get("file"),
            )
    else:
        rule = RULES[name]
    if rule.kind != kind:
        fitting = ", ".join(rule.name for rule in RULES.values() if rule.kind == kind)
        raise ValueError(
            f"The {rule.title} rule needs a {KINDS[rule.kind]} model, but the MODEL is a {KINDS[kind]} one. Set the "
            f"rule to auto or one of {fitting}."
        )
    return rule


def kind_of(model) -> str | None:
    """One of KINDS, from the class and configuration of the MODEL; None for a model without references."""
    base = model.model
    if isinstance(base, comfy.model_base.WAN21_Vace):
        return "vace"
    if isinstance(base, comfy.model_base.WAN21_HuMo):
        return "humo"
    config = base.model_config.unet_config
    if isinstance(base, comfy.model_base.CogVideoX):
        return "cogvideox-i2v" if config.get("in_channels") == 32 else None
    plain = type(base) is comfy.model_base.WAN21 and config.get("model_type") == "t2v"
    if plain and config.get("in_dim") == config.get("out_dim") == 16 and config.get("in_dim_ref_conv") is None:
        return "t2v"
    return None


def apply_rule(rule: Rule, shot: Shot) -> Conditioned:
    """The rule's conditioning; ValueError for an option that it has no meaning for."""
    if shot.strength != 1.0 and not rule.strength:
        raise ValueError(
            f"The {rule.title} rule has no strength of references; set the strength to 1. With guidance by images, "
            "cfg_images of Sample Takes says how strongly they are kept."
        )
    if shot.control_video is not None and not rule.control:
        raise ValueError(f"The {rule.title} rule takes no control video; disconnect it.")
    if shot.control_masks is not None and not rule.masks:
        raise ValueError(f"The {rule.title} rule takes no control masks; disconnect them.")
    return rule.condition(shot)
