"""HTML tables of objects for notebooks, with all names and texts escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from vggkit.escaping import escape_controls

MOST_ROWS: Final = 30
"""Rows that are shown; of more, how many are left out."""


def write_html(
    title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), most: int | None = MOST_ROWS
) -> str:
    """A title and a table, for a class's `_repr_html_`.

    Args:
        title: The kind of object, in a few words.
        rows: The cells of each row; they are written by `str`, and escaped. The first one names the row.
        header: The names of the columns.
        most: Rows that are shown at most; None: all.

    >>> write_html("2 <classes>", [("cat", 3)])
    '<table><caption>2 &lt;classes&gt;</caption><tr><th>cat</th><td>3</td></tr></table>'
    """
    listed = list(rows)
    shown = listed if most is None or len(listed) <= most else listed[: most - 1]
    lines = [f"<caption>{_show(title)}</caption>"]
    if header:
        lines.append(f"<tr>{''.join(f'<th>{_show(name)}</th>' for name in header)}</tr>")
    for first, *others in shown:
        lines.append(f"<tr><th>{_show(first)}</th>{''.join(f'<td>{_show(cell)}</td>' for cell in others)}</tr>")
    if len(shown) < len(listed):
        width = max(len(row) for row in listed)
        lines.append(f'<tr><td colspan="{width}">… and {len(listed) - len(shown):,} more</td></tr>')
    return f"<table>{''.join(lines)}</table>"


def _show(cell: object) -> str:
    return escape(escape_controls(str(cell)))
