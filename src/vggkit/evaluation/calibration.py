"""Probabilities that can be taken at their word: how far they are from it, and what mends them.

Shape letters: N images, K classes.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_share
from vggkit.evaluation.evaluation import Bin, Calibration, Rejection, proportion_interval
from vggkit.evaluation.intervals import BINS, number_bins
from vggkit.evaluation.predictions import Predictions

COLDEST: Final = 0.05
HOTTEST: Final = 20.0
FEWEST: Final = 30
"""Images from which on a temperature is fitted."""
FOLDS: Final = 5
HALVINGS: Final = 40


def describe_calibration(
    predictions: Predictions, *, temperature: float = 1.0, averaged: bool = False
) -> Calibration:
    """The reliability diagram and its error, of answers whose logits were divided by a temperature.

    Where they are means over several looks the temperature cannot be undone.
    """
    numbers = number_bins(predictions.confidences)
    counts = np.bincount(numbers, minlength=BINS)
    sure, right = (
        np.bincount(numbers, weights=values, minlength=BINS)
        for values in (predictions.confidences, predictions.right.astype(float))
    )
    before = predictions if temperature == 1 else predictions.sharpen(1 / temperature)
    return Calibration(
        ece=find_ece(predictions),
        mean_confidence=float(predictions.confidences.mean()),
        bins=tuple(
            Bin(
                low=number / BINS,
                high=(number + 1) / BINS,
                n=int(count),
                confidence=float(sure[number] / count) if count else (number + 0.5) / BINS,
                accuracy=float(right[number] / count) if count else None,
            )
            for number, count in enumerate(counts)
        ),
        temperature=temperature,
        ece_before=None if averaged else find_ece(before),
    )


def find_ece(predictions: Predictions) -> float:
    """Expected calibration error in [0, 1] with bins of equal width (Guo et al., 2017, equation 3)."""
    gaps = np.bincount(
        number_bins(predictions.confidences), weights=predictions.right - predictions.confidences, minlength=BINS
    )
    return float(np.abs(gaps).sum() / len(predictions))


@dataclass(frozen=True, slots=True, kw_only=True)
class TemperatureFit:
    """A temperature, and what it is worth on images that it was not fitted on."""

    temperature: float
    """What logits are to be divided by; 1 where nothing is gained."""
    loss_before: float
    """Mean cross-entropy in nats at a temperature of 1."""
    loss_after: float
    """The same after it, each fifth of the images at the temperature of the others."""
    ece_before: float
    """Expected calibration error at a temperature of 1."""
    ece_after: float
    """The same after it, likewise."""
    n: int
    """Images that it was fitted on."""

    def describe(self) -> str:
        """In a sentence, for people."""
        if self.n < FEWEST:
            return f"temperature 1: {self.n} images are too few to fit one, which takes {FEWEST}"
        if self.temperature == 1:
            return f"temperature 1: on {self.n} images no other made the probabilities truer"
        return (
            f"temperature {self.temperature:.3g}: on images it was not fitted on, calibration error "
            f"{100 * self.ece_before:.1f} to {100 * self.ece_after:.1f} %, loss {self.loss_before:.4f} to "
            f"{self.loss_after:.4f} (n = {self.n})"
        )


def fit_temperature(predictions: Predictions, *, seed: int = 0) -> TemperatureFit:
    """The temperature of the least loss (Guo et al., 2017, section 4.2), with Platt's targets, see `_fit`.

    Only what helps is taken: it is 1 where the loss of held-out fifths does not fall by more than a standard
    error, for fewer than `FEWEST` images, and where the least loss lies beyond `COLDEST` or `HOTTEST`. No
    answer changes, only how sure it is.

    Args:
        predictions: At a temperature of 1, of images that were not learnt from.
        seed: The fifths depend on it.
    """
    folds = np.random.default_rng(seed).permutation(len(predictions)) % FOLDS
    held = predictions.log_probabilities.copy()
    for fold in range(FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            held[out] = _keep(predictions, out).sharpen(_fit(_keep(predictions, ~out))).log_probabilities
    crossed = replace(predictions, log_probabilities=held)
    before, after = float(predictions.losses.mean()), float(crossed.losses.mean())
    gains = predictions.losses - crossed.losses
    found = _fit(predictions)
    helps = gains.mean() > gains.std() / np.sqrt(len(gains)) and COLDEST * 1.01 < found < HOTTEST / 1.01
    helps = bool(helps) and len(predictions) >= FEWEST
    return TemperatureFit(
        temperature=float(f"{found:.4g}") if helps else 1.0,
        loss_before=before,
        loss_after=after if helps else before,
        ece_before=find_ece(predictions),
        ece_after=find_ece(crossed if helps else predictions),
        n=len(predictions),
    )


def _keep(predictions: Predictions, chosen: NDArray[np.bool_]) -> Predictions:
    return Predictions(
        paths=tuple(path for path, taken in zip(predictions.paths, chosen, strict=True) if taken),
        targets=predictions.targets[chosen],
        log_probabilities=predictions.log_probabilities[chosen],
        labels=predictions.labels,
    )


def _fit(predictions: Predictions) -> float:
    """Where the loss's slope is zero; in 1 / temperature the loss is convex, so halving finds it.

    Right classes count a little less than certain, as in Platt (1999, section 2.2): or else images that
    are all told right would call for boundless certainty.
    """
    low, high = np.log(COLDEST), np.log(HOTTEST)
    logs, rows = predictions.log_probabilities, np.arange(len(predictions))
    doubt = 1 / (len(predictions) + 2)
    aimed = (1 - doubt) * logs[rows, predictions.targets] + doubt * logs.mean(axis=1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chances = predictions.sharpen(float(np.exp(middle))).probabilities
        # Slope in 1 / temperature: what is expected of the logits, less what they are to come to.
        slope = ((chances * logs).sum(axis=1) - aimed).mean()
        low, high = (low, middle) if slope < 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def find_threshold(predictions: Predictions, wanted_precision: float) -> Rejection | None:
    """The lowest probability from which on answers are right as often as wanted; None where there is none.

    Raises BadInput for a precision that is not above 0 and at most 1.
    """
    wanted_precision = demand_share("wanted_precision", wanted_precision)
    cuts = list_cuts(predictions)
    good = np.flatnonzero(cuts.precision >= wanted_precision)
    if not len(good):
        return None
    lowest = int(good[-1])
    threshold = 0.0 if cuts.given[lowest] == len(predictions) else float(cuts.thresholds[lowest])
    return withhold(predictions, threshold, wanted_precision=wanted_precision)


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """Every way of withholding the least sure answers, the surest alone first."""

    thresholds: NDArray[np.float64]
    """Probability of the least sure answer that is given, falling."""
    given: NDArray[np.int64]
    """How many are."""
    precision: NDArray[np.float64]
    """Share of them that are right."""

    def keep(self, places: NDArray[np.int64]) -> "Cuts":
        """Some of them."""
        return Cuts(self.thresholds[places], self.given[places], self.precision[places])


def list_cuts(predictions: Predictions) -> Cuts:
    """Answers of equal probability are withheld together or not at all."""
    order = np.argsort(-predictions.confidences, kind="stable")
    sure = predictions.confidences[order]
    ends = np.append(np.flatnonzero(np.diff(sure)), len(order) - 1)
    hits = predictions.right[order].cumsum()[ends]
    return Cuts(sure[ends], ends + 1, hits / (ends + 1))


def withhold(predictions: Predictions, threshold: float, *, wanted_precision: float | None) -> Rejection:
    """What is left when answers below a probability are withheld."""
    given = predictions.confidences >= threshold
    n, hits = int(given.sum()), int(predictions.right[given].sum())
    return Rejection(
        threshold=threshold,
        wanted_precision=wanted_precision,
        n=n,
        coverage=n / len(predictions),
        precision=hits / n if n else None,
        precision_interval=proportion_interval(hits, n) if n else None,
    )
