"""Predictions of several labels an image: the table of a Classifier's task, and the thresholds that decide.

Shape letters: N images, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadInput
from vggkit.evaluation.predictions import PREFIX, Predictions, check_ending
from vggkit.images.dataset import ImageSample
from vggkit.table_files import Column, Kind, read_table, stream_columns
from vggkit.task import Activation, Task, decide, join_labels, log_complement, log_sigmoid
from vggkit.weights.card import Card

TRUE: Final = "y_"
"""Prefix of the columns that hold 1 where the image has the label and else 0."""
DECIDED: Final = "d_"
"""Prefix of the columns that hold 1 where the label was predicted and else 0."""
FEWEST: Final = 10
"""Images of a class below which it gets the threshold that all classes have together."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MultiLabelPredictions(Predictions):
    """Predicted probabilities of every class, of images whose labels are known.

    `targets` is (N, K), true where the image has the label; each of the `log_probabilities` stands alone, and their
    probabilities do not sum to 1.

    >>> some = MultiLabelPredictions.of(np.array([[2.0, -2.0]]), np.array([[1, 1]]), labels=["sun", "sea"])
    >>> some.predicted.tolist(), some.correct.tolist()
    ([[True, False]], [False])
    """

    thresholds: tuple[float, ...] = ()
    """Probability from which each class is predicted; empty: 0.5."""

    @classmethod
    def of(
        cls,
        logits: NDArray[np.floating[Any]],
        targets: NDArray[Any],
        *,
        labels: Sequence[str],
        paths: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> Self:
        """The predictions of logits (N, K): their sigmoid, after division by a temperature.

        Args:
            logits: (N, K).
            targets: (N, K), 1 where the image has the label and else 0.
            labels: The K class names.
            paths: The names of the N images; None numbers them.
            temperature: The temperature that the logits are divided by, above 0.

        Raises BadInput where logits are not finite, or the shapes differ.
        """
        if np.shape(targets) != np.shape(logits):
            raise BadInput(
                f"targets are 0 or 1 for each class, {np.shape(logits)} like the logits; got {np.shape(targets)}"
            )
        return cls(
            paths=tuple(paths) if paths is not None else tuple(map(str, range(len(targets)))),
            targets=np.asarray(targets) > 0,
            log_probabilities=Activation("multi-label", temperature).log(logits),
            labels=tuple(labels),
        )

    @property
    def task(self) -> Task:
        """`multi-label`."""
        return "multi-label"

    @cached_property
    def predicted(self) -> NDArray[np.bool_]:
        """(N, K) whether the probability of each class reaches its threshold."""
        return decide(self.probabilities, self.thresholds)

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(N,) rank of the most probable class that the image has, 1 for the first; K + 1 for an image without."""
        order = np.argsort(-self.log_probabilities, axis=1, kind="stable")
        sorted_targets = np.take_along_axis(self.targets, order, axis=1)
        some = sorted_targets.any(axis=1)
        ranks: NDArray[np.int64] = np.where(some, sorted_targets.argmax(axis=1), len(self.labels)) + 1
        return ranks

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether exactly the labels of the image are predicted."""
        correct: NDArray[np.bool_] = (self.predicted == self.targets).all(axis=1)
        return correct

    @cached_property
    def confidences(self) -> NDArray[np.float64]:
        """(N,) for a wrong image the probability that its most confident wrong decision gave itself; else 0."""
        given = np.where(self.predicted, self.probabilities, 1 - self.probabilities)
        confidences: NDArray[np.float64] = np.where(self.predicted != self.targets, given, 0).max(axis=1)
        return confidences

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """(N,) mean binary cross-entropy of each image's classes in nats."""
        logs = np.where(self.targets, self.log_probabilities, log_complement(self.log_probabilities))
        losses: NDArray[np.float64] = -logs.mean(axis=1)
        return losses

    @property
    def headline(self) -> float:
        """F1 of all decisions together, micro F1, in [0, 1]."""
        return (
            2
            * float((self.predicted & self.targets).sum())
            / max(1, int(self.predicted.sum() + self.targets.sum()))
        )

    def name_target(self, place: int) -> str:
        """The labels of an image, for people."""
        return join_labels(np.asarray(self.labels, object)[self.targets[place]])

    def name_predicted(self, place: int) -> str:
        """The predicted labels of an image, for people."""
        return join_labels(np.asarray(self.labels, object)[self.predicted[place]])

    def sharpen(self, temperature: float) -> Self:
        """The same predictions with their logits divided by a temperature; the thresholds stay as they are."""
        logits = self.log_probabilities - log_complement(self.log_probabilities)
        return replace(self, log_probabilities=log_sigmoid(logits / temperature))

    def reorder(self, labels: Sequence[str]) -> Self:
        """The same predictions with the classes in another order."""
        columns = [self.labels.index(label) for label in labels]
        return replace(
            self,
            targets=self.targets[:, columns],
            log_probabilities=self.log_probabilities[:, columns],
            labels=tuple(labels),
            thresholds=tuple(self.thresholds[column] for column in columns) if self.thresholds else (),
        )

    def as_decisions(self) -> Predictions:
        """Every image and class as a prediction of its own, of the classes no and yes, in order."""
        logs = self.log_probabilities.ravel()
        return Predictions(
            paths=tuple(path for path in self.paths for _ in self.labels),
            targets=self.targets.ravel().astype(np.int64),
            log_probabilities=np.stack([log_complement(logs), logs], axis=1),
            labels=("no", "yes"),
        )

    def save(self, path: str | Path) -> None:
        """Write the table with one row for each image, as .csv or .parquet.

        Its columns are `path`, `label` and `prediction` (the labels, joined for people), `correct` (1 where exactly
        the labels of the image are predicted), `loss` (in nats), and for each class `p_` followed by its name: its
        probability, `y_`: 1 where the image has it, and `d_`: 1 where it is predicted.

        Raises BadOutput where the file cannot be written, and MissingExtra for Parquet without pyarrow.
        """
        places = range(len(self))
        cells: dict[str, tuple[Kind, Column]] = {
            "path": ("path", self.paths),
            "label": ("text", [self.name_target(place) for place in places]),
            "prediction": ("text", [self.name_predicted(place) for place in places]),
            "correct": ("count", self.correct.astype(int).tolist()),
            "loss": ("number", self.losses.tolist()),
        }
        for number, label in enumerate(self.labels):
            cells[PREFIX + label] = "number", self.probabilities[:, number].tolist()
        for prefix, values in ((TRUE, self.targets), (DECIDED, self.predicted)):
            for number, label in enumerate(self.labels):
                cells[prefix + label] = "count", values[:, number].astype(int).tolist()
        check_ending(path)
        with stream_columns(path, {name: kind for name, (kind, _) in cells.items()}) as append:
            append({name: column for name, (_, column) in cells.items()})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The table that `save` wrote; raises BadData for another file.

        Thresholds are those by which it was decided as the table says.
        """
        check_ending(path, BadData)
        columns = read_table(path)
        labels = list_labels(columns)
        try:
            chances, true, decided = (
                np.asarray([columns[prefix + label] for label in labels], np.float64).T
                for prefix in (PREFIX, TRUE, DECIDED)
            )
            least = np.where(decided > 0, chances, np.inf).min(axis=0)
            above = np.minimum(np.where(decided > 0, 0, chances).max(axis=0) * 1.001 + 1e-9, 1)
            return cls(
                paths=tuple(columns["path"]),
                targets=true > 0,
                log_probabilities=np.log(np.maximum(chances, np.nextafter(0, 1))),
                labels=labels,
                thresholds=tuple(np.where(np.isfinite(least), least, above).tolist()),
            )
        except (KeyError, ValueError, TypeError, IndexError) as problem:
            raise BadData(f"{path}: is not a table of several labels written by vggkit ({problem})") from problem


def list_labels(columns: Iterable[str]) -> tuple[str, ...]:
    """The classes of a predictions table, by its columns."""
    return tuple(name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX))


def read_predictions(path: str | Path) -> Predictions:
    """A predictions table of either task, as `save` wrote it; raises BadData for another file."""
    check_ending(path, BadData)
    columns = read_table(path)
    several = all(TRUE + label in columns for label in list_labels(columns))
    return MultiLabelPredictions.read(path) if several else Predictions.read(path)


def gather_predictions(
    card: Card, images: Sequence[ImageSample], log_probabilities: NDArray[np.float64]
) -> Predictions:
    """The predictions table of labelled images, of a Classifier's task and with its thresholds.

    Args:
        card: The Classifier's; it knows every label of the images.
        images: N of them.
        log_probabilities: (N, K).
    """
    numbers = {label: number for number, label in enumerate(card.labels)}
    paths = tuple(image.name for image in images)
    if card.task == "single-label":
        targets = np.asarray([numbers[str(image.label)] for image in images], np.int64)
        return Predictions(paths=paths, targets=targets, log_probabilities=log_probabilities, labels=card.labels)
    true = np.zeros((len(images), len(numbers)), bool)
    for row, image in enumerate(images):
        true[row, [numbers[label] for label in image.classes]] = True
    return MultiLabelPredictions(
        paths=paths,
        targets=true,
        log_probabilities=log_probabilities,
        labels=card.labels,
        thresholds=card.thresholds,
    )


def choose_thresholds(predictions: MultiLabelPredictions) -> tuple[float, ...]:
    """The threshold of each class at which its F1 is highest on these images (Lipton et al. 2014, arXiv:1402.1892).

    Each lies halfway between two probabilities that occur. A class with fewer than ten images, or that all images
    have, gets the threshold at which the F1 of all decisions together (micro F1) is highest.
    """
    scores, true = predictions.probabilities, predictions.targets
    common = _find_best(scores.ravel(), true.ravel())
    counts = true.sum(axis=0)
    return tuple(
        _find_best(scores[:, number], true[:, number]) if FEWEST <= count < len(true) else common
        for number, count in enumerate(counts)
    )


def _find_best(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """The threshold of the highest F1; the highest of several; 0.5 where nothing is true."""
    if not true.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(sorted_scores)), len(order) - 1)  # of equal ones
    hits = true[order].cumsum()[last]
    best = int((2 * hits / (last + 1 + true.sum())).argmax())
    lower = sorted_scores[last[best] + 1] if last[best] + 1 < len(order) else 0.0
    return float(np.clip((sorted_scores[last[best]] + lower) / 2, 1e-6, 1.0))


def demand_images(predictions: Predictions) -> None:
    """Raise BadData where no image of a multi-label table has a label, so that nothing can be measured."""
    if predictions.task == "multi-label" and not predictions.targets.any():
        raise BadData("none of the evaluated images has a label that the Classifier knows")
