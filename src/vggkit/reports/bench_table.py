"""A bench on the terminal, as an image, and in a sentence of what to do with it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from vggkit.benchmarking.timings import Bench, EngineTimings, Spread
from vggkit.reports.plots import BLUE, ORANGE, PALE_INK, draw_to
from vggkit.reports.tables import ASCII_RULES, RULES, binary_unit
from vggkit.reports.terminal import stack_lines, write_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES: Final = {"pytorch": "PyTorch", "openvino": "OpenVINO", "onnx": "ONNX Runtime", "ncnn": "ncnn"}
WORTH: Final = 1.15
"""Least speed-up of int8 over the engine of `auto` for which it is suggested."""


class BenchTable:
    """A `Bench` for `rich.print`: a row an engine, the fastest first."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the table, and what its columns mean."""
        bench, plain = self.bench, options.ascii_only
        yield write_line((bench.network, "bold"), f" at {bench.input_pixels} pixels: {bench.model}")
        yield stack_lines(bench.machine, ", ".join(map(" ".join, bench.versions.items())), style="dim")
        yield write_line()
        yield _draw_rows(bench, plain=plain)
        yield write_line()
        for each in bench.engines:
            if each.problem is not None:
                yield stack_lines(
                    write_line((_name(each, bench), "bold"), f" does not run here: {each.problem}"), ""
                )
        yield stack_lines(*_explain(bench), style="dim")


def draw_bench(bench: Bench) -> BenchTable:
    """The table of a Bench for `rich.print`."""
    return BenchTable(bench)


def _draw_rows(bench: Bench, *, plain: bool) -> Table:
    running = [each for each in bench.engines if each.problem is None]
    compared = next((each.agreement.images for each in running if each.agreement is not None), 0)
    true = bench.images is not None
    columns = [
        Column("engine", no_wrap=True),
        _numbers("p50", "ms"),
        _numbers("p95", "ms"),
        _numbers("images/s", "at best"),
        _numbers("batch", "size"),
        _numbers("times", "fp32"),
        _numbers("memory", "at most"),
        _numbers("same class", f"of {compared}") if true else _numbers("error", "of logits"),
    ]
    table = Table(
        *columns,
        box=ASCII_RULES if plain else RULES,
        safe_box=False,
        border_style="dim",
        show_edge=False,
        padding=(0, 0, 0, 0 if _are_several(bench) else 1),  # names are longer then
        pad_edge=False,
        header_style="bold",
    )
    for each in running:
        speeds, best = each.images_per_second, each.best_batch_size
        assert speeds is not None and best is not None, "it runs"  # noqa: PT018
        cells: list[str | Text] = [
            write_line(_name(each, bench) + _mark(each), style="bold" if each.is_auto else ""),
            _milliseconds(each.latency_p50_seconds),
            _milliseconds(each.latency_p95_seconds),
            f"{_digits(speeds[best].median)} ({_range(speeds[best])})",
            str(best),
            "" if each.times_reference is None else _times(each.times_reference.median),
            "" if each.peak_memory_bytes is None else binary_unit(each.peak_memory_bytes),
            _agree(each, true=true),
        ]
        table.add_row(*cells)
    return table


def _numbers(title: str, unit: str) -> Column:
    return Column(stack_lines(title, unit), justify="right", no_wrap=True)


def _agree(timings: EngineTimings, *, true: bool) -> str:
    found = timings.agreement
    if found is None:
        return "exact" if timings.is_reference else ""
    if not true:
        return f"{found.error:.1g}"
    low, high = found.interval
    return f"{found.same_class} {100 * low:.0f}-{100 * high:.0f}%"


def _name(timings: EngineTimings, bench: Bench) -> str:
    """The name of a row; with the device where there are several."""
    device = f" {timings.device}" if _are_several(bench) and timings.device != "cpu" else ""
    return f"{NAMES[timings.engine]} {timings.precision}{device}"


def _mark(timings: EngineTimings) -> str:
    marks = "*" * timings.is_auto + "+" * timings.is_python_default
    return f" {marks}" if marks else ""


def _are_several(bench: Bench) -> bool:
    return len({each.device for each in bench.engines}) > 1


def _milliseconds(spread: Spread | None) -> str:
    return "" if spread is None else _digits(1000 * spread.median)


def _digits(value: float) -> str:
    """Three digits, or all digits before the point; thousands as k."""
    if value >= 999.5:
        return f"{_digits(value / 1000)}k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def _range(spread: Spread) -> str:
    """The least and the largest, two digits each or all digits before the point; thousands as k."""
    scale, unit = (1000, "k") if spread.least >= 999.5 else (1, "")
    ends = (end / scale for end in (spread.least, spread.most))
    return "-".join(f"{end:.0f}" if end >= 9.95 else f"{end:.1f}" for end in ends) + unit


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 99.95 else _digits(ratio)


