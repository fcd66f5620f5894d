"""Lines of Python laid out so that `ruff format` leaves them alone, at 88 columns and at any wider setting."""

import textwrap
from collections.abc import Sequence
from typing import Final

WIDTH: Final = 88
STEP: Final = "    "


def lay_call(start: str, arguments: Sequence[object], *, end: str = "", depth: int = 0) -> list[str]:
    """`start(arguments)end` on one line where it fits, else one argument a line.

    The comma behind the last argument keeps a formatter with a wider line from joining them.
    """
    margin = STEP * depth
    line = f"{margin}{start}({', '.join(map(str, arguments))}){end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{margin}{start}(", *(f"{margin}{STEP}{argument}," for argument in arguments), f"{margin}){end}"]


def lay_comment(text: str, *, depth: int = 0) -> list[str]:
    """`text` as comment lines."""
    return _fill(text, f"{STEP * depth}# ")


def lay_docstring(*paragraphs: str, depth: int = 0) -> list[str]:
    """A docstring: on one line where it fits, else with its closing quotes on a line of their own."""
    margin = STEP * depth
    whole = f'{margin}"""{paragraphs[0]}"""'
    if len(paragraphs) == 1 and len(whole) <= WIDTH:
        return [whole]
    # Text on a single line would be joined with its quotes where the line may be wider.
    lines = _fill(f'"""{paragraphs[0]}', margin, WIDTH - 3 if len(paragraphs) == 1 else WIDTH)
    for paragraph in paragraphs[1:]:
        lines += ["", *_fill(paragraph, margin)]
    return [*lines, f'{margin}"""']


def _fill(text: str, margin: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
