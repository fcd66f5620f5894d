"""Plots of the records by matplotlib, without a display.

The colours are those of Okabe and Ito, which remain distinct for people with colour vision deficiency.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vggkit.errors import BadOutput, MissingExtra
from vggkit.escaping import escape_controls
from vggkit.files import demand_writable, whole_file
from vggkit.models.summary import LayerSummary, Summary
from vggkit.reports.tables import decimal_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PlotEnding = Literal["png", "pdf", "svg"]
"""File formats of plots."""

BLUE: Final = "#0072b2"
ORANGE: Final = "#d55e00"
INK: Final = "#222222"
PALE_INK: Final = "#767676"
BAND: Final = "#f3f3f3"

FONT: Final = "DejaVu Sans"
"""The font that comes with matplotlib."""
OTHER_FONTS: Final = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Micro Hei", "Hiragino Sans"),
    *("PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
)
"""Fonts with letters that it lacks, used where they are installed."""
LONGEST_NAME: Final = 40
"""Characters of a name in a plot."""
STYLE: Final[Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # the name of a class may be $x_$
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": PALE_INK,
    "ytick.color": PALE_INK,
    "xtick.labelcolor": PALE_INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "vggkit",
}
# No dates inside: the same record gives the same file.
FORMATS: Final[dict[str, dict[str, Any]]] = {
    ".png": {"format": "png", "dpi": 160},
    ".pdf": {"format": "pdf", "metadata": {"CreationDate": None}},
    ".svg": {"format": "svg", "metadata": {"Date": None}},
}


def demand_drawable(path: Path) -> None:
    """Raise BadOutput or MissingExtra where a plot cannot be written to a path, before work is spent on it."""
    if path.suffix.lower() not in FORMATS:
        raise BadOutput(f"{path}: the name of a plot must end in {', '.join(FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra.of("matplotlib", "plotting", "train")
    demand_writable(path)


def name_plots(folder: Path, ending: PlotEnding) -> list[Path]:
    """The paths of the plots of an evaluation: reliability diagram, F1 of the classes, confusion matrix."""
    return [folder / f"{name}.{ending}" for name in ("reliability", "classes", "confusion_matrix")]


@contextmanager
def draw_to(path: str | Path, *, width_inches: float, height_inches: float) -> "Iterator[Figure]":
    """An empty matplotlib figure, which is written to `path` as a whole when the body ends without an error.

    Raises BadOutput where the suffix is not .png, .pdf or .svg or the place cannot be written to,
    MissingExtra where matplotlib is absent.
    """
    saving = FORMATS.get(Path(path).suffix.lower())
    if saving is None:
        raise BadOutput(f"{path}: the name of a plot must end in {', '.join(FORMATS)}")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as absent:
        raise MissingExtra.of("matplotlib", "plotting", "train") from absent
    with matplotlib.rc_context({**STYLE, "font.family": list(_list_fonts())}), whole_file(path) as beside:
        margins = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.02)
        figure = Figure(figsize=(width_inches, height_inches), layout=margins)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(beside, **saving)


def write_name(name: str, *, longest: int = LONGEST_NAME) -> str:
    r"""A name for a plot: on one line, shortened in the middle, letters that no installed font has as `\u732b`."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    shown = escape_controls(name)
    if not shown.isascii():
        fonts = [get_font(findfont(FontProperties(family=family))) for family in _list_fonts()]
        shown = "".join(
            each
            if any(font.get_char_index(ord(each)) for font in fonts)
            else each.encode("unicode_escape").decode("ascii")
            for each in shown
        )
    before = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[:before]}…{shown[before + 1 - longest :]}"


@cache
def _list_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return FONT, *(name for name in OTHER_FONTS if name in installed)


def plot_summary(summary: Summary, path: str | Path) -> None:
    """Bars of each layer's parameters and multiply-adds side by side, as PNG, PDF or SVG by the suffix.

    Layers that have neither have no bar, and batch norm is counted with its convolution.
    Raises BadOutput and MissingExtra, see `draw_to`.
    """
    names, parameters, multiply_adds, blocks = _bars(summary.layers)
    height = 1.35 + 0.25 * len(names)
    with draw_to(path, width_inches=9.0, height_inches=height) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        totals, (tall, wide) = summary.totals, summary.input_pixels
        figure.suptitle(
            f"{summary.description}, {tall}×{wide} pixels",
            x=0.012,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        left.set_title(f"parameters: {totals.parameters:,}", color=BLUE)
        right.set_title(f"multiply-adds: {decimal_unit(totals.multiply_adds)}", color=ORANGE)
        _draw_bars(left, parameters, BLUE)
        _draw_bars(right, multiply_adds, ORANGE)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        if any(layer.kind == "bn" for layer in summary.layers):
            figure.supxlabel(
                "batch norm is included in its convolution", fontsize=8, color=PALE_INK, x=0.012, ha="left"
            )
        for axes in (left, right):
            _band_blocks(axes, blocks)


def _bars(layers: tuple[LayerSummary, ...]) -> tuple[list[str], list[int], list[int], list[str]]:
    """Name, parameters, multiply-adds and block of every bar."""
    names: list[str] = []
    parameters: list[int] = []
    multiply_adds: list[int] = []
    for layer in layers:
        if layer.kind == "bn":
            parameters[-1] += layer.parameters
        elif layer.parameters:
            names.append(layer.name)
            parameters.append(layer.parameters)
            multiply_adds.append(layer.multiply_adds)
    # conv3_2 is of block 3; every fully connected layer is of the head.
    blocks = [name.removeprefix("conv").split("_")[0] if name.startswith("conv") else "head" for name in names]
    return names, parameters, multiply_adds, blocks


def _draw_bars(axes: "Axes", counts: list[int], colour: str) -> None:
    total, largest = sum(counts), max(counts)
    axes.barh(range(len(counts)), counts, height=0.66, color=colour, zorder=2)
    for place, count in enumerate(counts):
        share = count / total
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        axes.annotate(
            f"{decimal_unit(count)} · {percent}",
            (count, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            zorder=3,
        )
    # The longest bar leaves room for its label.
    axes.set_xlim(0, largest * 1.42)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _band_blocks(axes: "Axes", blocks: list[str]) -> None:
    """A grey background for every second block."""
    for number, block in enumerate(dict.fromkeys(blocks)):
        if number % 2:
            first = blocks.index(block)
            last = first + blocks.count(block)
            axes.axhspan(first - 0.5, last - 0.5, color=BAND, linewidth=0, zorder=0)
