"""The relation graph: who is in a shot, what each looks like, and who does what to whom; as JSON, of this layout:

    format     "idcrafter.relations"
    version    1
    subjects   [{"name", "description"}]  every subject of the cast, in its order
    relations  [{"subject", "predicate", "object", "detail", "when"}]  in the order in which they happen
                   subject    a name of the cast
                   predicate  what it does: "hugs", "stands behind", "waves"
                   object     a name of the cast, or null
                   detail     what follows the object: "from behind"; mostly empty
                   when       what stands before: "at first", "then"; mostly empty
    scene      where and in what light it happens; may be empty
    camera     how it is filmed; may be empty

The same layout is read from people, who edit it, and from VLMs, who were asked for it; `read_graph` says what is wrong
with either and mends what has only one sensible meaning.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..subjects.subject import Subject
from .clean import clean, foreign, suspicious
from .compose import ORDINALS, describe, replace_names

FORMAT, VERSION = "idcrafter.relations", 1
MAX_RELATIONS = 32
MAX_LOOK, MAX_PREDICATE, MAX_WHEN, MAX_SCENE = 300, 160, 80, 400
_NOTHING = {"", "none", "null", "nobody", "nothing", "no one", "n/a", "-"}
_NUMBERED = re.compile(r"(?:the\s+)?(?:subject|person|character|photo|image|picture|figure|animal|object)?\s*#?(\d+)")


@dataclass(frozen=True)
class Relation:
    """One line of the story. `subject` and `object` are indices into the cast; None is for what is done alone."""

    subject: int
    predicate: str
    object: int | None = None
    detail: str = ""
    when: str = ""


@dataclass(frozen=True)
class RelationGraph:
    """`names` and `looks` of the cast in its order, what happens, where, and how it is filmed."""

    names: tuple[str, ...]
    looks: tuple[str, ...]
    relations: tuple[Relation, ...] = ()
    scene: str = ""
    camera: str = ""

    def to_json(self) -> str:
        """Indented, one relation a line, so that people can edit it."""
        name = dict(enumerate(self.names))
        head = {"format": FORMAT, "version": VERSION}
        subjects = [{"name": n, "description": look} for n, look in zip(self.names, self.looks, strict=True)]
        relations = [
            {
                "subject": name[each.subject],
                "predicate": each.predicate,
                "object": name.get(each.object),
                "detail": each.detail,
                "when": each.when,
            }
            for each in self.relations
        ]
        tail = {"scene": self.scene, "camera": self.camera}
        parts = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
        for key, rows in (("subjects", subjects), ("relations", relations)):
            lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in rows)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]" if lines else f"  {json.dumps(key)}: []")
        parts += [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in tail.items()]
        return "{\n" + ",\n".join(parts) + "\n}"


class GraphFault(ValueError):
    """What is wrong with a graph, in words that the one who wrote it can act on."""

    def __init__(self, faults: Sequence[str]):
        self.faults = tuple(faults)
        super().__init__("; ".join(faults))


def read_graph(
    data: Any, subjects: Sequence[Subject], action: str = "", from_photos: bool = False, trusted: bool = False
) -> tuple[RelationGraph, list[str]]:
    """Check parsed JSON against the cast; also return notes on what was mended.

    action       the sentence that the graph is of; an answer must be about it and in its language
    from_photos  the descriptions of `data` count even where the subject has one of its own
    trusted      a person wrote it, not a machine: nothing is suspected, and descriptions count
    Raises GraphFault with every fault that was found.
    """
    return _Reader(subjects, action, from_photos or trusted, trusted).read(data)


class _Reader:
    def __init__(self, subjects: Sequence[Subject], action: str, own_looks: bool, trusted: bool):
        self.subjects = subjects
        self.names = [subject.name for subject in subjects]
        self.action, self.own_looks, self.trusted = action, own_looks, trusted
        self.faults: list[str] = []
        self.notes: list[str] = []

    def read(self, data: Any) -> tuple[RelationGraph, list[str]]:
        if not isinstance(data, Mapping):
            raise GraphFault([f"the answer is {_kind(data)} and not a JSON object"])
        version = data.get("version", VERSION)
        if version != VERSION:
            raise GraphFault([f"version {version!r} of the layout is unknown, this is version {VERSION}"])
        looks = self._looks(data.get("subjects"))
        relations = self._relations(data.get("relations"))
        scene, camera = (self._text(data.get(key), key, MAX_SCENE) for key in ("scene", "camera"))
        if not self.trusted and not self.faults:
            said = [*looks, *(f"{each.predicate} {each.detail}" for each in relations), scene]
            asked, _ = replace_names(self.action, self.names, lambda i, again: "")
            if foreign(said, " ".join((asked, *(subject.description for subject in self.subjects)))):
                self.faults.append("the answer is not in English")
        if self.faults:
            raise GraphFault(self.faults)
        return RelationGraph(tuple(self.names), tuple(looks), tuple(relations), scene, camera), self.notes

    def _looks(self, rows: Any) -> list[str]:
        if isinstance(rows, Mapping):
            rows = [{"name": name, "description": look} for name, look in rows.items()]
        if not isinstance(rows, list):
            self.faults.append(f'"subjects" is {_kind(rows)} and not a list')
            rows = []
        told: dict[int, str] = {}
        for i, row in enumerate(rows[: 4 * len(self.names)]):
            where = f"subjects[{i}]"
            if not isinstance(row, Mapping):
                self.faults.append(f'{where} is {_kind(row)} and not an object with "name" and "description"')
                continue
            who = self._who(row.get("name"))
            if who is None:
                self.faults.append(f"{where}: the name {_shown(row.get('name'))} is none of {self._known()}")
                continue
            look = self._text(row.get("description"), f"{where}.description", MAX_LOOK)
            if who in told and look:
                self.notes.append(f"'{self.names[who]}' was described twice; the first description counts.")
            told.setdefault(who, self._impersonal(look, who))
        looks = []
        for i, subject in enumerate(self.subjects):
            typed = describe(subject) if subject.description.strip() else ""
            look = told.get(i, "") if self.own_looks or not typed else typed
            if not look and not typed and not self.trusted and not self.faults:
                self.faults.append(f"'{subject.name}' has no description in \"subjects\"")
            looks.append(look or describe(subject))
        return looks

    def _relations(self, rows: Any) -> list[Relation]:
        if not isinstance(rows, list):
            self.faults.append(f'"relations" is {_kind(rows)} and not a list')
            return []
        if not rows and self.action.strip() and not self.trusted:
            self.faults.append('"relations" is empty although something happens')
        if len(rows) > MAX_RELATIONS:
            self.notes.append(f"Of {len(rows)} relations only the first {MAX_RELATIONS} are kept.")
        found: list[Relation] = []
        for i, row in enumerate(rows[:MAX_RELATIONS]):
            relation = self._relation(row, f"relations[{i}]")
            if relation is None:
                continue
            if relation in found:
                self.notes.append(f"relations[{i}] says the same as one before it and was left out.")
            else:
                found.append(relation)
        return found

    def _relation(self, row: Any, where: str) -> Relation | None:
        if isinstance(row, list) and 2 <= len(row) <= 4:
            row = dict(zip(("subject", "predicate", "object", "when"), row, strict=False))
        if not isinstance(row, Mapping):
            self.faults.append(f'{where} is {_kind(row)} and not an object with "subject", "predicate" and "object"')
            return None
        who = self._who(row.get("subject"))
        if who is None:
            self.faults.append(f"{where}: the subject {_shown(row.get('subject'))} is none of {self._known()}")
        predicate = self._text(row.get("predicate"), f"{where}.predicate", MAX_PREDICATE)
        detail = self._text(row.get("detail"), f"{where}.detail", MAX_PREDICATE)
        when = self._text(row.get("when"), f"{where}.when", MAX_WHEN)
        whom, thing = self._object(row.get("object"), where)
        if who is None:
            return None
        predicate = _without(predicate, self.names[who], None if whom is None else self.names[whom])
        if not predicate:
            self.faults.append(f"{where} has no predicate")
            return None
        if whom == who:
            self.notes.append(f"{where}: '{self.names[who]}' was its own object; what is done alone has none.")
            whom = None
        return Relation(who, predicate, whom, " ".join(filter(None, (thing, detail))), when)

    def _object(self, value: Any, where: str) -> tuple[int | None, str]:
        """Who in the cast it is, or the words for something else."""
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None, ""
        whom = self._who(value)
        if whom is not None:
            return whom, ""
        thing = self._text(value, f"{where}.object", MAX_PREDICATE)
        # A thing is called "a ball" or "the door"; a name that nobody has is somebody whom the VLM has made up.
        invented = thing[:1].isupper() and thing.lower() not in self.action.lower()
        if not self.trusted and (not thing or invented) and isinstance(value, str):
            self.faults.append(f"{where}: the object {_shown(value)} is none of {self._known()}, and no thing")
        return None, thing

    def _who(self, value: Any) -> int | None:
        """The subject that a name, "subject 2", "the second person" or 2 means."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            return None
        wanted = _folded(str(value))
        for fold in (lambda text: text, lambda text: text.removeprefix("the ")):
            for i, name in enumerate(self.names):
                if fold(wanted) == _folded(name):
                    return i
        numbered = _NUMBERED.fullmatch(wanted)
        number = int(numbered[1]) if numbered and len(numbered[1]) < 3 else 0
        ordinal = re.fullmatch(r"the (\w+)(?: \w+)?", wanted)
        if ordinal and ordinal[1] in ORDINALS:
            number = ORDINALS.index(ordinal[1]) + 1
        return number - 1 if 1 <= number <= len(self.names) else None

    def _text(self, value: Any, where: str, longest: int) -> str:
        if value is None:
            return ""
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            self.faults.append(f"{where} is {_kind(value)} and not a text")
            return ""
        text = str(value)
        if self.trusted:
            return " ".join(unicodedata.normalize("NFC", text).split())
        wrong = suspicious(text)
        if wrong:
            self.faults.append(f"{where} {wrong}: {_shown(text)}")
            return ""
        cleaned = clean(text, longest)
        if len(text) > longest:
            self.notes.append(f"{where} had {len(text)} characters and was cut to {len(cleaned)}.")
        return "" if cleaned.lower() in _NOTHING else cleaned.rstrip(" .")

    def _impersonal(self, look: str, who: int) -> str:
        """A description without names: a video model does not know them."""
        if self.trusted or not look:
            return look
        look = re.sub(rf"^{re.escape(self.names[who])}\s*(?:is|:|,|-)\s+", "", look)
        kinds = [subject.kind for subject in self.subjects]
        look, found = replace_names(look, self.names, lambda i, again: f"the {kinds[i]}")
        if found:
            self.notes.append(f"The description of '{self.names[who]}' had names in it, which were taken out.")
        return look

    def _known(self) -> str:
        return ", ".join(self.names)


def with_subjects(subjects: Sequence[Subject], graph: RelationGraph) -> list[Subject]:
    """The cast as the graph describes it, for `compose`."""
    return [
        replace(subject, description=" ".join(look.split()))
        for subject, look in zip(subjects, graph.looks, strict=True)
    ]


def _without(predicate: str, subject: str, other: str | None) -> str:
    """ "Ada hugs Bo" -> "hugs", where Ada and Bo are given beside it."""
    if predicate.startswith(subject + " "):
        predicate = predicate[len(subject) + 1 :]
    if other and predicate.endswith(" " + other):
        predicate = predicate[: -len(other) - 1]
    return predicate.strip(" ,;:")


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().strip(" .,'\"<>[]()").split())


def _shown(value: Any) -> str:
    text = clean(value, 60) if isinstance(value, str) else _kind(value)
    return f"'{text}'"


def _kind(value: Any) -> str:
    kinds = {type(None): "missing", str: "a text", bool: "true or false", int: "a number", float: "a number",
             list: "a list", dict: "an object"}  # fmt: skip
    return kinds.get(type(value), "something else")
