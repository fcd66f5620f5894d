"""Tables for the terminal, drawn with rich: right at 80 columns, wider where there is room, plain in a pipe."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from rich.box import Box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from vggkit.models.summary import Summary
from vggkit.reports.terminal import stack_lines, write_line

WIDE_COLUMNS: Final = 104
BAR_CELLS: Final = 12
PARAMETER_BAR: Final = 4
MULTIPLY_ADD_BAR: Final = 7
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
HEAD_BEGINS: Final = ("statistics", "adaptive pool")
# No frame: one rule under the header, one over the totals, a light one behind each block.
RULES: Final = Box("    \n    \n ── \n    \n ╌╌ \n ── \n    \n    \n")
ASCII_RULES: Final = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """A `Summary` for `rich.print`: numbers at 80 columns, bars beside the shares from 104 on."""

    summary: Summary
    """The Summary."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the table and what its columns mean, as wide as the console allows."""
        plain = options.ascii_only
        yield _title(self.summary, plain=plain)
        yield write_line()
        yield _table(self.summary, wide=options.max_width >= WIDE_COLUMNS, plain=plain)
        yield write_line()
        yield _notes(self.summary)


def draw_summary(summary: Summary) -> SummaryTable:
    """The table of a Summary for `rich.print`: a row for each layer, rules between blocks, totals below."""
    return SummaryTable(summary)


def _title(summary: Summary, *, plain: bool) -> Text:
    sides = _shape(summary.input_pixels, plain=plain)
    return write_line((summary.description, "bold"), f", {sides} pixels")


def _table(summary: Summary, *, wide: bool, plain: bool) -> Table:
    totals = summary.totals
    # One unit per column, so that digits can be compared.
    adds_unit, adds_scale = _unit(totals.multiply_adds, 1000, ("", "k", "M", "G"))
    memory_unit, memory_scale = _unit(totals.activation_bytes, 1024, ("B", "KiB", "MiB"))
    columns = [
        Column("layer", "total", no_wrap=True, style="bold"),
        _numbers("output", _shape(("C", "H", "W"), plain=plain)),
        _numbers("parameters", footer=f"{totals.parameters:,}"),
        _numbers("share", "%", footer="100.0"),
        _numbers("mult-adds", adds_unit, footer=_fixed(totals.multiply_adds, adds_scale)),
        _numbers("share", "%", footer="100.0"),
        _numbers("memory", memory_unit, footer=_fixed(totals.activation_bytes, memory_scale)),
        _numbers("sees", "pixels"),
    ]
    if wide:
        columns.insert(PARAMETER_BAR, Column(width=BAR_CELLS, no_wrap=True, style="blue"))
        columns.insert(MULTIPLY_ADD_BAR, Column(width=BAR_CELLS, no_wrap=True, style="yellow"))
    table = Table(
        *columns,
        box=ASCII_RULES if plain else RULES,
        safe_box=False,
        border_style="dim",
        show_footer=True,
        show_edge=False,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        header_style="bold",
        footer_style="bold",
    )
    following = [layer.kind for layer in summary.layers[1:]]
    for layer, after in zip_longest(summary.layers, following):
        field = layer.receptive_field_pixels
        cells = [
            layer.name,
            _shape(layer.output_shape, plain=plain),
            f"{layer.parameters:,}" if layer.parameters else "",
            _percent(layer.parameter_share),
            _fixed(layer.multiply_adds, adds_scale) if layer.multiply_adds else "",
            _percent(layer.multiply_add_share),
            _fixed(layer.activation_bytes, memory_scale),
            "all" if field is None else f"{field:,}",
        ]
        if wide:
            cells.insert(PARAMETER_BAR, _bar(layer.parameter_share, plain=plain))
            cells.insert(MULTIPLY_ADD_BAR, _bar(layer.multiply_add_share, plain=plain))
        table.add_row(*cells, end_section=layer.kind == "pool" or after in HEAD_BEGINS)
    return table


def _numbers(title: str, unit: str = "", *, footer: str = "") -> Column:
    return Column(stack_lines(title, unit), footer, justify="right", no_wrap=True)


def _notes(summary: Summary) -> Text:
    weights = binary_unit(summary.totals.weight_bytes)
    return stack_lines(
        f"memory: each layer's output for one image, float32; all weights: {weights}",
        "sees: side of the square of the image that one value depends on",
        style="dim",
    )


def _shape(sides: Iterable[object], *, plain: bool) -> str:
    return ("x" if plain else "×").join(str(side) for side in sides)


def _percent(share: float) -> str:
    if not share:
        return ""
    return "<0.1" if share < 0.0005 else f"{100 * share:.1f}"


def _bar(share: float, *, plain: bool) -> str:
    """At most BAR_CELLS cells, in eighths of a cell where the terminal has them."""
    if plain:
        return "#" * round(share * BAR_CELLS)
    whole, eighth = divmod(round(share * BAR_CELLS * 8), 8)
    return "█" * whole + EIGHTHS[eighth].strip()


def _unit(count: int, step: int, names: tuple[str, ...]) -> tuple[str, int]:
    """The largest unit that leaves 1 or more of `count`, and how many make one."""
    power = 0
    while count >= step ** (power + 1) and power < len(names) - 1:
        power += 1
    return names[power], step**power


def _fixed(count: int, scale: int) -> str:
    return f"{count / scale:,.3f}" if scale > 1 else f"{count:,}"


def decimal_unit(count: int) -> str:
    """A count with its unit, k, M, G or T: `7.61 G`, `103 M`, `640`."""
    return _in_units(count, *_unit(count, 1000, ("", "k", "M", "G", "T")))


def binary_unit(size_bytes: int) -> str:
    """A size with its unit, B, KiB, MiB, GiB or TiB: `12.2 MiB`, `507 MiB`."""
    return _in_units(size_bytes, *_unit(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB")))


def describe_seconds(seconds: float) -> str:
    """A duration in a few characters: `48 s`, `13 min`, `2.5 h`."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{seconds / 3600:.1f} h"


def _in_units(count: int, unit: str, scale: int) -> str:
    """Three digits, or all digits before the point."""
    value = count / scale
    digits = 0 if scale == 1 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()
