"""Search results as a table, and as a sheet of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE
from rich.table import Table

from vggkit.errors import VggkitError
from vggkit.images.sources.open_dataset import find_images
from vggkit.inference.search import SearchResult
from vggkit.reports.plots import PALE_INK, draw_to, write_name
from vggkit.reports.terminal import write_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN: Final = 12
"""Rows of the grid, and similar images of each."""


def draw_search(found: Sequence[SearchResult]) -> Table:
    """A row for each similar image, most similar first, under its query."""
    table = Table(box=SIMPLE, pad_edge=False, show_edge=False)
    table.add_column("query", overflow="fold")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("similarity", justify="right", no_wrap=True)
    table.add_column("similar image", overflow="fold")
    for each in found:
        for rank, near in enumerate(each.similar, start=1):
            last = rank == len(each.similar)
            query, similar = write_line(each.path if rank == 1 else ""), write_line(near.path)
            table.add_row(query, str(rank), f"{near.similarity:.4f}", similar, end_section=last)
    return table


def plot_search(found: Sequence[SearchResult], path: str | Path) -> None:
    """A sheet: each query, and to its right the images most similar to it; at most 12 of each.

    The place of an image that cannot be read shows its name. Raises BadOutput where the file cannot be written,
    MissingExtra without matplotlib.
    """
    rows = found[:MOST_DRAWN]
    columns = 1 + min(MOST_DRAWN, max(len(each.similar) for each in rows))
    with draw_to(path, width_inches=1.4 * columns, height_inches=1.6 * len(rows) + 0.2) as figure:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for line, each in zip(grid, rows, strict=True):
            _show(line[0], each.path, "query")
            for axes, near in zip(line[1:], each.similar, strict=False):
                _show(axes, near.path, f"{near.similarity:.3f}")


def _show(axes: "Axes", path: str, title: str) -> None:
    axes.set_title(title, loc="center", fontweight="normal")
    try:
        axes.imshow(next(find_images([path])).decode(), interpolation="bicubic")
    except (VggkitError, OSError):
        name = write_name(Path(path).name, longest=20)
        axes.text(0.5, 0.5, name, ha="center", va="center", fontsize=6, color=PALE_INK, transform=axes.transAxes)
