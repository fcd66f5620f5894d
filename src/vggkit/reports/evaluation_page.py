"""The evaluation report: metrics, errors, calibration and training details, in one HTML file."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from vggkit import __version__
from vggkit.evaluation.comparison import PairedComparison
from vggkit.evaluation.evaluation import ClassMetrics, Evaluation
from vggkit.explanations.explanation import Explanation
from vggkit.files import write_text
from vggkit.images.dataset import ImageSample
from vggkit.reports.evaluation_charts import draw_coverage, draw_curves, draw_reliability
from vggkit.reports.pages.rendering import (
    Thumb,
    find_folder,
    make_heat,
    make_thumb,
    render_page,
    split_name,
    split_place,
)
from vggkit.reports.training_facts import list_facts, list_recipe, read_image_counts
from vggkit.task import Task

MATRIX_CLASSES: Final = 24
"""The confusion matrix is drawn for up to so many classes; for more, only its largest entries are listed."""
CLASSES_AT_ONCE: Final = 24
"""For more classes the worst are shown, and the others on request."""
WORST: Final = 12
PAIRS: Final = 12
"""Number of confusions that are listed."""
ERRORS_AT_ONCE: Final = 12
MOST_ERRORS: Final = 36
MOST_CHANGES: Final = 24
"""Images shown for each pair of models, classified correctly by only one of the two."""
HEADLINES: Final = (
    ("top5", "Top-5 accuracy", "the true class is among the five most probable"),
    ("macro_f1", "Macro F1", "unweighted mean of the F1 of all classes"),
    ("macro_recall", "Balanced accuracy", "unweighted mean of the recall of all classes"),
    ("roc_auc", "ROC AUC", "one-vs-rest, mean of the classes; 50 % is chance level"),
    ("average_precision", "Average precision", "one-vs-rest, mean of the classes"),
    ("ece", "Expected calibration error", "mean difference between confidence and accuracy"),
    ("loss", "Cross-entropy loss", "mean, in nats"),
)
LABEL_HEADLINES: Final = (
    ("macro_f1", "Macro F1", "unweighted mean of the F1 of all classes, at their thresholds"),
    ("micro_f1", "Micro F1", "F1 of all decisions on images and classes together"),
    ("exact_match", "Exact match", "share of images of which exactly the labels are predicted"),
    ("top1", "First label right", "share of images whose most probable class is one of theirs"),
    ("roc_auc", "ROC AUC", "mean of the classes; 50 % is chance level"),
    ("ece", "Expected calibration error", "mean difference between probability and frequency"),
    ("loss", "Binary cross-entropy loss", "mean of images and classes, in nats"),
)
"""The same for several labels an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The known facts of how the Classifier was trained; each field may be empty."""

    history: Sequence[Mapping[str, float]] = ()
    """Rows of `metrics.csv`, with the keys epoch, train_loss, val_loss and val_top1."""
    best_epoch: int | None = None
    """The best epoch, whose weights were saved."""
    provenance: Mapping[str, Any]
    """The Classifier's provenance."""
    steps: Sequence[tuple[str, str]] = ()
    """Suggested next steps: a description and a command each."""


def write_report(
    evaluations: Sequence[Evaluation],
    path: str | Path,
    *,
    images: Iterable[ImageSample],
    story: Story,
    comparisons: Sequence[PairedComparison] = (),
    explanations: Mapping[str, Explanation] = MappingProxyType({}),
) -> None:
    """Write the report as one HTML file with its images inside; it contains no scripts and loads nothing.

    Args:
        evaluations: One or more; the last is shown in full, and several are also compared in a table.
        path: The .html file to write.
        images: The evaluated images; those that are shown are decoded again.
        story: The known facts of the training.
        comparisons: Pairwise comparisons of the evaluations.
        explanations: Of wrong predictions, by their images' paths; those of the most confident errors are shown.

    Raises BadOutput where the file cannot be written.
    """
    shown = evaluations[-1]
    several = shown.task == "multi-label"
    gallery = _Gallery(shown, images, explanations)
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
                "main": _describe_main(shown),
                "several": several,
                "hits": int(shown.predictions.correct.sum()),
                "headlines": _list_headlines(shown),
                "curves": draw_curves(story.history, story.best_epoch),
                "matrix": Matrix.of(shown) if len(shown.labels) <= MATRIX_CLASSES and not several else None,
                "pairs": [] if several else list_pairs(shown),
                "classes": _sort_classes(shown),
                "worst": WORST if len(shown.labels) > CLASSES_AT_ONCE else len(shown.labels),
                "errors": gallery.show_errors(),
                "errors_at_once": ERRORS_AT_ONCE,
                "explained": next((each.source for each in explanations.values()), None),
                "wrong": int((~shown.predictions.correct).sum()),
                "folder": gallery.folder,
                "reliability": draw_reliability(shown),
                "coverage": None if several else draw_coverage(shown),
                "facts": list_facts(story.provenance),
                "recipe": list_recipe(story.provenance),
                "findings": story.provenance.get("findings"),
                "counts": read_image_counts(story.provenance),
                "steps": story.steps,
            },
        ),
    )


class Headline(NamedTuple):
    """A metric with its confidence interval."""

    name: str
    note: str
    value: float
    low: float | None
    high: float | None
    is_share: bool


def _describe_main(evaluation: Evaluation) -> Headline:
    """The figure at the top of the page."""
    name, n = evaluation.main_figure, evaluation.n
    value, (low, high) = getattr(evaluation, name), evaluation.intervals.get(name, (None, None))
    if evaluation.task == "multi-label":
        note = "the mean of the average precision of every class that images have, whatever the thresholds"
        return Headline(f"Mean average precision (mAP): {note}", "", value, low, high, True)
    hits = int(evaluation.predictions.correct.sum())
    what = f"Top-1 accuracy: {hits:,} of {n:,} images classified correctly"
    return Headline(what, "", value, low, high, True)


