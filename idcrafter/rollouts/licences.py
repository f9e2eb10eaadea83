"""Which licences let a model be trained on what another, or it itself, has made.

Known to forbid it, as far as their texts were public on 2026-11-21:

    MiniMax H3 Community License, V.3           outputs must not be used to improve any other AI model
    Tencent Hunyuan community licences, 5(b)    the same (their names: Hunyuan, HunyuanVideo, HunyuanCustom, HY-...)

A licence whose own text says "no training", "no-train" or "outputs may not be used to train" counts too, so that
anybody can mark a file by its metadata. That a licence is not known here does not make it allowed: "unknown" is
shown, not refused. This is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FORBIDDING = (
    (re.compile(r"\bmini\s?max[\s_-]*h3\b", re.I), "the MiniMax H3 Community License, V.3, forbids it"),
    (re.compile(r"\bhunyuan|\btencent\s+hy\b", re.I), "Tencent's Hunyuan licences, 5(b), forbid it"),
    (
        re.compile(r"\bno[\s_-]?train(ing)?\b|\b(?:may|must) not be used to (?:train|improve)", re.I),
        "the licence says so itself",
    ),
)
ALLOWING = re.compile(r"\b(apache[\s-]*2(\.0)?|mit|bsd|cc0|cc[\s-]by[\s-]4(\.0)?)\b", re.I)
VERDICTS = ("allowed", "unknown", "forbidden")


def verdict(licence: str | None) -> tuple[str, str]:
    """(one of VERDICTS, why) for training on the outputs of what has this licence."""
    text = licence or ""
    for pattern, why in FORBIDDING:
        if pattern.search(text):
            return "forbidden", why
    if ALLOWING.search(text):
        return "allowed", "a permissive licence"
    return "unknown", "no licence is stated" if not text.strip() else "not among the known licences"


def refusal(licences: Sequence[dict]) -> str | None:
    """Why a group may not be trained on, or None; `licences` are the {"what", "name", "licence"} of its file.

    Only what made the pixels counts: a judge's licence says nothing about the video that it judged.
    """
    for entry in licences:
        if entry.get("made_pixels", True):
            answer, why = verdict(entry.get("licence"))
            if answer == "forbidden":
                return f"training on outputs of {entry['what']} '{entry['name']}' is not allowed: {why}"
    return None
