"""Where the nano VLM's language model looks while it writes an answer.

To write a name it must find who is spoken of, which description fits that, and what stands in front of the description:
looks that build on each other, which a short training does not find by itself. The stories know where each of them
should go, so while it learns one head each is told so.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence

import torch

from .vlm_data import Example

# Layer and head. In descriptions: the name in front. In relations: who is spoken of, what is said of them, the
# description that fits, and the name in front of it. Two layers come before, to count how far the answer is.
OWNER, MENTION, SAID, LOOK, NAME = (2, 2), (2, 0), (2, 1), (3, 0), (4, 0)
# Words that say nothing of a look.
_PLAIN = {"a", "and", "in", "with"}
# One of these, the token that looks, and the tokens that it should look at.
Hop = tuple[tuple[int, int], int, list[int]]
_BEFORE_WHO, _BEFORE_SAID = ('"subject": "', '"object": "'), '"predicate": "'
_BEFORE_NAME, _BEFORE_LOOK, _AFTER_LOOK = '"name": "', '"description": "', '"}'


def hops(example: Example, chat: str, asked, said: Sequence[str]) -> list[Hop]:
    """What the tokens of an answer should look at.

    chat, asked  the request as text, and its encoding; tokens are counted from its beginning
    said         the answer's tokens as texts
    """
    begin = len(asked.ids)
    names, looks, opened = [], [], None
    for i, token in enumerate(said, begin):
        if opened is not None and token.startswith(_AFTER_LOOK):
            looks.append(list(range(opened, i)))
            opened = None
        if token.endswith(_BEFORE_NAME):
            names.append(i + 1)
        elif token.endswith(_BEFORE_LOOK):
            opened = i + 1
    story = _story(example, chat.rindex(example.text), asked.offsets)
    found: list[Hop] = [(OWNER, i, [name]) for name, look in zip(names, looks, strict=True) for i in look]
    fact, people = -1, []
    for i, token in enumerate(said, begin):
        if token.endswith(_BEFORE_WHO):
            if not people:
                fact += 1
                people = [who for who in example.facts[fact] if who is not None]
            who = people.pop(0)
            found.append((MENTION, i, [place for place, *at in story if at == [fact // 2, who]]))
            found.append((NAME, i, [names[who]]))
            if not example.by_name:
                spans = (asked.offsets[place] for place, *at in story if at == [fact // 2, who])
                called = {chat[start:end].strip().lower() for start, end in spans} - _PLAIN
                shared = [j for j in looks[who] if said[j - begin].strip() in called]
                found.append((LOOK, i, shared or looks[who]))
        elif token.endswith(_BEFORE_SAID):
            found.append((SAID, i, [place for place, *at in story if at == [fact // 2, None]]))
    return found


def _story(example: Example, start: int, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int, int | None]]:
    """(token, sentence, who is called by it or None) of the story's tokens. There is a sentence to two facts."""
    stops = [start + i for i, letter in enumerate(example.text) if letter == "."]
    found = []
    for place, (first, last) in enumerate(offsets):
        if start <= first < last <= start + len(example.text):
            called = (who for who, a, b in example.mentions if first < start + b and last > start + a)
            found.append((place, bisect(stops, last - 1), next(called, None)))
    return found


def hop_loss(wanted: Sequence[tuple[int, Hop]], watched: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Mean over the kinds of looks of -log the attention that goes where it should.

    wanted   (row of the batch, hop)
    watched  of each layer the queries [B, heads, L, D] and keys [B, key heads, L, D], rotated
    """
    losses = []
    for kind in sorted({hop[0] for _, hop in wanted}):
        layer, head = kind
        some = [(row, place, targets) for row, (which, place, targets) in wanted if which == kind]
        queries, keys = watched[layer]
        rows, places = (torch.tensor([each[i] for each in some], device=queries.device) for i in range(2))
        query, key = queries[rows, head, places], keys[rows, head * keys.shape[1] // queries.shape[1]]
        scores = torch.einsum("nd,nld->nl", query, key) * query.shape[-1] ** -0.5
        later = torch.arange(scores.shape[1], device=rows.device) > places[:, None]
        right = torch.zeros_like(later)
        for i, (_, _, targets) in enumerate(some):
            right[i, targets] = True
        scores = scores.masked_fill(later, -torch.inf)
        losses.append((scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)).mean())
    return torch.stack(losses).mean()
