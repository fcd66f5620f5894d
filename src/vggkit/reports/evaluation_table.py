"""An Evaluation for the terminal: the headline with its protocol, class by class, and what to mind."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggkit.evaluation.comparison import PairedComparison
from vggkit.evaluation.evaluation import ClassFigures, Evaluation, FigureName
from vggkit.reports.terminal import stack_lines, write_line

CLASSES_SHOWN: Final = 24
WORST: Final = 10
CHANGES_SHOWN: Final = 5
FIGURES: Final[tuple[tuple[FigureName, str], ...]] = (
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("macro_f1", "F1, mean of classes"),
    ("macro_recall", "balanced accuracy"),
    ("roc_auc", "ROC-AUC"),
    ("average_precision", "average precision"),
    ("ece", "calibration error"),
    ("loss", "loss (nats)"),
)


def draw_evaluation(evaluation: Evaluation) -> RenderableType:
    """What `rich.print` shows of an Evaluation, right at 80 columns."""
    head = stack_lines(
        write_line((evaluation.model, "bold"), f" on {evaluation.source}, n = {evaluation.n:,}"),
        write_line((evaluation.protocol, "dim")),
    )
    parts: list[RenderableType] = [
        head,
        write_line(),
        _draw_figures(evaluation),
        write_line(),
        _draw_classes(evaluation),
    ]
    if evaluation.rejection is not None:
        parts += [write_line(), _describe_rejection(evaluation)]
    for note in (*_say_left_out(evaluation), *evaluation.notes):
        parts += [write_line(("! ", "yellow"), note)]
    return Group(*parts)


def _say_left_out(evaluation: Evaluation) -> list[str]:
    count = len(evaluation.unreadable)
    return [f"left out, for they cannot be read: {count:,} of the images"] if count else []


def _draw_figures(evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    for name, title in FIGURES:
        value = getattr(evaluation, name)
        if value is None or (name == "top5" and len(evaluation.labels) <= 5):
            continue
        interval = evaluation.intervals.get(name)
        if interval is None:
            table.add_row(title, f"{value:.4f}" if name == "loss" else f"{100 * value:.1f} %", "")
            continue
        low, high = interval
        if name == "loss":
            table.add_row(title, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
        else:
            ends = f"{100 * low:.1f} to {100 * high:.1f}"
            more = " (95 % intervals)" if name == "top1" else ""
            table.add_row(title, f"{100 * value:.1f} %", ends + more)
    temperature = evaluation.calibration.temperature
    before = evaluation.calibration.ece_before
    if temperature != 1:
        said = "" if before is None else f"calibration error {100 * before:.1f} % without it"
        table.add_row("temperature", f"{temperature:.3g}", said)
    return table


def _draw_classes(evaluation: Evaluation) -> Table:
    """Class by class; of many the worst."""
    classes: Sequence[ClassFigures] = evaluation.classes
    many = len(classes) > CLASSES_SHOWN
    if many:
        classes = sorted((each for each in classes if each.support), key=lambda each: each.f1)[:WORST]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"worst of {len(evaluation.classes):,}" if many else "class", no_wrap=True, max_width=28)
    for name in ("n", "precision", "recall", "F1", "AUC", "AP"):
        table.add_column(name, justify="right")
    for each in classes:
        if not each.support:
            table.add_row(
                write_line(each.label), write_line("0", style="yellow"), *[write_line("–", style="dim")] * 5
            )
            continue
        figures = (each.precision, each.recall, each.f1, each.roc_auc, each.average_precision)
        shown = ["–" if value is None else f"{100 * value:.1f}" for value in figures]
        table.add_row(write_line(each.label), f"{each.support:,}", *shown)
    return table


def _describe_rejection(evaluation: Evaluation) -> Text:
    found = evaluation.rejection
    assert found is not None
    if found.precision is None or found.precision_interval is None:
        return write_line(
            f"below a probability of {found.threshold:.4g} the answer is unknown: for all images here"
        )
    low, high = (100 * end for end in found.precision_interval)
    wanted = "" if found.wanted_precision is None else f" (wanted: {100 * found.wanted_precision:g})"
    return write_line(
        f"below a probability of {found.threshold:.4g} the answer is unknown: {100 * found.coverage:.1f} % of the "
        f"images get one, and {100 * found.precision:.1f} % of these are right{wanted}, 95 % interval {low:.1f} "
        f"to {high:.1f}"
    )


def draw_several(evaluations: Sequence[Evaluation], comparisons: Sequence[PairedComparison]) -> RenderableType:
    """Classifiers beside each other and as one, each with its protocol; then whether they differ."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", overflow="fold", max_width=34)
    for name in ("top-1 (95 %)", "top-5", "F1", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in evaluations:
        low, high = each.top1_interval
        accuracy = write_line((f"{100 * each.top1:.1f}", "bold"), (f" ({100 * low:.1f}–{100 * high:.1f})", "dim"))
        table.add_row(
            write_line(each.model),
            accuracy,
            f"{100 * each.top5:.1f}" if len(each.labels) > 5 else "–",
            f"{100 * each.macro_f1:.1f}",
            f"{each.loss:.4f}",
        )
    first = evaluations[0]
    folder = first.data.rstrip("/") + "/"
    parts: list[RenderableType] = [
        write_line(f"on {first.source}, n = {first.n:,}"),
        write_line(),
        table,
        write_line(),
    ]
    for each in evaluations:
        parts.append(write_line((f"{each.model}  ", "dim bold"), (each.protocol, "dim")))
    for pair in comparisons:
        parts += [write_line(), write_line(pair.describe())]
        for change in pair.changes[:CHANGES_SHOWN]:
            path = change.path.removeprefix(folder)
            said = f"  {path}: is {change.label}, {change.first} → {change.second}"
            parts.append(write_line(said, style="dim", overflow="fold"))
        if len(pair.changes) > CHANGES_SHOWN:
            parts.append(write_line(f"  … and {len(pair.changes) - CHANGES_SHOWN:,} more", style="dim"))
    for note in (*_say_left_out(evaluations[-1]), *dict.fromkeys(n for each in evaluations for n in each.notes)):
        parts += [write_line(("! ", "yellow"), note)]
    return Group(*parts)
