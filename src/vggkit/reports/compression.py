"""A compression on the terminal, and as an image of its frontier."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table

from vggkit.compression.records import CompressionPoint, CompressionRecord
from vggkit.reports.plots import BLUE, INK, ORANGE, PALE_INK, draw_to, write_name
from vggkit.reports.tables import ASCII_RULES, RULES, decimal_unit
from vggkit.reports.terminal import stack_lines, write_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEGABYTE: Final = 1e6
_PURPOSES: Final = {"fit": "fitted", "choose": "compared", "report": "reported"}


class CompressionTable:
    """A `CompressionRecord` for `rich.print`: a row a network, and before and after."""

    def __init__(self, record: CompressionRecord) -> None:
        self.record = record

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table of what was measured, and what became of it."""
        record, plain = self.record, options.ascii_only
        yield _draw_rows(record, plain=plain)
        yield write_line()
        for sentence in describe_result(record):
            yield write_line(sentence)
        if record.roles:
            listed = "; ".join(
                f"{_PURPOSES[role.purpose]} on {role.images:,} ({role.split})" for role in record.roles
            )
            yield write_line(f"images: {listed}", style="dim")
        if record.before.speedup is not None:
            yield write_line(f"speed: batch 8, {record.machine}; x: over the first row, by turns", style="dim")


def draw_compression(record: CompressionRecord) -> CompressionTable:
    """The table of a compression for `rich.print`."""
    return CompressionTable(record)


def describe_result(record: CompressionRecord) -> list[str]:
    """Before and after, a sentence each for size, accuracy and speed."""
    before, after = record.before, record.chosen
    lines = [
        f"chosen: {after.name}, {after.storage}",
        f"size: {_size(before)} to {_size(after)}, {before.size_bytes / after.size_bytes:.1f} times smaller; "
        f"multiply-adds: {decimal_unit(before.multiply_adds)} to {decimal_unit(after.multiply_adds)}",
    ]
    if record.comparison is not None:
        lines.append(f"accuracy: {record.comparison.describe()}")
    if after.speedup is not None:
        command = " with --precision int8" if after.precision == "int8" else ""
        lines.append(f"speed: {after.speedup:.2g} times as fast at batch 8 on this machine{command}")
    return lines


def list_frontier(record: CompressionRecord) -> list[CompressionPoint]:
    """The points that no other one beats in size, accuracy and speed at once."""

    def beats(one: CompressionPoint, other: CompressionPoint) -> bool:
        pairs = [
            (-one.size_bytes, -other.size_bytes),
            (one.top1 or 0.0, other.top1 or 0.0),
            (one.speedup or 0.0, other.speedup or 0.0),
        ]
        return all(mine >= theirs for mine, theirs in pairs) and any(mine > theirs for mine, theirs in pairs)

    return [point for point in record.points if not any(beats(other, point) for other in record.points)]


