"""An Evaluation as tables for the terminal: metrics with their intervals, metrics per class, remarks."""

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vggkit.evaluation.comparison import PairedComparison
from vggkit.evaluation.evaluation import ClassMetrics, Evaluation, FigureName
from vggkit.reports.terminal import stack_lines, write_line

CLASSES_SHOWN: Final = 24
WORST: Final = 10
CHANGES_SHOWN: Final = 5
FIGURES: Final[tuple[tuple[FigureName, str], ...]] = (
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("macro_f1", "macro F1"),
    ("macro_recall", "balanced accuracy"),
    ("roc_auc", "ROC AUC"),
    ("average_precision", "average precision"),
    ("ece", "calibration error (ECE)"),
    ("loss", "cross-entropy (nats)"),
)
LABEL_FIGURES: Final[tuple[tuple[FigureName, str], ...]] = (
    ("average_precision", "mAP"),
    ("macro_f1", "macro F1"),
    ("micro_f1", "micro F1"),
    ("exact_match", "exact match"),
    ("top1", "first label right"),
    ("roc_auc", "ROC AUC"),
    ("ece", "calibration error (ECE)"),
    ("loss", "binary cross-entropy (nats)"),
)
"""The same for several labels an image."""


def draw_evaluation(evaluation: Evaluation) -> RenderableType:
    """An Evaluation for `rich.print`, readable from 80 columns on."""
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
    for note in (*_describe_excluded(evaluation), *evaluation.notes):
        parts += [write_line(("! ", "yellow"), note)]
    return Group(*parts)


def _describe_excluded(evaluation: Evaluation) -> list[str]:
    count = len(evaluation.unreadable)
    return [f"{count:,} unreadable {'image' if count == 1 else 'images'} excluded"] if count else []


def _draw_figures(evaluation: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="bold")
    table.add_column(style="dim")
    for name, title in FIGURES if evaluation.task == "single-label" else LABEL_FIGURES:
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
            more = " (95 % CI)" if name == evaluation.main_figure else ""
            table.add_row(title, f"{100 * value:.1f} %", ends + more)
    temperature = evaluation.calibration.temperature
    before = evaluation.calibration.ece_before
    if temperature != 1:
        without = "" if before is None else f"calibration error without it {100 * before:.1f} %"
        table.add_row("temperature", f"{temperature:.3g}", without)
    return table


def _draw_classes(evaluation: Evaluation) -> Table:
    """The metrics of each class; of many classes those with the lowest F1."""
    classes: Sequence[ClassMetrics] = evaluation.classes
    many = len(classes) > CLASSES_SHOWN
    if many:
        classes = sorted((each for each in classes if each.support), key=lambda each: each.f1)[:WORST]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"lowest F1 of {len(evaluation.classes):,}" if many else "class", no_wrap=True, max_width=28)
    several = evaluation.task == "multi-label"
    for name in ("support", "precision", "recall", "F1", "AUC", "AP", *(["from"] if several else ())):
        table.add_column(name, justify="right")
    for each in classes:
        if not each.support:
            table.add_row(
                write_line(each.label),
                write_line("0", style="yellow"),
                *[write_line("–", style="dim")] * (5 + several),
            )
            continue
        figures = [each.precision, each.recall, each.f1, each.roc_auc, each.average_precision]
        figures += [each.threshold] if several else []
        shown = ["–" if value is None else f"{100 * value:.1f}" for value in figures]
        table.add_row(write_line(each.label), f"{each.support:,}", *shown)
    return table


def _describe_rejection(evaluation: Evaluation) -> Text:
    found = evaluation.rejection
    assert found is not None
    if found.precision is None or found.precision_interval is None:
        return write_line(
            f"below a confidence of {found.threshold:.4g} predictions are rejected as unknown: here all of them"
        )
    low, high = (100 * end for end in found.precision_interval)
    wanted = "" if found.wanted_precision is None else f" (wanted: {100 * found.wanted_precision:g})"
    return write_line(
        f"below a confidence of {found.threshold:.4g} predictions are rejected as unknown: "
        f"{100 * found.coverage:.1f} % of the images are accepted, and {100 * found.precision:.1f} % of these are "
        f"classified correctly{wanted}, 95 % CI {low:.1f} to {high:.1f}"
    )


def draw_several(evaluations: Sequence[Evaluation], comparisons: Sequence[PairedComparison]) -> RenderableType:
    """Several Classifiers and their ensemble, each with its protocol, and the pairwise comparisons."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("model", overflow="fold", max_width=34)
    several = evaluations[0].task == "multi-label"
    for name in ("mAP (95 % CI)" if several else "top-1 (95 % CI)", "top-5", "macro F1", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in evaluations:
        ends = each.intervals.get(each.main_figure)
        between = "" if ends is None else f" ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"
        accuracy = write_line((f"{100 * getattr(each, each.main_figure):.1f}", "bold"), (between, "dim"))
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
            line = f"  {path}: true {change.label}, predicted {change.first} → {change.second}"
            parts.append(write_line(line, style="dim", overflow="fold"))
        if len(pair.changes) > CHANGES_SHOWN:
            parts.append(write_line(f"  … and {len(pair.changes) - CHANGES_SHOWN:,} more", style="dim"))
    for note in (
        *_describe_excluded(evaluations[-1]),
        *dict.fromkeys(n for each in evaluations for n in each.notes),
    ):
        parts += [write_line(("! ", "yellow"), note)]
    return Group(*parts)
