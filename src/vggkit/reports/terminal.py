r"""Output to the terminal: control characters in names and texts from files are shown and have no effect.

Every table, message and line of text goes through here: control characters appear as `\x1b`, and nothing is read
as rich's markup or its names of emoji.
"""

import io
import shutil
import sys
import textwrap
from typing import IO

from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod, RenderableType
from rich.style import Style
from rich.text import Text

from vggkit.escaping import escape_controls


class Terminal(Console):
    """A console that shows strings as they are, on one line each."""

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        """Called by rich for each string that is printed, or is a table's cell; see its documentation."""
        return Text(escape_controls(text), style, justify=justify, overflow=overflow)


def open_terminal(
    *, file: IO[str] | None = None, width: int | None = None, soft_wrap: bool = False, quiet: bool = False
) -> Terminal:
    """The console of a stream.

    Args:
        file: The stream; None: standard output.
        width: Characters of a line; None: the terminal's, or 80 where there is none.
        soft_wrap: Let the terminal break long lines.
        quiet: Show nothing.
    """
    return Terminal(file=file, width=width, soft_wrap=soft_wrap, quiet=quiet, highlight=False)


def write_plainly(drawn: RenderableType, *, width: int = 80) -> str:
    """The ASCII output as text without trailing spaces, for `str` of a record."""
    out = _Ascii()
    open_terminal(file=out, width=width).print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class _Ascii(io.StringIO):
    """A stream that rich draws in ASCII for."""

    encoding = "ascii"


def write_line(*parts: str | tuple[str, str], style: str = "", overflow: OverflowMethod | None = None) -> Text:
    """A line of text, parts of which may have their own style."""
    pairs = [(part, "") if isinstance(part, str) else part for part in parts]
    line = Text(style=style, overflow=overflow)
    for part, own in pairs:
        line.append(escape_controls(part), own or None)
    return line


def stack_lines(*lines: str | Text, style: str = "") -> Text:
    """Lines below each other as one text, such as a table's header."""
    stacked = Text(style=style)
    for number, line in enumerate(lines):
        stacked.append("\n" if number else "")
        stacked.append_text(line if isinstance(line, Text) else write_line(line))
    return stacked


def print_line(
    text: str, *, to_stderr: bool = False, flush: bool = False, indent: int = 0, whole: bool = False
) -> None:
    """One line on standard output, or on standard error; control characters in it are escaped.

    A terminal gets it broken between words, and no word is broken: a path or a command can be copied from it.

    Args:
        text: The line.
        to_stderr: Print it on standard error.
        flush: Print it at once.
        indent: Number of spaces before the lines after the first, where it is broken.
        whole: Leave breaking to the terminal, so that the line can be copied as one.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    shown = escape_controls(text)
    broken = is_terminal(stream) and not whole
    print(break_between_words(shown, indent=indent) if broken else shown, file=stream, flush=flush)


def break_between_words(text: str, *, indent: int = 0) -> str:
    """Lines as wide as the terminal, indented after the first; a word that is longer stays whole, and the terminal
    breaks it.
    """
    width = shutil.get_terminal_size().columns
    if len(text) <= width:
        return text
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
    return "\n".join(lines)


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal; one that is closed, or is none at all, is not."""
    try:
        return isinstance(stream, io.TextIOBase) and stream.isatty()
    except ValueError:
        return False
