"""Calibration of probabilities: expected calibration error, temperature scaling, rejection below a threshold.

Shape letters: N images, K classes.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_share
from vggkit.evaluation.evaluation import Bin, Calibration, Rejection, proportion_interval
from vggkit.evaluation.label_predictions import MultiLabelPredictions
from vggkit.evaluation.predictions import Predictions

BINS: Final = 15
"""Bins of the reliability diagram, as in Guo et al. (2017)."""
COLDEST: Final = 0.05
"""The lowest temperature that is tried."""
HOTTEST: Final = 20.0
"""The highest temperature that is tried."""
FEWEST: Final = 30
"""Images below which no temperature is fitted."""
FOLDS: Final = 5
HALVINGS: Final = 40


def number_bins(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) index of the bin of each confidence (N,); a bin excludes its lower bound and includes its upper."""
    return np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)


def describe_calibration(
    predictions: Predictions, *, temperature: float = 1.0, averaged: bool = False
) -> Calibration:
    """The calibration error and the reliability diagram of predictions.

    Args:
        predictions: The predictions, after temperature scaling.
        temperature: The temperature that their logits were divided by.
        averaged: Whether they are averages over several views of each image, so that the temperature cannot be
            undone and the error without it remains unknown.
    """
    before = predictions if temperature == 1 else predictions.sharpen(1 / temperature)
    return describe_bins(
        predictions.confidences,
        predictions.correct,
        temperature=temperature,
        before=None if averaged else (before.confidences, before.correct),
    )


def describe_bins(
    confidences: NDArray[np.float64],
    correct: NDArray[np.bool_],
    *,
    temperature: float,
    before: tuple[NDArray[np.float64], NDArray[np.bool_]] | None,
) -> Calibration:
    """The calibration error and the reliability diagram of probabilities (N,) of what is true or not (N,).

    Args:
        confidences: In [0, 1].
        correct: Whether what they are of is true.
        temperature: The temperature that their logits were divided by.
        before: Both without it; None where that is not known.
    """
    numbers = number_bins(confidences)
    counts = np.bincount(numbers, minlength=BINS)
    sums, hits = (
        np.bincount(numbers, weights=each, minlength=BINS) for each in (confidences, correct.astype(float))
    )
    return Calibration(
        ece=measure_ece(confidences, correct),
        mean_confidence=float(confidences.mean()),
        bins=tuple(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                n=int(count),
                confidence=float(sums[number] / count) if count else (number + 0.5) / BINS,
                accuracy=float(hits[number] / count) if count else None,
            )
            for number, count in enumerate(counts)
        ),
        temperature=temperature,
        ece_before=None if before is None else measure_ece(*before),
    )


def find_ece(predictions: Predictions) -> float:
    """Expected calibration error in [0, 1] with bins of equal width (Guo et al., 2017, equation 3)."""
    return measure_ece(predictions.confidences, predictions.correct)


def measure_ece(confidences: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    """The same of probabilities (N,) of what is true or not (N,)."""
    gaps = np.bincount(number_bins(confidences), weights=correct - confidences, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidences))


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureFit:
    """A fitted temperature, and its cross-validated effect."""

    temperature: float
    """The temperature that logits are divided by; 1 where no other one is better."""
    loss_before: float
    """Mean cross-entropy in nats at a temperature of 1."""
    loss_after: float
    """Mean cross-entropy in nats with temperature scaling, cross-validated: each fifth of the images is scaled by
    the temperature fitted to the others."""
    ece_before: float
    """Expected calibration error in [0, 1] at a temperature of 1."""
    ece_after: float
    """Expected calibration error in [0, 1] with temperature scaling, cross-validated."""
    n: int
    """Number of images that the temperature was fitted to."""
    refused: float | None = None
    """The temperature of the lowest loss, where it was not used because the calibration error would rise; then
    `loss_after` and `ece_after` are what it would give."""

    def describe(self) -> str:
        """The result in one sentence."""
        if self.n < FEWEST:
            return f"temperature not fitted: {self.n} images, at least {FEWEST} needed"
        if self.refused is not None:
            return (
                f"temperature 1: on {self.n} images, {self.refused:.3g} would lower the cross-validated loss "
                f"({self.loss_before:.4f} to {self.loss_after:.4f}) and raise the calibration error "
                f"({100 * self.ece_before:.1f} to {100 * self.ece_after:.1f} %)"
            )
        if self.temperature == 1:
            return f"temperature 1: on {self.n} images no other temperature improved the cross-validated loss"
        return (
            f"temperature {self.temperature:.3g}: cross-validated calibration error {100 * self.ece_before:.1f} to "
            f"{100 * self.ece_after:.1f} %, loss {self.loss_before:.4f} to {self.loss_after:.4f} (n = {self.n})"
        )


