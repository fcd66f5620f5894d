"""Names of classes held against each other: classes are the same where their names are, whatever their order."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence


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
    """The end of a sentence on names that are not known, where some only look unlike; else nothing."""
    alike = find_lookalikes(names, known)
    return (
        f"; names differ in case or spaces only ({describe_lookalikes(alike)}): give each one form" if alike else ""
    )


def shorten_names(names: Sequence[str], *, most: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def fold(name: str) -> str:
    """What names have in common that differ in case, spaces or Unicode form only."""
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", name).casefold().split()))


def show_name(name: str) -> str:
    """In quotes, with escapes where other characters would look the same."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)