def _explain(bench: Bench) -> list[str]:
    lines = [
        "* the choice of `vggkit predict` (precision auto); + that of `predict` in Python (fp32).",
        f"Medians of {bench.rounds} rounds, with the range.",
        "p50, p95: median and 95th percentile of the time for one image.",
        "times fp32: speed-up over PyTorch in fp32 at its best batch size.",
    ]
    if bench.images is None:
        return [*lines, "error: of logits, relative to their spread, on random images."]
    if bench.unreadable:
        lines.append(f"{bench.unreadable} images cannot be read and were left out.")
    return [*lines, f"same class: as PyTorch in fp32, with the 95 % interval; {bench.images}."]


def suggest(bench: Bench, *, ranges_kept: bool) -> list[str]:
    """Suggestions of what to do next, one sentence each.

    Args:
        bench: The measurements.
        ranges_kept: Whether the Classifier's file holds the activation ranges for int8.
    """
    model = shlex.quote(bench.model)
    if bench.images is None:
        return [f"next: compare predictions on images: vggkit bench {model} YOUR_IMAGES/"]
    auto = next((each for each in bench.engines if each.is_auto and each.problem is None), None)
    coarse = next((each for each in bench.engines if each.precision == "int8" and each.problem is None), None)
    if auto is None or coarse is None or coarse.agreement is None or coarse.speed < WORTH * auto.speed:
        return []
    found = coarse.agreement
    keep = [] if ranges_kept else [f"      vggkit bench {model} YOUR_IMAGES/ --keep-ranges"]
    return [
        f"next: int8 is {coarse.speed / auto.speed:.1f} times as fast as auto's choice, and gave the same class "
        f"for {found.same_class} of {found.images}:",
        *keep,
        f"      vggkit predict {model} YOUR_IMAGES/ --precision int8",
    ]


def plot_bench(bench: Bench, path: str | Path) -> None:
    """Bars of images a second and of the time for one, as PNG, PDF or SVG by the suffix.

    Raises BadOutput and MissingExtra, see `plots.draw_to`.
    """
    running = [each for each in bench.engines if each.problem is None]
    names = [_name(each, bench) + _mark(each) for each in running]
    with draw_to(path, width_inches=9.0, height_inches=1.7 + 0.32 * len(running)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        title = f"{bench.network} at {bench.input_pixels} pixels on {bench.machine}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
        left.set_title("images a second, at the best batch size", color=BLUE)
        right.set_title("one image, milliseconds", color=ORANGE)
        _draw_speeds(left, running)
        _draw_latencies(right, running)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(max(len(names), 1) - 0.5, -0.5)
        figure.supxlabel(
            f"medians of {bench.rounds} rounds; lines: range, and p50 to p95. "
            "* the choice of `vggkit predict`, + that of `predict` in Python",
            fontsize=8,
            color=PALE_INK,
            x=0.012,
            ha="left",
        )


def _draw_speeds(axes: "Axes", running: list[EngineTimings]) -> None:
    most = max((each.speed for each in running), default=1.0)
    for place, each in enumerate(running):
        assert each.images_per_second is not None and each.best_batch_size is not None, "it runs"  # noqa: PT018
        found = each.images_per_second[each.best_batch_size]
        times = "" if each.times_reference is None else f" · {each.times_reference.median:.1f}×"
        _draw_bar(axes, place, found.median, (found.least, found.most), label=f"{_digits(found.median)}{times}")
    _finish(axes, most)


def _draw_latencies(axes: "Axes", running: list[EngineTimings]) -> None:
    most = 0.0
    for place, each in enumerate(running):
        assert each.latency_p50_seconds is not None and each.latency_p95_seconds is not None, "it runs"  # noqa: PT018
        half, late = 1000 * each.latency_p50_seconds.median, 1000 * each.latency_p95_seconds.median
        most = max(most, late)
        _draw_bar(axes, place, half, (half, late), label=_digits(half), colour=ORANGE)
    _finish(axes, most)


def _draw_bar(
    axes: "Axes", place: int, value: float, ends: tuple[float, float], *, label: str, colour: str = BLUE
) -> None:
    axes.barh(place, value, height=0.62, color=colour, alpha=0.85, zorder=2)
    axes.plot(ends, (place, place), color="black", linewidth=1.1, zorder=3)
    axes.annotate(
        label, (max(value, ends[1]), place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
    )


def _finish(axes: "Axes", most: float) -> None:
    # The longest bar leaves room for its label.
    axes.set_xlim(0, max(most, 1e-9) * 1.3)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