def fit_temperature(predictions: Predictions, *, seed: int = 0) -> TemperatureFit:
    """Temperature scaling (Guo et al., 2017, section 4.2): the temperature with the lowest cross-entropy.

    The result is 1 unless the cross-validated loss falls by more than one standard error and the cross-validated
    calibration error does not rise; also for fewer than 30 images, and where the minimum lies outside of 0.05 to
    20. The predicted classes do not change. Multi-label predictions are fitted by all of their decisions.

    Args:
        predictions: Predictions at a temperature of 1, of images that were not trained on.
        seed: Determines the division into five folds.
    """
    folds = np.random.default_rng(seed).permutation(len(predictions)) % FOLDS
    images = len(predictions)
    if isinstance(predictions, MultiLabelPredictions):  # the decisions on an image stay together
        folds = np.repeat(folds, len(predictions.labels))
        predictions = predictions.as_decisions()
    held_out = predictions.log_probabilities.copy()
    for fold in range(FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            fitted = _minimize(predictions.take(np.flatnonzero(~out)))
            held_out[out] = predictions.take(np.flatnonzero(out)).sharpen(fitted).log_probabilities
    crossed = replace(predictions, log_probabilities=held_out)
    before, after = float(predictions.losses.mean()), float(crossed.losses.mean())
    gains = predictions.losses - crossed.losses
    found = _minimize(predictions)
    helps = gains.mean() > gains.std() / np.sqrt(len(gains)) and COLDEST * 1.01 < found < HOTTEST / 1.01
    helps = bool(helps) and images >= FEWEST
    temperature, ece_before, ece_after = float(f"{found:.4g}"), find_ece(predictions), find_ece(crossed)
    taken = helps and ece_after <= ece_before
    return TemperatureFit(
        temperature=temperature if taken else 1.0,
        loss_before=before,
        loss_after=after if helps else before,
        ece_before=ece_before,
        ece_after=ece_after if helps else ece_before,
        n=images,
        refused=temperature if helps and not taken else None,
    )


def _minimize(predictions: Predictions) -> float:
    """The temperature at which the slope of the loss is zero, by bisection: the loss is convex in 1 / temperature.

    The targets are smoothed as by Platt (1999, section 2.2), for otherwise images that are all classified
    correctly would call for an infinite inverse temperature.
    """
    low, high = np.log(COLDEST), np.log(HOTTEST)
    logs, rows = predictions.log_probabilities, np.arange(len(predictions))
    smoothing = 1 / (len(predictions) + 2)
    target = (1 - smoothing) * logs[rows, predictions.targets] + smoothing * logs.mean(axis=1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        probabilities = predictions.sharpen(float(np.exp(middle))).probabilities
        # Slope in 1 / temperature: the expectation of the logits less their value at the target.
        slope = ((probabilities * logs).sum(axis=1) - target).mean()
        low, high = (low, middle) if slope < 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def find_threshold(predictions: Predictions, wanted_precision: float) -> Rejection | None:
    """The lowest confidence threshold at which the accepted predictions have a wanted precision.

    Args:
        predictions: The predictions to choose the threshold by.
        wanted_precision: Share of the accepted predictions that are to be correct, above 0 and at most 1.

    Returns None where no threshold gives that precision. Raises BadInput for a precision outside of its range.
    """
    wanted_precision = demand_share("wanted_precision", wanted_precision)
    cuts = list_thresholds(predictions)
    good = np.flatnonzero(cuts.precision >= wanted_precision)
    if not len(good):
        return None
    lowest = int(good[-1])
    threshold = 0.0 if cuts.accepted[lowest] == len(predictions) else float(cuts.thresholds[lowest])
    return reject_below(predictions, threshold, wanted_precision=wanted_precision)


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Every distinct confidence threshold, from the highest down, with what it accepts."""

    thresholds: NDArray[np.float64]
    """(T,) the thresholds, falling."""
    accepted: NDArray[np.int64]
    """(T,) number of predictions at or above each threshold."""
    precision: NDArray[np.float64]
    """(T,) share of these that are correct."""

    def keep(self, places: NDArray[np.int64]) -> "Thresholds":
        """The thresholds at these indices."""
        return Thresholds(self.thresholds[places], self.accepted[places], self.precision[places])


def list_thresholds(predictions: Predictions) -> Thresholds:
    """Every distinct confidence threshold; predictions of equal confidence are accepted or rejected together."""
    order = np.argsort(-predictions.confidences, kind="stable")
    confidences = predictions.confidences[order]
    ends = np.append(np.flatnonzero(np.diff(confidences)), len(order) - 1)
    hits = predictions.correct[order].cumsum()[ends]
    return Thresholds(confidences[ends], ends + 1, hits / (ends + 1))


def reject_below(predictions: Predictions, threshold: float, *, wanted_precision: float | None) -> Rejection:
    """Coverage and precision when predictions below a confidence threshold are rejected."""
    accepted = predictions.confidences >= threshold
    n, hits = int(accepted.sum()), int(predictions.correct[accepted].sum())
    return Rejection(
        threshold=threshold,
        wanted_precision=wanted_precision,
        n=n,
        coverage=n / len(predictions),
        precision=hits / n if n else None,
        precision_interval=proportion_interval(hits, n) if n else None,
    )
