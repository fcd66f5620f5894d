"""What a Classifier said of labelled images, one by one: every figure is made of this table.

Shape letters: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadInput, BadOutput, VggkitError
from vggkit.table_files import Column, Kind, read_table, stream_columns

PREFIX: Final = "p_"
"""What stands before a class's name in the column of its probabilities."""
ENDINGS: Final = (".csv", ".parquet")
"""Of tables of answers."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """Probabilities that a Classifier gave to each class, for images whose class is known.

    Raises BadInput where some are NaN.
    """

    paths: tuple[str, ...]
    """N images."""
    targets: NDArray[np.int64]
    """(N,) the number of each image's class, 0 to K - 1."""
    log_probabilities: NDArray[np.float64] = field(repr=False)
    """(N, K) natural logarithms of the probabilities; -inf nowhere."""
    labels: tuple[str, ...]
    """K class names."""

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
        """The answers that logits (N, K) are, divided by the temperature; targets (N,)."""
        return cls(
            paths=tuple(paths) if paths is not None else tuple(map(str, range(len(targets)))),
            targets=np.asarray(targets, np.int64),
            log_probabilities=log_softmax(logits, temperature),
            labels=tuple(labels),
        )

    def __post_init__(self) -> None:
        lost = np.flatnonzero(np.isnan(self.log_probabilities).any(axis=1))
        if len(lost):
            raise BadInput(
                f"{len(lost):,} of {len(self):,} images have no probabilities, and no figures can be made without "
                f"them; the first: {self.paths[lost[0]]}. The Classifier's values overflow or are not numbers: its "
                "weights are broken or far too large. Take an earlier checkpoint, or train it again at a lower "
                "learning rate"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """(N, K) in [0, 1]; each row sums to 1."""
        return np.exp(self.log_probabilities)

    @cached_property
    def given(self) -> NDArray[np.int64]:
        """(N,) the most probable class; of equal ones the first, as in prediction."""
        best: NDArray[np.int64] = self.log_probabilities.argmax(axis=1)
        return best

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(N,) place of the right class, 1 for the most probable; of equal ones the first stands before."""
        own = self.log_probabilities[np.arange(len(self)), self.targets][:, None]
        before = np.arange(len(self.labels)) < self.targets[:, None]
        ahead = (self.log_probabilities > own) | ((self.log_probabilities == own) & before)
        ranks: NDArray[np.int64] = 1 + ahead.sum(axis=1)
        return ranks

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the most probable class is the right one."""
        right: NDArray[np.bool_] = self.given == self.targets
        return right

    @cached_property
    def confidences(self) -> NDArray[np.float64]:
        """(N,) probability of the most probable class."""
        return self.probabilities[np.arange(len(self)), self.given]

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """(N,) cross-entropy of each image in nats."""
        return -self.log_probabilities[np.arange(len(self)), self.targets]

    def sharpen(self, temperature: float) -> "Predictions":
        """The same, with logits divided by a temperature: below 1 surer, above 1 less sure."""
        return Predictions(
            paths=self.paths,
            targets=self.targets,
            log_probabilities=log_softmax(self.log_probabilities, temperature),
            labels=self.labels,
        )

    def save(self, path: str | Path) -> None:
        """A row an image, as .csv or .parquet: `path`, `label`, `answer`, its `probability`, `correct` (1 or 0),
        `rank` of the right class, `loss`, and `p_…`, the probability of each class.

        Raises BadOutput, and MissingExtra for Parquet without pyarrow.
        """
        named = np.asarray(self.labels, object)
        cells: dict[str, tuple[Kind, Column]] = {
            "path": ("path", self.paths),
            "label": ("text", named[self.targets].tolist()),
            "answer": ("text", named[self.given].tolist()),
            "probability": ("number", self.confidences.tolist()),
            "correct": ("count", self.right.astype(int).tolist()),
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
        """What `save` wrote; raises BadData."""
        check_ending(path, BadData)
        columns = read_table(path)
        labels = [name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)]
        try:
            numbers = {label: number for number, label in enumerate(labels)}
            targets = np.asarray([numbers[label] for label in columns["label"]], np.int64)
            chances = np.asarray([columns[PREFIX + label] for label in labels], np.float64).T
            logs = np.log(np.maximum(chances, np.nextafter(0, 1)))
            # Of a class that got less than a float can hold the loss still tells.
            logs[np.arange(len(targets)), targets] = -np.asarray(columns["loss"], np.float64)
            return cls(paths=tuple(columns["path"]), targets=targets, log_probabilities=logs, labels=tuple(labels))
        except (KeyError, ValueError, TypeError, IndexError) as problem:
            raise BadData(f"{path}: is not a table of results that vggkit wrote ({problem})") from problem


def check_ending(path: str | Path, error: type[VggkitError] = BadOutput) -> None:
    """Raise the error where a table of answers cannot have that name."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise error(f"{path}: a table of answers has a name that ends in {' or '.join(ENDINGS)}")


def log_softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Logarithms of the probabilities (…, K) of logits (…, K) divided by a temperature; NaN where one of the K is
    not finite.
    """
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    wide = np.where(finite, logits, np.nan).astype(np.float64) / temperature
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def average(logs: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Logarithm (…, K) of the mean of probabilities that are given by their logarithms (…, K)."""
    stacked = np.stack(logs)
    peak = stacked.max(axis=0)
    mean: NDArray[np.float64] = peak + np.log(np.exp(stacked - peak).mean(axis=0))
    return mean
