"""What Save Rollouts says about a shot: its takes with their rewards, and what made them."""

import comfy.samplers
import torch

from ..idcrafter.rewards.scorecard import latent_digest
from ..idcrafter.rollouts import record
from ..idcrafter.rollouts.digests import digest
from ..idcrafter.sampling.fingerprint import graph_signature
from ..idcrafter.sampling.run import model_facts
from ..idcrafter.subjects.embeddings import cast_photos

# Inputs that say which takes, not how a take is made.
_SEEDS = frozenset({"seed", "noise_seed", "takes"})
# Of a take's identity score.
_PARTS = ("score", "similarity_mean", "similarity_min", "extra_penalty", "swap_penalty", "change")
# What the second embedder says of it.
MONITOR = "monitor"


def patcher_and_conditioning(model, given: dict):
    """(ModelPatcher, conditioning lists by name) of a MODEL with its conditioning, or of a GUIDER."""
    conds = {name: value for name, value in given.items() if value is not None}
    if not isinstance(model, comfy.samplers.CFGGuider):
        if "positive" not in conds:
            raise ValueError("With a MODEL, connect 'positive' as in Sample Takes, or connect the GUIDER instead.")
        return model, conds
    if conds:
        raise ValueError(f"A GUIDER brings its own conditioning; disconnect {', '.join(conds)}.")
    names = {"middle": "negative_text"}
    # As CONDITIONING lists again: core's convert_cond has put the text beside the rest.
    lists = {
        names.get(name, name): [
            [c.get("cross_attn"), {k: v for k, v in c.items() if k != "cross_attn" and (k != "model_conds" or v)}]
            for c in conds
        ]
        for name, conds in model.original_conds.items()
    }
    if "negative" in lists:
        lists["negative_images" if "negative_text" in lists else "negative_text"] = lists.pop("negative")
    return model.model_patcher, lists


def shot(takes, cast, prompt: str, guided: dict) -> tuple[dict, list[list[str]]]:
    """What `record` wants to know of the shot, but for its conditioning; and the sha256 of each subject's photos."""
    photos = cast_photos(cast)
    sde = next((take.sde for take in takes.takes if take.sde is not None), None)
    subjects = [
        {"name": subject.name, "kind": subject.kind, "photos": own}
        for subject, own in zip(cast.subjects, photos, strict=True)
    ]
    facts = {
        "prompt": prompt,
        "subjects": subjects,
        "sampler": takes.sampler,
        "sde": None if sde is None else {"kind": sde.kind, "eta": sde.eta},
        "guidance": guided,
        "leading": takes.leading,
    }
    return facts, photos


def check_same_model(takes, patcher) -> None:
    connected = model_facts(patcher)
    if connected != takes.model:
        made, now = (facts.get("file") or f"a {facts['family']} model" for facts in (takes.model, connected))
        raise ValueError(
            f"The takes were sampled by {made}, the connected MODEL is {now}; a group holds takes of one policy. "
            "Connect the MODEL that goes into Sample Takes."
        )


def samples(takes, report: dict, policy: str) -> tuple[list[record.Sample], list[dict]]:
    """The takes that can be learnt from with their rewards, and the others with the reason."""
    scored = {take["latent_sha256"]: take for take in report["takes"]}
    found, left_out = [], []
    for take in takes.takes:
        scores = scored.get(latent_digest(take.samples))
        if scores is None:
            raise ValueError(
                f"The take of seed {take.seed} is not in the scorecard; connect takes and scorecard of the same Sample "
                "Takes node."
            )
        if not torch.isfinite(take.samples).all() or ("reward" in scores and scores["reward"] is None):
            left_out.append({"seed": take.seed, "why": scores["note"] or "it could not be scored"})
            continue
        tensors = {} if take.sde is None else {k: v for k, v in take.sde.tensors().items() if k != "mean"}
        found.append(
            record.Sample(
                take.seed,
                take.samples[0],
                _rewards(scores),
                scores.get("reward", scores["score"]),
                policy,
                take.seconds,
                tensors,
                None if take.sde is None else take.sde.settings(),
            )
        )
    for pruned in (takes.search or {}).get("pruned", ()):
        left_out.append({"seed": pruned["seed"], "why": "the search gave it up"})
    return found, left_out


def _rewards(scores: dict) -> dict[str, float]:
    """Every raw value that was measured of a take, by name."""
    values = {name: scores[name] for name in _PARTS if scores.get(name) is not None}
    seen = [subject.get("monitor_seen", None) for subject in scores["subjects"].values()]
    if scores["subjects"] and "monitor_seen" in next(iter(scores["subjects"].values())):
        values[MONITOR] = sum(value or 0.0 for value in seen) / len(seen)  # who was never seen counts 0
    return values | (scores.get("terms") or {})


def guidance(model, hidden) -> dict:
    """How strongly takes were guided: a GUIDER's numbers, or those of the Sample Takes node as far as it has them."""
    if isinstance(model, comfy.samplers.CFGGuider):
        numbers = {k: v for k, v in vars(model).items() if isinstance(v, (bool, int, float, str))}
        return {"guider": type(model).__name__, **numbers}
    if hidden is None or hidden.dynprompt is None or hidden.unique_id is None:
        return {}
    link = hidden.dynprompt.get_node(hidden.unique_id)["inputs"].get("takes")
    inputs = hidden.dynprompt.get_node(link[0])["inputs"] if isinstance(link, list) else {}
    return {name: inputs[name] for name in ("cfg_text", "cfg_images") if isinstance(inputs.get(name), (int, float))}


def graph_hash(hidden) -> str | None:
    """Of everything upstream of this node but seeds; None outside a graph."""
    if hidden is None or hidden.dynprompt is None or hidden.unique_id is None:
        return None
    own = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    widgets = frozenset(name for name, value in own.items() if not isinstance(value, list))
    signature = graph_signature(hidden.dynprompt.get_node, hidden.unique_id, widgets)
    return digest([[kind, {k: v for k, v in inputs.items() if k not in _SEEDS}] for _, kind, inputs in signature])


def licences(takes, report: dict) -> list[dict]:
    found = [("video model", takes.model.get("file") or takes.model["family"], takes.model.get("licence"), True)]
    judges = [("face analyzer", report["analyzer"]), ("monitor", report.get("monitor"))]
    terms = (report.get("reward") or {}).get("terms", {})
    judges += [(f"reward {name}", term["model"]) for name, term in terms.items()]
    found += [(what, facts.get("name", ""), facts.get("licence"), False) for what, facts in judges if facts]
    return [dict(zip(("what", "name", "licence", "made_pixels"), each, strict=True)) for each in found]
