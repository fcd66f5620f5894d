"""Comparison of class names: two lists have the same classes if they have the same names, in any order."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from vggkit.errors import BadData

SEPARATORS: Final = re.compile(r"[|;]")
"""Characters that separate several labels of one image, and are rare in names."""
SEPARATORS_OF_KNOWN: Final = re.compile(r"[|;,]")
"""The same, where each of the separated labels is a class of its own."""


def find_rows(wanted: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
    """The place in `known` of each of the wanted classes; None where the classes are not the same ones.

    Names that differ in case, spaces or Unicode form only are one class, where that leaves no doubt.
    """
    places = {name: place for place, name in enumerate(known)}
    if set(places) != set(wanted):
        places = {fold(name): place for place, name in enumerate(known)}
        wanted = [fold(name) for name in wanted]
    if len(set(wanted)) != len(wanted) or len(places) != len(known) or set(places) != set(wanted):
        return None
    return tuple(places[name] for name in wanted)


def find_lookalikes(names: Iterable[str], known: Iterable[str]) -> Mapping[str, str]:
    """For each of these names that is not known, one that is and differs in case, spaces or Unicode form only."""
    known = list(known)
    exact, folded = set(known), {fold(name): name for name in known}
    return {name: folded[fold(name)] for name in names if name not in exact and fold(name) in folded}


def describe_lookalikes(lookalikes: Mapping[str, str]) -> str:
    """Such as `'Ant' for 'ant'`, of a few of them; escapes show what looks the same."""
    shown = [f"{show_name(name)} for {show_name(other)}" for name, other in list(lookalikes.items())[:3]]
    return ", ".join(shown) + (f" and {len(lookalikes) - 3} more" if len(lookalikes) > 3 else "")


def hint_at_lookalikes(names: Iterable[str], known: Iterable[str]) -> str:
    """The end of a message on unknown names: those that differ only in case or spaces; or nothing."""
    alike = find_lookalikes(names, known)
    return (
        f"; names differ in case or spaces only ({describe_lookalikes(alike)}): spell each one the same way"
        if alike
        else ""
    )


def shorten_names(names: Sequence[str], *, most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def fold(name: str) -> str:
    """A form that is equal for names that differ in case, spaces or Unicode form only."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", name).casefold().split()))


def show_name(name: str) -> str:
    """The name in quotes, with escapes for characters that look like others."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def compose(label: str) -> str:
    r"""A label in Unicode's composed form (NFC): macOS writes the names of folders in the decomposed form.

    >>> compose("Cafe\u0301") == "Caf\u00e9"
    True
    """
    return label if label.isascii() else unicodedata.normalize("NFC", label)


def demand_single_labels(name: str, written: Collection[str]) -> None:
    """Raise BadData where a label of a table consists of other labels, such as `cat|dog` beside `cat` and `dog`.

    Args:
        name: The dataset, for the message.
        written: The labels of its table.
    """
    known = set(map(compose, written))
    combined = {label: split_label(label, SEPARATORS_OF_KNOWN) for label in sorted(known)}
    combined = {label: parts for label, parts in combined.items() if len(parts) > 1 and known.issuperset(parts)}
    if combined:
        first = next(iter(combined))
        raise BadData(
            f"{name}: {len(combined):,} of its labels are several in one, the first {first!r}: "
            f"{' and '.join(map(repr, combined[first]))} are labels of their own. Where images have several "
            "labels, name their separator, such as --label-separator ';'; else keep one in each row"
        )


def split_label(label: str, separators: re.Pattern[str] = SEPARATORS) -> tuple[str, ...]:
    """The distinct labels in a label such as `cat|dog` or `['cat', 'dog']`; a single one for an ordinary label.

    >>> split_label("cat|dog"), split_label("['cat', 'dog']"), split_label("tench, Tinca tinca")
    (('cat', 'dog'), ('cat', 'dog'), ('tench, Tinca tinca',))
    """
    listed = re.fullmatch(r"\[(.*)\]|\((.*)\)|\{(.*)\}", label.strip(), re.DOTALL)
    inside = next(filter(None, listed.groups()), "") if listed else ""
    if "," in inside:
        label, separators = inside, SEPARATORS_OF_KNOWN
    pieces = (piece.strip().strip("'\"") for piece in separators.split(label))
    return tuple(dict.fromkeys(piece for piece in pieces if piece))
