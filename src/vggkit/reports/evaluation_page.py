"""The report: how good a Classifier is, where it errs, and how it came about, as a page that is one file."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from vggkit import __version__
from vggkit.evaluation.comparison import PairedComparison
from vggkit.evaluation.evaluation import ClassFigures, Evaluation
from vggkit.files import write_text
from vggkit.images.dataset import ImageSample
from vggkit.reports.evaluation_charts import draw_curves, draw_reliability, draw_withholding
from vggkit.reports.pages.rendering import render_page
from vggkit.reports.pages.thumbs import Thumb, find_folder, make_thumb, split_name, split_place
from vggkit.reports.tables import describe_seconds
from vggkit.weights.card import read_entry

MATRIX_CLASSES: Final = 24
"""Up to which the confusion matrix is drawn; beyond, its largest entries are listed."""
CLASSES_AT_ONCE: Final = 24
"""Longer lists show the worst classes, and unfold."""
WORST: Final = 12
PAIRS: Final = 12
"""Confusions that are listed."""
MISTAKES_AT_ONCE: Final = 12
MOST_MISTAKES: Final = 36
MOST_CHANGES: Final = 24
"""Images that only one of two Classifiers has right, that are drawn."""
HEADLINES: Final = (
    ("top5", "Top-5 accuracy", "the right class is among the best five"),
    ("macro_f1", "F1, mean of the classes", "weighs small classes as much as large ones"),
    ("macro_recall", "Balanced accuracy", "mean recall of the classes"),
    ("roc_auc", "ROC-AUC", "mean of each class against all others; 50 % is guessing"),
    ("average_precision", "Average precision", "mean of each class against all others"),
    ("ece", "Calibration error (ECE)", "how far probabilities are from how often answers are right"),
    ("loss", "Loss", "mean cross-entropy in nats"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """How the Classifier came about; any of it may be unknown."""

    history: Sequence[Mapping[str, float]] = ()
    """Rows of `metrics.csv`: epoch, train_loss, val_loss, val_top1 …"""
    best_epoch: int | None = None
    """The one that was kept."""
    provenance: Mapping[str, Any]
    """The Classifier's."""
    steps: Sequence[tuple[str, str]] = ()
    """What may come next, and the command for it."""


def write_report(
    evaluations: Sequence[Evaluation],
    path: str | Path,
    *,
    images: Iterable[ImageSample],
    story: Story,
    comparisons: Sequence[PairedComparison] = (),
) -> None:
    """Write the report: no network, no scripts, the images inside.

    Args:
        evaluations: The last one is shown in full, all of them in the table where there are several.
        path: An .html file.
        images: What was measured on, for those that are shown; mistakes are decoded anew.
        story: How the Classifier came about.
        comparisons: Pairs among the evaluations.

    Raises BadOutput.
    """
    shown = evaluations[-1]
    gallery = _Gallery(shown, images)
    write_text(
        path,
        render_page(
            "report.html",
            {
                "version": __version__,
                "written": datetime.now().astimezone(),
                "evaluation": shown,
                "evaluations": evaluations,
                "comparisons": [(each, gallery.show_changes(each)) for each in comparisons],
                "place": split_place(shown.data),
                "split": shown.split,
                "hits": int(shown.predictions.right.sum()),
                "headlines": _list_headlines(shown),
                "curves": draw_curves(story.history, story.best_epoch),
                "matrix": Matrix.of(shown) if len(shown.labels) <= MATRIX_CLASSES else None,
                "pairs": list_pairs(shown),
                "classes": _sort_classes(shown),
                "worst": WORST if len(shown.labels) > CLASSES_AT_ONCE else len(shown.labels),
                "mistakes": gallery.show_mistakes(),
                "mistakes_at_once": MISTAKES_AT_ONCE,
                "wrong": int((~shown.predictions.right).sum()),
                "folder": gallery.folder,
                "reliability": draw_reliability(shown),
                "withholding": draw_withholding(shown),
                "facts": list_facts(story.provenance),
                "recipe": read_entry(story.provenance, "recipe"),
                "findings": story.provenance.get("findings"),
                "counts": read_entry(story.provenance, "data", "pictures"),
                "steps": story.steps,
            },
        ),
    )


class Headline(NamedTuple):
    """A figure with its interval."""

    name: str
    note: str
    value: float
    low: float | None
    high: float | None
    is_share: bool


def _list_headlines(evaluation: Evaluation) -> list[Headline]:
    found = []
    for name, title, note in HEADLINES:
        value = getattr(evaluation, name)
        if value is None or (name == "top5" and len(evaluation.labels) <= 5):
            continue
        low, high = evaluation.intervals.get(name, (None, None))  # type: ignore[call-overload]
        found.append(Headline(title, note, value, low, high, name != "loss"))
    return found


