"""The two kinds of classification, and what the logits of each mean.

A single-label Classifier gives every image exactly one class: the softmax of its logits. A multi-label Classifier
gives an image any number of classes, none included: the sigmoid of each logit, against a threshold of each class.
Everything that differs between the two begins here; losses are in `training.objective`, metrics in `evaluation`.
No torch here.

Shape letters: N images, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["single-label", "multi-label"]
"""single-label: exactly one class for an image. multi-label: any number of classes, none included."""
JOIN: Final = "; "
"""Between the labels of an image, for people."""
NO_LABEL: Final = "(no label)"
"""An image without labels, for people."""
USUAL_THRESHOLD: Final = 0.5
"""Probability from which a class of a multi-label Classifier is predicted where no threshold was chosen."""
ROUNDING: Final = 1e-5
"""Relative difference of probabilities between engines: a threshold is often computed by another engine."""

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Activation:
    """How logits become probabilities.

    >>> Activation("multi-label")(np.array([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """

    task: Task = "single-label"
    """softmax for single-label, the sigmoid of each logit for multi-label."""
    temperature: float = 1.0
    """Logits are divided by it before."""

    def __call__(self, logits: Rows) -> NDArray[np.float64]:
        """Probabilities (..., K) of logits (..., K); NaN where one of the K is not finite."""
        if self.task == "single-label":
            return softmax(logits, self.temperature)
        return np.exp(self.log(logits))

    def log(self, logits: Rows) -> NDArray[np.float64]:
        """Natural logarithms of these probabilities."""
        if self.task == "single-label":
            return log_softmax(logits, self.temperature)
        return log_sigmoid(_widen(logits) / self.temperature)


def softmax(logits: Rows, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (..., K) of logits (..., K) divided by a temperature; NaN where one of the K is not finite."""
    wide = _widen(logits) / temperature
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def log_softmax(logits: Rows, temperature: float = 1.0) -> NDArray[np.float64]:
    """Logarithms (…, K) of the softmax of logits (…, K) divided by a temperature; NaN where one is not finite."""
    wide = _widen(logits) / temperature
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def log_sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of the sigmoid of each value, without overflow."""
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        found: NDArray[np.float64] = -np.logaddexp(0.0, -logits)
    return found


def log_complement(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 - p) of probabilities p that are given as logarithms, precise near 0 and 1."""
    # Below log(1/2) log1p is the precise form, above it expm1.
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.where(
            logs < -0.6931471805599453, np.log1p(-np.exp(logs)), np.log(-np.expm1(logs))
        )
    return found


def decide(probabilities: Rows, thresholds: Sequence[float] | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which classes (..., K) are predicted: those at or above their thresholds (K); none chosen: 0.5 each."""
    chosen = np.asarray(thresholds if len(thresholds) else USUAL_THRESHOLD, np.float64)
    decided: NDArray[np.bool_] = probabilities >= (1 - ROUNDING) * chosen
    return decided


def join_labels(labels: Iterable[str]) -> str:
    """Several labels of an image, for people.

    >>> join_labels(["cat", "dog"]), join_labels([])
    ('cat; dog', '(no label)')
    """
    return JOIN.join(labels) or NO_LABEL


def _widen(logits: Rows) -> NDArray[np.float64]:
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    return np.where(finite, logits, np.nan).astype(np.float64)
