"""The text that `vggkit identify` prints."""

from typing import TYPE_CHECKING

from vggkit.escaping import escape_controls

if TYPE_CHECKING:
    from vggkit.weights.identify import Identification


_UNKNOWN = "unknown, say --input-convention; loading assumes ImageNet's unless preprocessing= is given"


def describe_identification(found: "Identification") -> str:
    """The verdict, then the facts that it is based on, a line each."""
    lines = [str(found)]
    if found.configuration is not None:
        c = found.configuration
        parts = [
            f"{len(block)}×{block[0]}" if len(set(block)) == 1 else "+".join(map(str, block)) for block in c.blocks
        ]
        lines.append(f"  convolutions   {' | '.join(parts)}{', batch norm' if found.batch_norm else ''}")
    facts = {
        "dialect": f"{found.dialect or 'unknown'}, in {found.container}, {found.dtype or 'no numbers'}",
        "classes": found.num_classes,
        "labels": _list(tuple(map(_show, found.labels or ()))),
        "channels": found.in_channels,
        "input": found.input_convention or (_UNKNOWN if found.is_vgg else None),
        "evidence": found.evidence,
        "removed": ", ".join(found.stripped) or None,
        "missing": _list(found.missing),
        "misshapen": _list(found.misshapen),
        "unexpected": _list(found.unexpected),
        "read as": found.readings[found.reading].said if len(found.readings) > 1 else None,
        "load": found.load_line,
    }
    lines += [f"  {name:<14} {value}" for name, value in facts.items() if value is not None]
    for number, reading in enumerate(found.readings if len(found.readings) > 1 else ()):
        if number != found.reading:
            lines += [f"  {f'or, reading {number}':<14} {reading.said}", f"  {'load':<14} {reading.load_line}"]
    return "\n".join(map(escape_controls, lines))


def _show(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:40])


def _list(keys: tuple[str, ...]) -> str | None:
    shown = ", ".join(keys[:6])
    return (shown + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")) or None
