"""Class labels as people give them: lists and mappings, in the order of the logits."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from vggkit.arguments import plain_number
from vggkit.errors import BadConfiguration


def read_labels(given: object) -> tuple[str, ...]:
    """Class names in the order of the logits, from lists and mappings of them.

    Args:
        given: A list, tuple, array or other row of names; or a mapping of names to their numbers or of numbers to
            names, which are 0 to K - 1, in any order.

    Raises BadConfiguration for anything else; that names differ, and the like, is checked by `Card`.
    """
    if isinstance(given, str | os.PathLike):
        of_file = "names in a file are labels=Path(file).read_text().splitlines()"
        _refuse_labels(given, f"for one class write labels=[{given!r:.50}]; {of_file}")
    if isinstance(given, set | frozenset):
        _refuse_labels(given, "a set has no order; write sorted(labels)")
    count = plain_number(given)
    if isinstance(count, int) and not isinstance(count, bool):
        _refuse_labels(given, f"classes without names are labels=[str(number) for number in range({count})]")
    if isinstance(given, Mapping):
        given = _order_labels(given)
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray) or getattr(given, "ndim", 1) != 1:
        _refuse_labels(given, "write labels=['ant', 'bee']")
    names = tuple(given)
    for name in names:
        if not isinstance(name, str):
            number = type(plain_number(name)) is int
            _refuse_labels(
                names,
                "numbers become names as [str(label) for label in labels]" if number else "write names as text",
            )
    stripped = Counter(name.strip() for name in names)
    alike = [name for name in names if name and (not name.strip() or stripped[name.strip()] > 1)]
    if alike and len(set(names)) == len(names):
        raise BadConfiguration(
            f"labels must differ in more than outer spaces, and not be empty; got {show_labels(tuple(alike))}"
        )
    return tuple(str.__str__(name) for name in names)  # the text alone of NumPy's and of enumerations


def _order_labels(given: Mapping[Any, Any]) -> list[Any]:
    """The names of a mapping, by their numbers."""
    keys, values = ([plain_number(each) for each in side] for side in (given.keys(), given.values()))
    counted, named = (all(type(each) is int for each in side) for side in (values, keys))
    if counted == named:
        _refuse_labels(given, "a mapping is of names to whole numbers or of whole numbers to names")
    pairs = zip(values, keys, strict=True) if counted else zip(keys, values, strict=True)
    numbered = sorted(pairs, key=lambda pair: pair[0])
    if [number for number, _ in numbered] != list(range(len(numbered))):
        _refuse_labels(given, f"its numbers must be 0 to {len(numbered) - 1}, each once, the places of the logits")
    return [name for _, name in numbered]


def _refuse_labels(given: object, what_to_do: str) -> NoReturn:
    shown = show_labels(given) if isinstance(given, tuple) else " ".join(repr(given).split())[:100]
    raise BadConfiguration(
        f"labels must be the names of the classes, in the order of the logits; got {shown}: {what_to_do}"
    )


def show_labels(labels: tuple[object, ...]) -> str:
    """The first five labels, and how many more there are."""
    shown = ", ".join(map(repr, labels[:5]))
    return f"{shown} and {len(labels) - 5} more" if len(labels) > 5 else shown
