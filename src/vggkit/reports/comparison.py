"""The comparison of several training runs, as a record, a table and a plot of their curves."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggkit.reports.plots import INK, PALE_INK, draw_to, write_name
from vggkit.reports.tables import describe_seconds
from vggkit.reports.terminal import write_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, without the palest.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)
STROKES: Final = ("-", "--", ":")
"""The line style changes after each round of colours."""
WIDE_COLUMNS: Final = 104


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One training run, as read from its folder."""

    name: str
    """The name of its folder; the whole path where two folders have the same name."""
    directory: str
    """Its folder."""
    model: str
    """Such as `vgg11_bn`."""
    head: str
    """fc, dense or pool."""
    trainable: str
    """Which layers were trained: head, top, all or gradual."""
    is_finished: bool
    """Whether it is finished; the metrics of an unfinished run are those of its best epoch so far."""
    idle_seconds: float
    """Seconds since a file in its folder was last written."""
    epochs: int
    """Planned number of epochs; 1 for a linear probe."""
    history: tuple[Mapping[str, float], ...]
    """The rows of `metrics.csv`."""
    best_epoch: int | None
    """The best epoch, whose weights are saved; None before the first epoch ended."""
    split: str
    """The split that the metrics were measured on: `val` or `test`."""
    data: str
    """The source of the images."""
    images: str | None
    """Digest of the images that the metrics were measured on."""
    n: int | None
    """Number of these images."""
    top1: float | None
    """Top-1 accuracy in [0, 1]; of several labels an image the mean average precision."""
    top1_interval: tuple[float, float] | None
    """95 % confidence interval of `top1`; Wilson's for an unfinished run of one label an image."""
    loss: float | None
    """Mean cross-entropy in nats."""
    seconds: float
    """Duration of the training so far."""
    peak_memory_bytes: int | None
    """Peak memory, where it was recorded."""
    figure: str = "top-1"
    """What `top1` is: top-1, or mAP where images have several labels."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several training runs, what differs in their configuration, and remarks; `vggkit compare` prints it."""

    runs: tuple[ComparedRun, ...]
    """The runs, in the order in which they were given."""
    differing: Mapping[str, tuple[Any, ...]]
    """The configuration fields that are not the same in all runs, with the value of each run."""
    notes: tuple[str, ...]
    """Remarks on the comparability of the metrics and the significance of differences."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "differing": {name: list(values) for name, values in self.differing.items()},
            "notes": list(self.notes),
        }


def draw_comparison(comparison: Comparison, *, width: int = 80) -> RenderableType:
    """A Comparison for `rich.print`: a row for each run, the differing fields, and remarks.

    Args:
        comparison: From `compare`.
        width: Characters of a line; from 104 on the kinds of heads and finer intervals are shown.
    """
    sections: list[RenderableType] = [_draw_runs(comparison.runs, wide=width >= WIDE_COLUMNS)]
    unfinished = [run for run in comparison.runs if not run.is_finished]
    if unfinished:
        sections += [write_line(), *(write_line(_describe_unfinished(run), style="yellow") for run in unfinished)]
    if comparison.differing:
        sections += [write_line(), _draw_differing(comparison)]
    elif len(comparison.runs) > 1:
        sections += [write_line(), write_line("the configurations are the same", style="dim")]
    for note in comparison.notes:
        sections += [write_line(), write_line(("! ", "yellow"), note)]
    return Group(*sections)


def _draw_runs(runs: Sequence[ComparedRun], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=36 if wide else 20)
    table.add_column("network", no_wrap=True)
    table.add_column("trains", no_wrap=True)
    figures = "/".join(dict.fromkeys(run.figure for run in runs))
    for name in (f"{figures} (95 % CI)", "n", "loss", "epoch", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    with_memory = any(run.peak_memory_bytes for run in runs)
    if with_memory:
        table.add_column("memory" if wide else "GB", justify="right", no_wrap=True)
    for run in runs:
        cells: list[RenderableType] = [
            write_line(run.name, style="" if run.is_finished else "yellow"),
            f"{run.model}, {run.head}" if wide else run.model,
            run.trainable,
            _accuracy(run, decimals=1 if wide else 0),
            "" if run.n is None else f"{run.n:,}",
            "" if run.loss is None else f"{run.loss:.3f}",
            "" if run.best_epoch is None else f"{run.best_epoch}/{run.epochs}",
            describe_seconds(run.seconds),
        ]
        memory = f"{run.peak_memory_bytes / 1e9:.1f}" if run.peak_memory_bytes else ""
        table.add_row(*cells, *([memory + " GB" * (wide and bool(memory))] if with_memory else []))
    return table


def _find_figure(row: Mapping[str, float]) -> float:
    """The validation figure of an epoch: of several labels an image the mAP."""
    return row.get("val_map", row["val_top1"])


def _accuracy(run: ComparedRun, *, decimals: int) -> Text:
    if run.top1 is None:
        return write_line()
    accuracy = (f"{100 * run.top1:.1f}", "bold")
    if run.top1_interval is None:
        return write_line(accuracy)
    low, high = (f"{100 * bound:.{decimals}f}" for bound in run.top1_interval)
    return write_line(accuracy, (f" ({low}–{high})", "dim"))


def _describe_unfinished(run: ComparedRun) -> str:
    epochs = f"{run.history[-1]['epoch'] if run.history else 0:.0f} of {run.epochs} epochs"
    return f"unfinished: {run.name}, {epochs}, last written {describe_seconds(run.idle_seconds)} ago"


def _draw_differing(comparison: Comparison) -> Table:
    """Each differing field with its values and the runs that have each; the most frequent value last."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=32)
    table.add_column(overflow="fold", style="dim")
    for field, values in comparison.differing.items():
        having: dict[str, list[str]] = {}
        for run, value in zip(comparison.runs, values, strict=True):
            having.setdefault(describe_value(value), []).append(run.name)
        order = sorted(having, key=lambda value: len(having[value]))
        usual = order[-1] if len(having[order[-1]]) > len(having[order[-2]]) else None
        for number, value in enumerate(order):
            names = "the others" if value == usual else ", ".join(having[value])
            table.add_row("" if number else field.replace("_", " "), write_line(value), write_line(names))
    return table


