"""The JSON object in what a VLM has written: fenced, with prose around it, cut short, or with a slip or two.

A parser of its own for the slips, linear in the length: nothing is evaluated, and how deep an answer nests is limited.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .graph import GraphFault

MAX_ANSWER = 40_000  # characters that are looked at
MAX_DEPTH = 32
MAX_OBJECTS = 12  # that are tried
MAX_DROPPED = 16  # words and commas that are dropped at an end that is missing
_WORDS = {"True": "true", "False": "false", "None": "null", "nan": "null", "NaN": "null"}
_WORD = re.compile(r"[^\s{}\[\],:\"']+")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}


def parse_answer(text: str) -> tuple[Any, bool]:
    """The object in the answer that looks most like a relation graph, and whether slips had to be mended.

    Raises GraphFault that says what the answer is instead.
    """
    # A model that thinks aloud may have begun to do so before its answer did.
    text = text.rpartition("</think>")[2].partition("<think>")[0][:MAX_ANSWER]
    if not text.strip():
        raise GraphFault(["the answer is empty"])
    found = []
    for span, whole in _objects(text):
        try:
            data, mended = json.loads(span, strict=False), not whole
        except (ValueError, RecursionError):
            data, mended = _mend(span), True
        if isinstance(data, dict):
            found.append((len({"subjects", "relations"} & data.keys()), data, mended))
    if not found:
        raise GraphFault(["the answer has no JSON object in it" if "{" not in text else "the answer is not valid JSON"])
    best = max(found, key=lambda each: each[0])
    return best[1], best[2]


def _objects(text: str) -> list[tuple[str, bool]]:
    """The outermost {...} of the text, and whether each is closed. Braces in strings do not count."""
    spans, start, depth, quoted, escaped = [], -1, 0, False, False
    for i, character in enumerate(text):
        if depth and quoted:
            quoted = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif depth and character == '"':
            quoted, escaped = True, False
        elif character == "{":
            start = start if depth else i
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                spans.append((text[start : i + 1], True))
                if len(spans) == MAX_OBJECTS:
                    return spans
    if depth:
        spans.append((text[start:], False))
    return spans


def _mend(span: str) -> Any:
    """The value of nearly-JSON, or None: single or typographic quotes, comments, Python's constants, commas too many or
    missing, and an end that is missing."""
    tokens = _tokens(span)
    if tokens is None:
        return None
    out: list[str] = []
    closers: list[str] = []
    for token in tokens:
        if token in "}]":
            if out and out[-1] == ",":
                out.pop()
            if not closers or closers.pop() != token:
                return None
        elif token in "{[":
            if out and out[-1] not in "{[,:":
                out.append(",")
            closers.append("}" if token == "{" else "]")
            if len(closers) > MAX_DEPTH:
                return None
        elif token not in ",:" and out and out[-1] not in "{[,:":
            out.append(",")
        if not (token == "," and out and out[-1] in ",{["):
            out.append(token)
        if not closers:
            break
    # The answer ran out of tokens: what is half said goes, what is open is closed.
    for _ in range(MAX_DROPPED if closers else 0):
        if out[-1] in ",:":
            out.pop()
            continue
        text = "".join(out) + "".join(reversed(closers))
        try:
            return json.loads(text, strict=False)
        except (ValueError, RecursionError):
            last = out.pop()
            if last in "{[":
                closers.pop()
            elif last in "}]":
                return None
            if not out or not closers:
                return None
    try:
        return json.loads("".join(out), strict=False)
    except (ValueError, RecursionError):
        return None


def _tokens(span: str) -> list[str] | None:
    """Brackets, commas, colons, strings as JSON writes them, and bare words."""
    tokens, i = [], 0
    while i < len(span):
        character = span[i]
        if character.isspace():
            i += 1
        elif span.startswith("//", i) or character == "#":
            end = span.find("\n", i)
            i = len(span) if end < 0 else end
        elif character in "{}[],:":
            tokens.append(character)
            i += 1
        elif character in _QUOTES:
            i, value = _string(span, i + 1, _QUOTES[character])
            tokens.append(json.dumps(value))
        else:
            word = _WORD.match(span, i)
            if word is None:
                return None
            value = _WORDS.get(word[0], word[0])
            number = re.fullmatch(r"-?\d+(?:\.\d+)?|true|false|null", value)
            tokens.append(value if number else json.dumps(value))
            i += len(word[0])
    return tokens


def _string(span: str, start: int, quote: str) -> tuple[int, str]:
    """Where a string ends and what it says. A quote that no comma, colon or bracket follows is an apostrophe."""
    said, i = [], start
    escapes = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
    while i < len(span):
        character = span[i]
        if character == "\\" and i + 1 < len(span):
            code = re.match(r"u([0-9a-fA-F]{4})", span[i + 1 : i + 6])
            said.append(chr(int(code[1], 16)) if code else escapes.get(span[i + 1], span[i + 1]))
            i += 6 if code else 2
            continue
        if character == quote:
            after = span[i + 1 : i + 40].lstrip()[:1]
            if after == "" or after in ",:}]":
                return i + 1, "".join(said)
        said.append(character)
        i += 1
    return i, "".join(said)
