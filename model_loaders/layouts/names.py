"""Tensor names of one model in two layouts, translated both ways.

A name is a module path and a rest ("weight", "bias", "lora_A.weight", "scale_weight", or nothing for a bare parameter).
Only the path is translated, so that weights, quantisation scales and LoRA factors all go through the same tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class NameMap:
    """diffusers names <-> native names.

    top     module path outside of the blocks -> native path
    block   module path inside a block -> native path
    stems   name of a list of blocks -> its native name
    """

    def __init__(self, top: Mapping[str, str], block: Mapping[str, str], stems: Mapping[str, str]):
        self._to_native = (dict(top), dict(block), dict(stems))
        self._to_diffusers = tuple({new: old for old, new in table.items()} for table in self._to_native)
        if any(len(a) != len(b) for a, b in zip(self._to_native, self._to_diffusers, strict=True)):
            raise ValueError("Two modules of one layout have the same name in the other one.")

    def to_native(self, name: str) -> str | None:
        """The native name of a diffusers name; None when the tables do not hold it."""
        return _translate(name, *self._to_native)

    def to_diffusers(self, name: str) -> str | None:
        """The diffusers name of a native name; None when the tables do not hold it."""
        return _translate(name, *self._to_diffusers)

    def native(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """({diffusers name: native name}, names that the tables do not hold)."""
        return _split(names, self.to_native)

    def diffusers(self, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
        """({native name: diffusers name}, names that the tables do not hold)."""
        return _split(names, self.to_diffusers)


def _split(names, translate) -> tuple[dict[str, str], list[str]]:
    found = {name: translate(name) for name in names}
    return {old: new for old, new in found.items() if new is not None}, [old for old in found if found[old] is None]


def _translate(name: str, top: Mapping, block: Mapping, stems: Mapping) -> str | None:
    parts = name.split(".")
    if len(parts) > 2 and parts[0] in stems and parts[1].isdigit():
        head, table, parts = f"{stems[parts[0]]}.{parts[1]}.", block, parts[2:]
    else:
        head, table = "", top
    # The longest known path wins: "attn1.to_out.0" is a module, "0" alone is not.
    for end in range(len(parts), 0, -1):
        path = table.get(".".join(parts[:end]))
        if path is not None:
            return head + ".".join([path, *parts[end:]])
    return None