def _list_headlines(evaluation: Evaluation) -> list[Headline]:
    found = []
    for name, title, note in HEADLINES if evaluation.task == "single-label" else LABEL_HEADLINES:
        value = getattr(evaluation, name)
        if value is None or (name == "top5" and len(evaluation.labels) <= 5):
            continue
        low, high = evaluation.intervals.get(name, (None, None))  # type: ignore[call-overload]
        found.append(Headline(title, note, value, low, high, name != "loss"))
    return found


def _sort_classes(evaluation: Evaluation) -> list[ClassMetrics]:
    """Few classes in their order; many by increasing F1, those without images last."""
    if len(evaluation.labels) <= CLASSES_AT_ONCE:
        return list(evaluation.classes)
    return sorted(evaluation.classes, key=lambda each: (not each.support, each.f1))


class Pair(NamedTuple):
    """Images of one class that were predicted as another."""

    label: str
    predicted: str
    n: int
    share: float
    """Of the images of the class."""


def list_pairs(evaluation: Evaluation) -> list[Pair]:
    """The most frequent confusions, at most `PAIRS`."""
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
    """A cell of the confusion matrix."""

    n: int
    strength: int
    """Share of the row in percent."""
    correct: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusion matrix: a row for each true class and a column for each predicted one."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Matrix":
        """The matrix of an evaluation."""
        rows = []
        for number, counts in enumerate(evaluation.confusion):
            total = sum(counts) or 1
            cells = tuple(Cell(n, round(100 * n / total), place == number) for place, n in enumerate(counts))
            rows.append((evaluation.labels[number], cells))
        return cls(evaluation.labels, tuple(rows))


class Exhibit(NamedTuple):
    """An image on the page with its true and its predicted class."""

    path: str
    pieces: list[str]
    thumb: Thumb
    label: str
    predicted: str
    probability: float | None
    """Probability of the predicted class; None where it is not shown."""
    label_probability: float | None
    """Probability of the true class; None where it is not shown."""
    heat: str | None = None
    """A `data:` address of the image under the map of its explanation; None where it is not explained."""


class _Gallery:
    """The images that are shown."""

    def __init__(
        self, evaluation: Evaluation, images: Iterable[ImageSample], explanations: Mapping[str, Explanation]
    ) -> None:
        self._predictions, self._explanations = evaluation.predictions, explanations
        self._images = {image.name: image for image in images}
        self.folder = find_folder(evaluation.data, self._predictions.paths)

    def show_errors(self) -> list[Exhibit]:
        """Wrong predictions, those of the highest probability first."""
        predictions = self._predictions
        return [
            self._show(
                predictions.paths[place],
                predictions.name_target(place),
                predictions.name_predicted(place),
                *(
                    (None, None)  # the set of labels has no probability of its own
                    if predictions.task == "multi-label"
                    else (float(predictions.confidences[place]), float(np.exp(-predictions.losses[place])))
                ),
            )
            for place in predictions.list_confident_errors(MOST_ERRORS)
        ]

    def show_changes(self, comparison: PairedComparison) -> list[Exhibit]:
        """Images that only one of two models classifies correctly."""
        return [
            self._show(each.path, each.label, f"{each.first} → {each.second}", None, None)
            for each in comparison.changes[:MOST_CHANGES]
        ]

    def _show(
        self, path: str, label: str, predicted: str, probability: float | None, label_probability: float | None
    ) -> Exhibit:
        image = self._images.get(path)
        thumb = Thumb(None, False) if image is None else make_thumb(image)
        pieces = split_name(path.removeprefix(self.folder))
        explanation = self._explanations.get(path) if thumb.source else None
        heat = None if explanation is None else make_heat(explanation)
        return Exhibit(path, pieces, thumb, label, predicted, probability, label_probability, heat)


def suggest_steps(
    model: str | Path,
    data: str,
    *,
    is_head_alone: bool = False,
    task: Task = "single-label",
    options: Mapping[str, str] = MappingProxyType({}),
) -> list[tuple[str, str]]:
    """Suggested next steps after a training or an evaluation: a description and a command each.

    Args:
        model: The Classifier's file or its run's folder.
        data: The dataset, as it was given on the command line.
        is_head_alone: Whether only the head was trained.
        task: The Classifier's.
        options: The columns of the dataset's table that were given, by the option's name.
    """
    quoted, place = shlex.quote(str(model)), shlex.quote(data)
    for name, value in options.items():
        place += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    last = (
        (
            "Fine-tune all layers with this configuration",
            f"vggkit train --config {quoted} --trainable all",
        )
        if is_head_alone
        else (
            "Evaluate with many crops of each image, as in the paper",
            f"vggkit evaluate {quoted} {place} --protocol multi-crop",
        )
    )
    first = ("Classify an image", f"vggkit predict {quoted} IMAGE…")
    if task == "multi-label":
        return [first, ("Find problems of the images and their labels", f"vggkit check {place}"), last]
    return [
        first,
        (
            "Reject predictions of low confidence, so that about 95 % of the accepted ones are correct",
            f"vggkit evaluate {quoted} {place} --wanted-precision 0.95 --calibrate",
        ),
        (
            "Find labels that may be wrong, using this model",
            f"vggkit check {place} --model {quoted} --html findings.html",
        ),
        last,
    ]
