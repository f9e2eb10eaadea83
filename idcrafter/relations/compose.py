"""What happens, in words: an action that speaks of subjects by name -> a prompt that a video model understands.

A video model does not know who "Ada" is, so every name gives way to something the model can see:

    descriptions   "Ada hugs Bo. Ada smiles."  ->  "A woman in red hugs a man with a beard. The woman in red smiles."
    ordinals       "Ada hugs Bo."  ->  "The first is a woman in red. The second is a man with a beard.
                                        The first hugs the second."
    people         "Ada hugs Bo."  ->  "The first person is a woman in red. The second person is a man with a beard.
                                        The first person hugs the second person."
    images         "Ada hugs Bo."  ->  "A woman in red from image0 hugs a man with a beard from image1."

Which model reads which: descriptions suit Phantom, SkyReels-V3, RefAlign, HuMo and VACE, whose prompts have no tags;
people is how Identity-GRPO's prompts read (alibaba/identity-grpo), images how Bernini's prompts count the
references, and ordinals is nano's. The n-th subject is the n-th image, because every subject's first photo comes
before anybody's second.

Pure and deterministic. Names match whole words, with their case, the longest first: "Will will wait" keeps its verb.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from ..subjects.subject import Subject

WORDINGS = ("descriptions", "ordinals", "people", "images")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

_UNNAMED = {"person": "a person", "animal": "an animal", "object": "an object"}
# "His brother", "this dog": already definite, an article in front would be wrong.
_DETERMINERS = {"the", "his", "her", "its", "my", "our", "your", "their", "this", "that", "these", "those"}
_ARTICLE = re.compile(r"(?:a|an|the)\s+", re.IGNORECASE)
_ARTICLE_BEFORE = re.compile(r"(?<!\S)(a|an|the)\s+$", re.IGNORECASE)
_SENTENCE_START = re.compile(r"(?:^|[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*\s+)[\"'\u201c\u2018(\[]*$")
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\]]*$")
_APOSTROPHES = "'\u2019"
_HYPHENS = "-\u2010\u2011"
# Scripts that put no space between words; there a name's edge is wherever the name ends.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def compose(subjects: Sequence[Subject], action: str, wording: str = "descriptions") -> str:
    """The prompt for `action` with every name replaced.

    Every subject is introduced, whether or not the action mentions it; the description of a subject is the same words
    each time. Raises ValueError for an unknown wording.
    """
    if wording not in WORDINGS:
        raise ValueError(f"The wording '{wording}' is unknown; choose one of {', '.join(WORDINGS)}.")
    names = [subject.name for subject in subjects]
    looks = [describe(subject) for subject in subjects]
    action = tidy(unicodedata.normalize("NFC", action))
    if wording in ("ordinals", "people"):
        nouns = [f" {subject.kind}" if wording == "people" else "" for subject in subjects]
        body, _ = replace_names(action, names, lambda i, again: f"the {ORDINALS[i]}{nouns[i]}")
        introduction = " ".join(f"The {ORDINALS[i]}{nouns[i]} is {look}." for i, look in enumerate(looks))
        return tidy(f"{introduction} {end_sentence(body)}")
    if wording == "images":
        looks = [f"{look} from image{i}" for i, look in enumerate(looks)]
    body, mentioned = replace_names(action, names, lambda i, again: definite(looks[i]) if again else looks[i])
    others = [looks[i] for i in range(len(subjects)) if i not in mentioned]
    if not others:
        return tidy(end_sentence(body))
    group = join_words(others)
    if body:
        group += " is also in the scene" if len(others) == 1 else " are also in the scene"
    return tidy(f"{end_sentence(body)} {end_sentence(capitalise(group))}")


def describe(subject: Subject) -> str:
    """The subject's description without closing punctuation, or "a person" / "an animal" / "an object"."""
    words = tidy(unicodedata.normalize("NFC", subject.description)).rstrip(" .,;:!")
    return words or _UNNAMED[subject.kind]


def definite(description: str) -> str:
    """The description of somebody who was mentioned before: "a tall man" -> "the tall man"."""
    article = _ARTICLE.match(description)
    if article:
        return "the " + description[article.end() :]
    first = description.split(maxsplit=1)[0]
    if first.lower() in _DETERMINERS or not first[0].islower():
        return description
    return "the " + description


def replace_names(text: str, names: Sequence[str], wording: Callable[[int, bool], str]) -> tuple[str, set[int]]:
    """Put `wording(index, mentioned before)` in the place of every name; also return the indices that were found."""
    by_length = sorted(range(len(names)), key=lambda i: -len(names[i]))
    out: list[str] = []
    mentioned: set[int] = set()
    position = 0
    while position < len(text):
        found = next((i for i in by_length if _is_word_at(text, position, names[i])), None)
        if found is None:
            out.append(text[position])
            position += 1
            continue
        before = "".join(out)
        words = wording(found, found in mentioned)
        article = _ARTICLE_BEFORE.search(before)
        own = _ARTICLE.match(words)
        if article and own:
            # "the Dog" with the description "a brown dog" reads "the brown dog"; ordinals are always "the".
            keep = own.group() if words.lower().startswith("the ") else article.group()
            before, words = before[: article.start()], keep + words[own.end() :]
        if _SENTENCE_START.search(before):
            words = capitalise(words)
        out = [before, words]
        mentioned.add(found)
        position += len(names[found])
    return "".join(out), mentioned


def tidy(text: str) -> str:
    """Single spaces, none before closing punctuation, none at the ends. Applying it twice changes nothing."""
    text = " ".join(text.split())
    return re.sub(r" +(?=[,.;:!?]+(?: |$))", "", text)


def end_sentence(text: str) -> str:
    """Close the text with a full stop unless it ends as a sentence already; an empty text stays empty."""
    if not text or _SENTENCE_END.search(text):
        return text
    text = text.rstrip(" ,;:-")
    return text and text + "."


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def join_words(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _is_word_at(text: str, start: int, name: str) -> bool:
    if not text.startswith(name, start):
        return False
    end = start + len(name)
    before, after = text[start - 1 : start], text[end : end + 1]
    if after and _joins(name[-1], after):
        return False
    if before and _joins(before, name[0]):
        return False
    # "Ann" is not a word of "Ann-Marie", nor "Neil" of "O'Neil"; "Ann's" is hers.
    if after and after in _HYPHENS + _APOSTROPHES and _is_letter(text[end + 1 : end + 2]) and _is_letter(name[-1]):
        rest = re.match(r"[sS](?!\w)", text[end + 1 :])
        if after in _HYPHENS or not rest:
            return False
    if before and before in _HYPHENS + _APOSTROPHES and _is_letter(text[start - 2 : start - 1] if start > 1 else ""):
        return not _is_letter(name[0])
    return True


def _joins(left: str, right: str) -> bool:
    """True when the two characters belong to one word or one glyph."""
    if unicodedata.category(right)[0] == "M" or "\u200c" in (left, right) or "\u200d" in (left, right):
        return True
    if "\U0001f3fb" <= right <= "\U0001f3ff":
        return True
    return _is_letter(left) and _is_letter(right)


def _is_letter(character: str) -> bool:
    """A character of a spaced word: letter, digit, mark or underscore, but no CJK and the like."""
    if not character or (character != "_" and unicodedata.category(character)[0] not in "LNM"):
        return False
    return not unicodedata.name(character, "").startswith(_UNSPACED)
