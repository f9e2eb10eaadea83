"""Words that a machine wrote -> words that may go into a prompt.

A prompt is not inert: ComfyUI's text encoders open the file named by "embedding:name", read (word:1.3) as a weight, and
other packs look for <lora:...>, {a|b} and __wildcards__. What a VLM writes may have been put into its mouth by a
photo with text in it, so nothing of that passes; what cannot be mended is reported as a fault.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Control and format characters but for joiners, which scripts and emoji need: bidi overrides hide what a text says.
_JOINERS = "\u200c\u200d"
_MARKUP = re.compile(r"[<>{}\[\]()|\\`*#~^$]|_{2,}|embedding\s*:|\b(?:lora|lyco|hypernet)\s*:", re.IGNORECASE)
_PATH = re.compile(
    r"://|(?<!\w)[A-Za-z]:[\\/]|\.\.[\\/]|(?<!\w)[~.]?[\\/]\w|\w[\\/]\w+[\\/]\w|\b(?:file|data|javascript):\S"
    r"|\.(?:safetensors|ckpt|pth?|gguf|onnx|bin|exe|dll|so|sh|bat|ps1|py|js|php|html?|json|ya?ml|png|jpe?g|webp|mp4)\b",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instruction|prompt|rule|above|previous)"
    r"|\bsystem prompt\b|\bas an? (?:ai|language model)\b|\bimport os\b|\bos\.system\b|\brm -rf\b|\beval\s*\(",
    re.IGNORECASE,
)


def clean(text: str, longest: int) -> str:
    """One line without markup, at most `longest` characters long, cut between words. Twice changes nothing."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " "
                   for c in text)  # fmt: skip
    previous = None
    while previous != text:
        previous, text = text, " ".join(_MARKUP.sub(" ", text).split()).strip(" ,;:-\"'")
    if len(text) > longest:
        text = text[:longest].rsplit(" ", 1)[0][:longest].strip(" ,;:-\"'")
    return text


def suspicious(text: str) -> str:
    """What is wrong with a text as it was written: "looks like a path", "gives orders", or nothing."""
    if _PATH.search(text):
        return "looks like a path or an address"
    if _ORDER.search(text):
        return "gives orders and describes nothing"
    return ""


_ENGLISH = {"a", "an", "the", "and", "with", "in", "on", "of", "to", "is", "at", "his", "her", "their", "behind", "by"}
_OTHER = {
    "un", "une", "le", "la", "les", "avec", "et", "der", "die", "das", "ein", "eine", "einem", "einen", "mit", "und",
    "el", "los", "las", "una", "con", "y", "il", "uno", "e", "um", "uma", "com", "o", "en", "est", "ist", "van", "een",
    "het", "med", "och", "og", "ett", "jest", "i", "z",
}  # fmt: skip


def foreign(texts: Iterable[str], request: str) -> bool:
    """Whether texts are in another language than English although the request is in Latin letters.

    Told by the script, or by function words: some of other languages and none of English.
    """
    if _latin(request) < 0.5:
        return False
    whole = " ".join(texts)
    if _latin(whole) < 0.7:
        return True
    words = re.findall(r"[^\W\d_]+", whole.lower())
    return not _ENGLISH.intersection(words) and len(_OTHER.intersection(words)) >= 2


def _latin(text: str) -> float:
    """The share of Latin letters among the letters; 1 without any."""
    letters = [c for c in text if c.isalpha()]
    return sum(unicodedata.name(c, "").startswith("LATIN") for c in letters) / len(letters) if letters else 1.0