def plot_compression(record: CompressionRecord, path: str | Path, *, title: str) -> None:
    """Accuracy by size of the file and by speed, every measured network a point, the best of them joined.

    Args:
        record: The compression, with images.
        path: A .png, .pdf or .svg file.
        title: The title of the figure.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    with draw_to(path, width_inches=9.0, height_inches=4.2) as figure:
        figure.suptitle(
            f"{write_name(title, longest=60)}: compression", x=0.012, ha="left", fontsize=12, fontweight="bold"
        )
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_title("by size of the file")
        left.set_xlabel("MB")
        left.set_xscale("log")
        right.set_title("by speed at batch 8")
        right.set_xlabel("times the original in float32")
        right.set_xscale("log")
        measured = record.before.top1 is not None
        figure_name = "top-1 accuracy" if record.before.figure == "top-1" else record.before.figure
        left.set_ylabel(f"{figure_name} (%)" if measured else "")
        _draw_points(left, record, [point.size_bytes / MEGABYTE for point in record.points], smaller=True)
        speeds = [point.speedup or 0.0 for point in record.points]
        if all(speeds):
            _draw_points(right, record, speeds, smaller=False)
        else:
            right.set_axis_off()
        for axes in (left, right):
            axes.grid(color="#eeeeee")
            axes.minorticks_off()
        left.legend(frameon=False, loc="lower right")
        figure.supxlabel(
            f"on {record.roles[1].images:,} images that networks are compared on; speeds: {record.machine}"
            if record.roles
            else record.machine,
            fontsize=8,
            color=PALE_INK,
            x=0.012,
            ha="left",
        )


def _draw_points(axes: "Axes", record: CompressionRecord, places: list[float], *, smaller: bool) -> None:
    heights = [100 * (point.top1 or 0.0) for point in record.points]
    for precision, colour in (("fp32", BLUE), ("int8", ORANGE)):
        chosen = [place for place, point in enumerate(record.points) if point.precision == precision]
        axes.scatter(
            [places[place] for place in chosen],
            [heights[place] for place in chosen],
            color=colour,
            s=22,
            alpha=0.85,
            zorder=3,
            label=f"computed in {precision}",
        )
    order = sorted(range(len(places)), key=lambda place: places[place] if smaller else -places[place])
    best, stairs = -1.0, []
    for place in order:  # from the smallest, or the fastest: each better one is on the frontier
        if heights[place] > best:
            best = heights[place]
            stairs.append((places[place], best))
    axes.plot(*zip(*stairs, strict=True), color=PALE_INK, linewidth=1, zorder=2)
    axes.axhline(heights[0], color=PALE_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    marked = next(
        place
        for place, point in enumerate(record.points)
        if (point.steps, point.storage, point.precision)
        == (record.chosen.steps, record.chosen.storage, record.chosen.precision)
    )
    axes.scatter([places[marked]], [heights[marked]], s=110, facecolors="none", edgecolors=INK, zorder=4)
    axes.annotate(
        "chosen", (places[marked], heights[marked]), xytext=(9, 7), textcoords="offset points", fontweight="bold"
    )
    axes.annotate(
        "before", (places[0], heights[0]), xytext=(5, -12), textcoords="offset points", fontsize=8, color=PALE_INK
    )
    ticks = _choose_ticks(min(places), max(places))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _choose_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times powers of ten within a range, and one on each side."""
    every = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    below, above = max(tick for tick in every if tick < low), min(tick for tick in every if tick > high)
    return [below, *inside, above]


def _draw_rows(record: CompressionRecord, *, plain: bool) -> Table:
    frontier = list_frontier(record)
    table = Table(
        Column("network", overflow="fold"),
        Column("weights", no_wrap=True),
        _numbers("file", "MB"),
        _numbers("mult-adds", "M"),
        _numbers(record.before.figure, "%"),
        _numbers("speed", "x"),
        Column("in", no_wrap=True),
        box=ASCII_RULES if plain else RULES,
        safe_box=False,
        border_style="dim",
        show_edge=False,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        header_style="bold",
    )
    for point in record.points:
        chosen = (point.steps, point.storage, point.precision) == (
            record.chosen.steps,
            record.chosen.storage,
            record.chosen.precision,
        )
        mark = " *" if chosen else ""
        table.add_row(
            point.name + mark,
            point.storage,
            f"{point.size_bytes / MEGABYTE:.3g}",
            f"{point.multiply_adds / 1e6:,.4g}",
            "" if point.top1 is None else f"{100 * point.top1:.2f}",
            "" if point.speedup is None else f"{point.speedup:.2g}",
            point.precision,
            style="bold" if chosen else "" if point in frontier else "dim",
        )
    return table


def _numbers(title: str, unit: str) -> Column:
    return Column(stack_lines(title, unit), justify="right", no_wrap=True)


def _size(point: CompressionPoint) -> str:
    return f"{point.size_bytes / MEGABYTE:.3g} MB"