def describe_value(value: object) -> str:
    """A configuration value in words."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plot_comparison(comparison: Comparison, path: str | Path) -> None:
    """Plot the losses and the validation accuracy of several runs, by epoch and by time.

    Args:
        comparison: The runs.
        path: A .png, .pdf or .svg file.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    runs = [run for run in comparison.runs if run.history]
    longest = max((run.history[-1]["epoch"] for run in runs), default=1)
    unit, scale = _choose_unit(max((_times(run)[-1] for run in runs), default=1.0))
    legend_rows = -(-len(runs) // 3)
    with draw_to(path, width_inches=9.0, height_inches=6.2 + 0.2 * legend_rows) as figure:
        grid = figure.subplots(2, 2, sharey="row", sharex="col")
        named = {}
        for number, run in enumerate(runs):
            colour = COLOURS[number % len(COLOURS)]
            stroke = STROKES[number // len(COLOURS) % len(STROKES)]
            label = write_name(run.name) + ("" if run.is_finished else " (unfinished)")
            epochs, times = [row["epoch"] for row in run.history], [time / scale for time in _times(run)]
            for column, places in enumerate((epochs, times)):
                for values, upper, pale in (
                    ([row["train_loss"] for row in run.history], True, True),
                    ([row["val_loss"] for row in run.history], True, False),
                    ([100 * _find_figure(row) for row in run.history], False, False),
                ):
                    (drawn,) = grid[0 if upper else 1][column].plot(
                        places,
                        values,
                        color=colour,
                        linestyle=stroke,
                        linewidth=1.0 if pale else 1.8,
                        alpha=0.45 if pale else 1.0,
                        marker="o" if len(places) == 1 else "",
                        fillstyle="none" if pale else "full",
                    )
                if run.best_epoch is not None:
                    best = epochs.index(run.best_epoch)
                    grid[1][column].plot(
                        [places[best]],
                        [100 * _find_figure(run.history[best])],
                        marker="o",
                        markersize=7,
                        color=colour,
                    )
            named[drawn] = label
        grid[0][0].set_title("Cross-entropy loss")
        grid[0][0].set_ylabel("loss (nats)")
        grid[1][0].set_title("Validation accuracy")
        grid[1][0].set_ylabel(f"{'/'.join(dict.fromkeys(run.figure for run in runs))} (%)")
        grid[1][0].set_xlabel("epoch")
        grid[1][1].set_xlabel(f"time ({unit})")
        first = min((run.history[0]["epoch"] for run in runs), default=1)
        grid[1][0].set_xlim(first - 0.5, longest + 0.5)
        grid[1][1].set_xlim(left=0)
        grid[1][0].xaxis.get_major_locator().set_params(integer=True)
        grid[0][0].set_ylim(bottom=0)
        _set_remark(grid[0][1], "strong: validation, pale: training")
        _set_remark(grid[1][1], "dot: best epoch")
        for axes in grid.flat:
            axes.grid(axis="y", color="#eeeeee")
        if runs:
            # Given explicitly: matplotlib leaves out names that begin with an underscore.
            figure.legend(list(named), list(named.values()), loc="outside lower left", ncols=3, frameon=False)


def _set_remark(axes: "Axes", text: str) -> None:
    axes.set_title(text, loc="right", fontsize=8, fontweight="normal", color=PALE_INK)


def _times(run: ComparedRun) -> list[float]:
    """Seconds from the start to the end of each epoch."""
    times, now = [], 0.0
    for row in run.history:
        now += row["seconds"]
        times.append(now)
    return times


def _choose_unit(seconds: float) -> tuple[str, float]:
    if seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)
