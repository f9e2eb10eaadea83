"""From a cast and a sentence to a relation graph and a prompt: by a VLM, from an edited graph, or without either.

A VLM's answer is checked; one that cannot be used is asked for once more with what is wrong with it; after that the
sentence alone has to do. So there always is a prompt, and notes that say how it came about.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..subjects.subject import Cast
from .answer import parse_answer
from .compose import compose
from .graph import GraphFault, RelationGraph, read_graph
from .request import MAX_ACTION, repair_parts, request_parts
from .sentences import graph_prompt, plain_graph
from .store import AnswerStore, answer_key

log = logging.getLogger(__name__)
MAX_TOKENS = 1024
# Which descriptions count where a subject has one of its own and the VLM has written another.
DESCRIPTIONS = ("typed", "photos")
SOURCES = ("vlm", "graph", "sentence")


class Writer(Protocol):
    """A VLM that answers in words."""

    digest: str

    def generate(
        self, parts: list, max_tokens: int, temperature: float, seed: int, on_token: Callable[[], None] | None
    ) -> str:
        """The answer to one turn of texts and pictures [H, W, 3] in order."""

    def describe(self) -> dict:
        """JSON-able facts for a report, with at least "name" and "licence"."""


@dataclass(frozen=True)
class Asking:
    """How a VLM is asked. temperature 0 takes the likeliest word each time, and then the seed does nothing."""

    descriptions: str = "typed"
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = MAX_TOKENS

    def key(self) -> list[Any]:
        return [self.descriptions, self.temperature, self.seed if self.temperature > 0 else 0, self.max_tokens]


@dataclass(frozen=True)
class Related:
    """A graph and where it is from (one of SOURCES).

    notes     sentences for people; those that begin with "Warning" are about something that went wrong
    requests  how often the VLM was asked for it: 0, 1, or 2 after a repair
    """

    graph: RelationGraph
    source: str
    notes: tuple[str, ...]
    requests: int = 0

    def prompt(self, cast: Cast, action: str, wording: str) -> str:
        """In the dialect of `compose`. Without a VLM the author's own words stay as they are."""
        if self.source == "sentence":
            return compose(cast.subjects, action, wording)
        return graph_prompt(cast.subjects, self.graph, wording)


def relate(
    cast: Cast,
    action: str,
    vlm: Writer | None = None,
    asking: Asking = Asking(),  # noqa: B008 - immutable
    store: AnswerStore | None = None,
    on_token: Callable[[], None] | None = None,
) -> Related:
    """Ask the VLM about all photos and the action, or do without. Never raises because of what a VLM answers."""
    if vlm is None:
        return _alone(cast, action, "No VLM: the prompt is the sentence, with its names replaced.")
    name = vlm.describe()["name"]
    store = store or AnswerStore()
    key = answer_key(cast.subjects, action, vlm.digest, asking.key())
    kept = _kept(store.load(key), cast, action, asking)
    if kept is not None:
        return kept
    parts = request_parts(cast, action)
    said, faults = parts, ["it was not asked"]
    first = ""
    for requests in (1, 2):
        try:
            answer = vlm.generate(said, asking.max_tokens, asking.temperature, asking.seed, on_token)
        except Exception as error:  # noqa: BLE001 - any net of any maker; ComfyUI's interrupt is no Exception
            log.warning("The VLM '%s' failed.", name, exc_info=error)
            faults = [f"it failed with {type(error).__name__}: {_one_line(error)}"]
            break
        try:
            data, mended = parse_answer(answer)
            graph, notes = read_graph(data, cast.subjects, action, asking.descriptions == "photos")
        except GraphFault as fault:
            faults = list(fault.faults)
            first = first or "; ".join(faults[:3])
            said = repair_parts(parts, answer, faults)
            continue
        told = [f"Relations by {name}, licence {vlm.describe()['licence']}."]
        if requests == 2:
            told.append(f"The first answer could not be used ({first}), the second one could.")
        if len(action.strip()) > MAX_ACTION:
            told.append(f"The VLM was shown the first {MAX_ACTION} characters of the action.")
        if mended:
            told.append("Slips in the answer's JSON were mended.")
        related = Related(graph, "vlm", (*told, *notes), requests)
        store.save(key, {"graph": json.loads(graph.to_json()), "notes": list(related.notes), "requests": requests})
        return related
    told = "; ".join(dict.fromkeys(filter(None, (first, "; ".join(faults[:3])))))
    return _alone(
        cast, action, f"Warning: nothing that {name} answered could be used ({told}); the prompt is the sentence alone."
    )


def relate_given(cast: Cast, text: str) -> Related:
    """The graph that a person has edited. Raises ValueError that says where it is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The graph is not JSON ({error}); empty the field to have it made anew.") from error
    try:
        graph, notes = read_graph(data, cast.subjects, trusted=True)
    except GraphFault as fault:
        raise ValueError(f"The graph cannot be used: {fault}. Empty the field to have it made anew.") from fault
    return Related(graph, "graph", ("The graph is the given one; nobody was asked.", *notes))


def _alone(cast: Cast, action: str, note: str) -> Related:
    graph, notes = plain_graph(cast.subjects, action)
    return Related(graph, "sentence", (note, *notes))


def _kept(entry: dict | None, cast: Cast, action: str, asking: Asking) -> Related | None:
    """A kept answer, checked like a new one."""
    if entry is None:
        return None
    try:
        graph, _ = read_graph(entry.get("graph"), cast.subjects, action, asking.descriptions == "photos")
    except GraphFault as fault:
        log.warning("A kept answer cannot be used (%s); the VLM is asked again.", fault)
        return None
    notes = [note for note in entry.get("notes", ()) if isinstance(note, str)]
    requests = entry.get("requests")
    return Related(graph, "vlm", (*notes, "Kept from an earlier run."), requests if requests in (1, 2) else 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
