"""The predictions table: class probabilities of labelled images, from which every metric is computed.

Shape letters: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadInput, BadOutput, VggkitError
from vggkit.table_files import Column, Kind, read_table, stream_columns
from vggkit.task import Task, log_softmax

PREFIX: Final = "p_"
"""Prefix of the columns that hold the probability of each class: `p_` and the class name."""
ENDINGS: Final = (".csv", ".parquet")
"""File name endings of predictions tables."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Predicted class probabilities of images whose true class is known.

    Raises BadInput where some of the probabilities are NaN.

    >>> predictions = Predictions.of(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), labels=["cat", "dog"])
    >>> predictions.predicted.tolist(), predictions.correct.tolist()
    ([0, 1], [True, False])
    """

    paths: tuple[str, ...]
    """The paths, or other names, of the N images."""
    targets: NDArray[Any]
    """(N,) the index of each image's true class, 0 to K - 1."""
    log_probabilities: NDArray[np.float64] = field(repr=False)
    """(N, K) natural logarithms of the predicted probabilities; all finite."""
    labels: tuple[str, ...]
    """The K class names, in the order of the columns of `log_probabilities`."""

    def __repr__(self) -> str:
        return f"Predictions({len(self.targets):,} images, {len(self.labels):,} classes)"

    @classmethod
    def of(
        cls,
        logits: NDArray[np.floating[Any]],
        targets: NDArray[np.int_],
        *,
        labels: Sequence[str],
        paths: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> Self:
        """The predictions of logits: their softmax, after division by a temperature.

        Args:
            logits: (N, K).
            targets: (N,) the index of each image's true class, 0 to K - 1.
            labels: The K class names.
            paths: The names of the N images; None numbers them.
            temperature: The temperature that the logits are divided by, above 0.

        Raises BadInput where logits are not finite.
        """
        return cls(
            paths=tuple(paths) if paths is not None else tuple(map(str, range(len(targets)))),
            targets=np.asarray(targets, np.int64),
            log_probabilities=log_softmax(logits, temperature),
            labels=tuple(labels),
        )

    @staticmethod
    def join(parts: "Sequence[Predictions]") -> "Predictions":
        """The predictions of images that were predicted in several parts, of the same labels, in their order."""
        return replace(
            parts[0],
            paths=tuple(path for part in parts for path in part.paths),
            targets=np.concatenate([part.targets for part in parts]),
            log_probabilities=np.concatenate([part.log_probabilities for part in parts]),
        )

    def __post_init__(self) -> None:
        lost = np.flatnonzero(np.isnan(self.log_probabilities).any(axis=1))
        if len(lost):
            raise BadInput(
                f"{len(lost):,} of {len(self):,} images have no finite probabilities; the first is "
                f"{self.paths[lost[0]]}. The network's values overflow or are NaN: its weights are damaged "
                "or far too large. Use an earlier checkpoint, or train again with a lower learning rate"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def task(self) -> Task:
        """`single-label`; see `MultiLabelPredictions` for several labels an image."""
        return "single-label"

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K) predicted probabilities in [0, 1]; each row sums to 1."""
        return np.exp(self.log_probabilities)

    @cached_property
    def predicted(self) -> NDArray[Any]:
        """(N,) index of the most probable class; the first of equally probable ones."""
        best: NDArray[np.int64] = self.log_probabilities.argmax(axis=1)
        return best

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(N,) rank of the true class, 1 for the most probable; the first of equally probable classes is first."""
        own = self.log_probabilities[np.arange(len(self)), self.targets][:, None]
        before = np.arange(len(self.labels)) < self.targets[:, None]
        ahead = (self.log_probabilities > own) | ((self.log_probabilities == own) & before)
        ranks: NDArray[np.int64] = 1 + ahead.sum(axis=1)
        return ranks

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the most probable class is the true one."""
        correct: NDArray[np.bool_] = self.predicted == self.targets
        return correct

    @cached_property
    def confidences(self) -> NDArray[np.float64]:
        """(N,) probability of the predicted class, in [1 / K, 1]."""
        confidences: NDArray[np.float64] = self.probabilities[np.arange(len(self)), self.predicted]
        return confidences

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """(N,) cross-entropy of each image in nats."""
        losses: NDArray[np.float64] = -self.log_probabilities[np.arange(len(self)), self.targets]
        return losses

    def list_confident_errors(self, most: int) -> list[int]:
        """Places of wrong predictions, at most so many, those of the highest probability first."""
        wrong = np.flatnonzero(~self.correct)
        order: list[int] = wrong[np.argsort(-self.confidences[wrong], kind="stable")][:most].tolist()
        return order

    @property
    def headline(self) -> float:
        """The figure by which Classifiers are compared, in [0, 1]: top-1 accuracy, multi-label micro F1."""
        return float(self.correct.mean())

    def name_target(self, place: int) -> str:
        """The true class of an image."""
        return self.labels[int(self.targets[place])]

    def name_predicted(self, place: int) -> str:
        """The most probable class of an image."""
        return self.labels[int(self.predicted[place])]

    def sharpen(self, temperature: float) -> Self:
        """The same predictions with their logits divided by a temperature: below 1 more confident, above 1 less."""
        return replace(self, log_probabilities=log_softmax(self.log_probabilities, temperature))

    def take(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The predictions of the images in these rows."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            targets=self.targets[rows],
            log_probabilities=self.log_probabilities[rows],
        )

    def reorder(self, labels: Sequence[str]) -> Self:
        """The same predictions with the classes in another order."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        columns = np.asarray([numbers[label] for label in labels], np.int64)
        return replace(
            self,
            targets=np.argsort(columns)[self.targets],
            log_probabilities=self.log_probabilities[:, columns],
            labels=tuple(labels),
        )

    def save(self, path: str | Path) -> None:
        """Write the table with one row for each image, as .csv or .parquet.

        Its columns are `path`, `label` (the true class), `prediction` (the most probable class) and its
        `probability`, `correct` (1 or 0), `rank` (of the true class, 1 for the most probable), `loss` (in nats),
        and for each class `p_` followed by its name: its probability.

        Raises BadOutput where the file cannot be written, and MissingExtra for Parquet without pyarrow.
        """
        named = np.asarray(self.labels, object)
        cells: dict[str, tuple[Kind, Column]] = {
            "path": ("path", self.paths),
            "label": ("text", named[self.targets].tolist()),
            "prediction": ("text", named[self.predicted].tolist()),
            "probability": ("number", self.confidences.tolist()),
            "correct": ("count", self.correct.astype(int).tolist()),
            "rank": ("count", self.ranks.tolist()),
            "loss": ("number", self.losses.tolist()),
        }
        for number, label in enumerate(self.labels):
            cells[PREFIX + label] = "number", self.probabilities[:, number].tolist()
        check_ending(path)
        with stream_columns(path, {name: kind for name, (kind, _) in cells.items()}) as append:
            append({name: column for name, (_, column) in cells.items()})

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The table that `save` wrote, by this version or an earlier one; raises BadData for another file."""
        check_ending(path, BadData)
        columns = read_table(path)
        labels = [name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)]
        try:
            numbers = {label: number for number, label in enumerate(labels)}
            targets = np.asarray([numbers[label] for label in columns["label"]], np.int64)
            chances = np.asarray([columns[PREFIX + label] for label in labels], np.float64).T
            logs = np.log(np.maximum(chances, np.nextafter(0, 1)))
            # The loss is still known where the probability of the true class underflows to 0.
            logs[np.arange(len(targets)), targets] = -np.asarray(columns["loss"], np.float64)
            return cls(paths=tuple(columns["path"]), targets=targets, log_probabilities=logs, labels=tuple(labels))
        except (KeyError, ValueError, TypeError, IndexError) as problem:
            raise BadData(f"{path}: is not a predictions table written by vggkit ({problem})") from problem


def check_ending(path: str | Path, error: type[VggkitError] = BadOutput) -> None:
    """Raise the error where a file name does not end in .csv or .parquet."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise error(f"{path}: the name of a predictions table must end in {' or '.join(ENDINGS)}")


def average(logs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Logarithms (…, K) of the mean of probabilities that are given as logarithms (…, K)."""
    stacked = np.stack(logs)
    peak = stacked.max(axis=0)
    mean: NDArray[np.float64] = peak + np.log(np.exp(stacked - peak).mean(axis=0))
    return mean
