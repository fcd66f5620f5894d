"""Labels as texts: one spelling of each, and those that look like several labels in one."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from vggkit.errors import BadData

LISTED: Final = re.compile(r"[|;]")
"""What people put between several labels of one image, and seldom into the name of one."""
LISTED_AMONG_LABELS: Final = re.compile(r"[|;,]")
"""The same, where each part is a label of its own."""


@dataclass(frozen=True, slots=True)
class LabelRemark:
    """Something about a label that people should know."""

    kind: Literal["combined", "spaces", "spellings"]
    """`combined`: it looks like several labels in one. `spaces`: others differ from it in spaces alone, and are
    classes of their own. `spellings`: it is written in several forms of Unicode, and is one class."""
    label: str
    """As it counts; of several the first."""
    parts: tuple[str, ...]
    """The labels in it, those that differ in spaces, or its spellings."""

    def describe(self) -> str:
        """A sentence for people."""
        listed = ", ".join(map(repr, self.parts))
        if self.kind == "combined":
            return f"{self.label!r} looks like {len(self.parts)} labels ({listed}), and is taken as one class"
        if self.kind == "spaces":
            return f"{listed} differ in spaces alone, and are {len(self.parts)} classes"
        written = " and ".join(ascii(part) for part in self.parts)
        return f"{self.label!r} is written in {len(self.parts)} ways of Unicode ({written}), and is one class"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {"kind": self.kind, "label": self.label, "parts": list(self.parts)}


def spell(label: str) -> str:
    """The one spelling of a label: composed (NFC), for macOS writes names of folders decomposed."""
    return label if label.isascii() else unicodedata.normalize("NFC", label)


def remark_spellings(labels: Iterable[str]) -> list[LabelRemark]:
    """Labels that are written in several ways."""
    written: dict[str, set[str]] = {}
    for label in labels:
        if not label.isascii():
            written.setdefault(spell(label), set()).add(label)
    return [
        LabelRemark("spellings", label, tuple(sorted(ways)))
        for label, ways in sorted(written.items())
        if len(ways) > 1
    ]


def remark_spaces(labels: Iterable[str]) -> list[LabelRemark]:
    """Labels that look alike, for they differ in spaces alone."""
    alike: dict[str, list[str]] = {}
    for label in sorted(set(map(spell, labels))):
        alike.setdefault(" ".join(label.split()), []).append(label)
    return [LabelRemark("spaces", ways[0], tuple(ways)) for ways in alike.values() if len(ways) > 1]


def remark_combined(name: str, written: Collection[str]) -> list[LabelRemark]:
    """Labels of a table that look like several, `cat|dog`; an image has one label here.

    Raises BadData where the parts of one are labels of their own.
    """
    known = set(map(spell, written))
    clear = {
        label: parts for label in sorted(known) if known.issuperset(parts := _split(label, LISTED_AMONG_LABELS))
    }
    clear = {label: parts for label, parts in clear.items() if len(parts) > 1}
    if clear:
        first = next(iter(clear))
        raise BadData(
            f"{name}: {len(clear):,} of its labels are several in one, the first {first!r}: "
            f"{' and '.join(map(repr, clear[first]))} are labels of their own. A Classifier gives one label to "
            "an image; leave one in each row, or leave these rows out"
        )
    parted = {label: _split(label, LISTED) for label in sorted(known)}
    return [LabelRemark("combined", label, parts) for label, parts in parted.items() if len(parts) > 1]


def _split(label: str, between: re.Pattern[str]) -> tuple[str, ...]:
    """The parts of a label, those of a list that a program wrote, `['cat', 'dog']`, too."""
    listed = re.fullmatch(r"\[(.*)\]|\((.*)\)|\{(.*)\}", label.strip(), re.DOTALL)
    inside = next(filter(None, listed.groups()), "") if listed else ""
    if "," in inside:
        label, between = inside, LISTED_AMONG_LABELS
    parts: Sequence[str] = [part.strip().strip("'\"") for part in between.split(label)]
    return tuple(dict.fromkeys(part for part in parts if part))
