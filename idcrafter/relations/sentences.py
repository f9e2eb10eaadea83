"""The graph in sentences, and simple sentences as a graph: what works without a VLM."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ..subjects.subject import Subject
from .compose import capitalise, compose, describe, end_sentence, join_words, replace_names, tidy
from .graph import MAX_RELATIONS, Relation, RelationGraph, with_subjects

_SENTENCES = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_MARK = "\ue000"  # around a subject's number while names are looked for; no text has a private character of ours


def graph_prompt(subjects: Sequence[Subject], graph: RelationGraph, wording: str) -> str:
    """The prompt for a graph, in the dialect of `compose`; every subject is in it."""
    return compose(with_subjects(subjects, graph), graph_action(graph), wording)


def graph_action(graph: RelationGraph) -> str:
    """The graph as sentences with the subjects' names: the scene, what happens, the camera."""
    sentences = [graph.scene, *(_sentence(graph, each) for each in graph.relations), graph.camera]
    return tidy(" ".join(end_sentence(capitalise(each.strip())) for each in sentences if each.strip()))


def plain_graph(subjects: Sequence[Subject], action: str) -> tuple[RelationGraph, list[str]]:
    """What a sentence with names says, told by the names alone, and notes on who is not named.

    The first name of a sentence is the subject and the next one the object; what stands before, between and behind is
    `when`, the predicate and the detail. A sentence without names is part of the scene.
    """
    names = [subject.name for subject in subjects]
    text = "".join(" " if c == _MARK else c for c in unicodedata.normalize("NFC", action))
    relations, scene, mentioned = [], [], set()
    for sentence in filter(None, (each.strip(" .!\u3002\uff01") for each in _SENTENCES.split(text))):
        marked, found = replace_names(sentence, names, lambda i, again: f"{_MARK}{i}{_MARK}")
        mentioned |= found
        pieces = marked.split(_MARK)  # before, number, between, number, behind, ...
        predicate = tidy(_names_back(pieces[2:3], names)).strip(" ,;") if len(pieces) > 2 else ""
        if len(relations) == MAX_RELATIONS or not predicate:
            scene.append(tidy(_names_back(pieces, names)))
            continue
        who, whom = int(pieces[1]), int(pieces[3]) if len(pieces) > 3 else None
        if whom == who:
            predicate, whom, pieces = _names_back(pieces[2:], names), None, pieces[:3]
        relations.append(
            Relation(who, tidy(predicate), whom, tidy(_names_back(pieces[4:], names)), tidy(pieces[0]).rstrip(" ,"))
        )
    notes = []
    others = [name for i, name in enumerate(names) if i not in mentioned]
    if others and text.strip():
        notes.append(f"{join_words(others)} {'is' if len(others) == 1 else 'are'} not named in the action.")
    looks = tuple(describe(subject) for subject in subjects)
    return RelationGraph(tuple(names), looks, tuple(relations), " ".join(map(end_sentence, scene)).rstrip(".")), notes


def _sentence(graph: RelationGraph, relation: Relation) -> str:
    whom = "" if relation.object is None else graph.names[relation.object]
    said = " ".join(filter(None, (graph.names[relation.subject], relation.predicate, whom, relation.detail)))
    said = re.sub(r" (?=['\u2019]s\b)", "", said)
    if not relation.when:
        return said
    return f"{relation.when} {said}" if " " not in relation.when else f"{relation.when}, {said}"


def _names_back(pieces: Sequence[str], names: Sequence[str]) -> str:
    """Pieces of a marked sentence; numbers are at every second place, as in the whole one."""
    return "".join(names[int(piece)] if i % 2 else piece for i, piece in enumerate(pieces))