def _sort_classes(evaluation: Evaluation) -> list[ClassFigures]:
    """In order while they are few, else the worst first; those without images last."""
    if len(evaluation.labels) <= CLASSES_AT_ONCE:
        return list(evaluation.classes)
    return sorted(evaluation.classes, key=lambda each: (not each.support, each.f1))


class Pair(NamedTuple):
    """Images of one class that were taken for another."""

    label: str
    given: str
    n: int
    share: float
    """Of the images of the class."""


def list_pairs(evaluation: Evaluation) -> list[Pair]:
    """The most frequent confusions."""
    counts = np.asarray(evaluation.confusion)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [
        Pair(evaluation.labels[row], evaluation.labels[column], int(n), float(n / counts[row].sum()))
        for row, column in zip(rows, columns, strict=True)
        if (n := wrong[row, column])
    ]


class Cell(NamedTuple):
    """A field of the confusion matrix."""

    n: int
    strength: int
    """Percent of the row."""
    right: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusion matrix, a row and a column for each class."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Matrix":
        """That of an evaluation."""
        rows = []
        for number, counts in enumerate(evaluation.confusion):
            total = sum(counts) or 1
            cells = tuple(Cell(n, round(100 * n / total), place == number) for place, n in enumerate(counts))
            rows.append((evaluation.labels[number], cells))
        return cls(evaluation.labels, tuple(rows))


class Exhibit(NamedTuple):
    """An image on the page with what was said of it."""

    path: str
    pieces: list[str]
    thumb: Thumb
    label: str
    given: str
    chance: float | None
    """Probability of what was given."""
    own: float | None
    """Probability of the right class."""


class _Gallery:
    """The images that are shown."""

    def __init__(self, evaluation: Evaluation, images: Iterable[ImageSample]) -> None:
        self._answers = evaluation.predictions
        self._images = {image.path: image for image in images}
        self.folder = find_folder(evaluation.data, self._answers.paths)

    def show_mistakes(self) -> list[Exhibit]:
        """Wrong answers, the surest first."""
        predictions = self._answers
        wrong = np.flatnonzero(~predictions.right)
        order = wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:MOST_MISTAKES]
        return [
            self._show(
                predictions.paths[place],
                predictions.labels[predictions.targets[place]],
                predictions.labels[predictions.given[place]],
                float(predictions.confidences[place]),
                float(np.exp(-predictions.losses[place])),
            )
            for place in order
        ]

    def show_changes(self, comparison: PairedComparison) -> list[Exhibit]:
        """Images that only one of two has right."""
        return [
            self._show(each.path, each.label, f"{each.first} → {each.second}", None, None)
            for each in comparison.changes[:MOST_CHANGES]
        ]

    def _show(self, path: str, label: str, given: str, chance: float | None, own: float | None) -> Exhibit:
        image = self._images.get(path)
        thumb = Thumb(None, False) if image is None else make_thumb(image)
        return Exhibit(path, split_name(path.removeprefix(self.folder)), thumb, label, given, chance, own)


def list_facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of how the Classifier came about."""
    machine = read_entry(provenance, "machine")
    weights = provenance.get("weights")
    seconds, memory = provenance.get("seconds"), provenance.get("peak_memory_bytes")
    found = {
        "Trained on": str(read_entry(provenance, "data").get("name", "")),
        "Began with": f"weights of {weights.get('file') or weights.get('source', 'a file')}"
        if isinstance(weights, Mapping)
        else "random weights"
        if provenance.get("recipe")
        else "",
        "Begun": str(provenance.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        "Duration": describe_seconds(float(seconds)) if seconds else "",
        "Memory at most": f"{memory / 1e9:.2f} GB" if memory else "",
        "Hardware": str(machine.get("device", "")),
        "System": ", ".join(
            f"{name} {machine[key]}" if name else str(machine[key])
            for name, key in (("", "system"), ("torch", "torch"), ("Python", "python"))
            if key in machine
        ),
        "Licence of the weights": str(weights.get("licence", "")) if isinstance(weights, Mapping) else "",
    }
    return [(name, value) for name, value in found.items() if value]


def suggest_steps(model: str | Path, data: str, *, is_head_alone: bool = False) -> list[tuple[str, str]]:
    """What may come after a training, perhaps of the head alone, or a measurement."""
    quoted, place = shlex.quote(str(model)), shlex.quote(data)
    return [
        ("Ask it what an image shows", f"vggkit predict {quoted} IMAGE…"),
        (
            "Have it say “unknown” where it is not sure enough, so that about 95 % of what is left is right",
            f"vggkit evaluate {quoted} {place} --wanted-precision 0.95 --calibrate",
        ),
        (
            "Look for labels that may be wrong, with its help",
            f"vggkit check {place} --model {quoted} --html findings.html",
        ),
        (
            "Look at each image several times, as the paper did",
            f"vggkit evaluate {quoted} {place} --protocol multi-crop",
        )
        if not is_head_alone
        else ("Learn all layers, beginning with this recipe", f"vggkit train --config {quoted} --trainable all"),
    ]
