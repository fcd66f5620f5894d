"""Escaping of names and texts from files, so that terminals and other programs show them and never execute them.

The name of a file or a class, or metadata of a weights file, may hold anything: a terminal would execute an escape
sequence in it, a spreadsheet a formula, and Markdown would make a link.
"""

import re
import unicodedata
from typing import Final

JOINERS: Final = "\u200c\u200d"
"""Invisible, but letters of Persian, of Indian scripts and of emoji are wrong without them."""
NO_CHARACTERS: Final = "\ufffe\uffff"
"""Which no text may hold, by YAML's rules."""
UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, what turns the direction of text, halves of characters (bytes of
a file's name that are no text) and line ends."""

_FORMULA: Final = re.compile(r"(?:\s*[=+\-@＝＋－＠]|[\t\r\n]).", re.DOTALL)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def is_unseen(character: str) -> bool:
    """Whether a character has an effect on a terminal, or is invisible."""
    return (unicodedata.category(character) in UNSEEN and character not in JOINERS) or character in NO_CHARACTERS


def escape_controls(text: str) -> str:
    r"""The text as one line that a terminal shows whole: an escape character as `\x1b`, a line's end as `\n`."""
    if text.isprintable():
        return text
    return "".join(each.encode("unicode_escape").decode("ascii") if is_unseen(each) else each for each in text)


def escape_json(text: str) -> str:
    r"""JSON text with control characters as JSON escapes (`\u001b`); the value is the same."""
    if text.isprintable():
        return text
    return "".join(
        "".join(f"\\u{unit:04x}" for unit in _list_utf16(each)) if each != "\n" and is_unseen(each) else each
        for each in text
    )


def _list_utf16(character: str) -> list[int]:
    coded = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(coded[first : first + 2], "big") for first in range(0, len(coded), 2)]


def escape_markdown(text: str) -> str:
    """The text as Markdown that shows it as it is, on one line: no link, code, table cell or HTML comes of it."""
    shown = escape_controls(text)
    return re.sub(r"([\\`*_\[\]<>|~&$:@]|(?<=www)\.)", r"\\\1", shown, flags=re.IGNORECASE)


def defuse_cell(text: str, *, mark: str = "'") -> str:
    """A cell of CSV that no spreadsheet takes for a formula; numbers stay as they are.

    Args:
        text: The content of the cell.
        mark: The prefix of a cell that begins as a formula does: `'` for text, `./` for a file's path, which
            names the same file. A cell that already begins so gets one more, so that `restore_cell` is exact.
    """
    return mark + text if _is_formula(text, mark) else text


def restore_cell(text: str, *, mark: str = "'") -> str:
    """The text that `defuse_cell` was given."""
    bare = text.removeprefix(mark)
    return bare if bare != text and _is_formula(bare, mark) else text


def _is_formula(text: str, mark: str) -> bool:
    bare = text
    while bare.startswith(mark):
        bare = bare.removeprefix(mark)
    return _FORMULA.match(bare) is not None and _NUMBER.fullmatch(text) is None
