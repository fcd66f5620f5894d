"""How far figures would have come out otherwise with other images: the bootstrap (Efron, 1979).

Shape letters: B resamples, N images, K classes, U distinct probabilities.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.evaluation.evaluation import FigureName, Interval, proportion_interval
from vggkit.evaluation.predictions import Predictions

RESAMPLES: Final = 1000
FEWEST: Final = 50
MOST_WORK: Final = 2_000_000_000
"""Resamples times images times classes, from which the areas take fewer resamples, and never below `FEWEST`."""
AT_ONCE: Final = 4_000_000
"""Numbers in the largest array."""
BINS: Final = 15
"""Of the reliability diagram, as Guo et al. (2017) have it."""

Weights = NDArray[np.float64]
"""(B, N) how often each resample holds each image."""


def find_intervals(
    predictions: Predictions, *, seed: int = 0
) -> tuple[dict[FigureName, Interval], tuple[Interval | None, ...]]:
    """95 % intervals of the headline figures, and of each class's F1 (None without images of it).

    Percentiles of figures of resamples: as many images, drawn with replacement. Of a share that is 0 or 1
    every resample says the same; it gets Wilson's interval.
    """
    n, classes = predictions.log_probabilities.shape
    drawn: dict[FigureName, list[NDArray[np.float64]]] = {}
    f1s = []
    for weights in _draw(n, RESAMPLES, seed):
        for name, values in _resample(predictions, weights).items():
            drawn.setdefault(name, []).append(values)
        precision, recall, f1 = _resample_classes(predictions, weights)
        for name, each in (("macro_precision", precision), ("macro_recall", recall), ("macro_f1", f1)):
            drawn.setdefault(name, []).append(_mean(each))
        f1s.append(f1)
    if len(np.unique(predictions.targets)) > 1:
        for weights in _draw(n, int(np.clip(MOST_WORK // (n * classes), FEWEST, RESAMPLES)), seed):
            for name, values in _resample_areas(predictions, weights).items():
                drawn.setdefault(name, []).append(values)
    together = {name: np.concatenate(values) for name, values in drawn.items()}
    # A resample is less even than the images themselves, so that its bins err more: by what they do on average.
    together["ece"] = np.maximum(0.0, together["ece"] + _find_ece(predictions) - together["ece"].mean())
    found = {name: _percentiles(values) for name, values in together.items() if np.ptp(values) > 0}
    shares: dict[FigureName, int] = {
        "top1": int(predictions.right.sum()),
        "top5": int((predictions.ranks <= 5).sum()),
    }
    found |= {name: proportion_interval(hits, n) for name, hits in shares.items() if hits in (0, n)}
    present = np.bincount(predictions.targets, minlength=classes) > 0
    each_f1 = np.concatenate(f1s)
    varied = [present[k] and np.ptp(each_f1[~np.isnan(each_f1[:, k]), k]) > 0 for k in range(classes)]
    return found, tuple(_percentiles(each_f1[:, k]) if varied[k] else None for k in range(classes))


def _draw(n: int, resamples: int, seed: int) -> Iterator[Weights]:
    """Resamples, as many at once as memory is meant to hold."""
    generator = np.random.default_rng(seed)
    left, step = resamples, max(1, AT_ONCE // n)
    while left > 0:
        count = min(step, left)
        places = generator.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        left -= count


def _resample(predictions: Predictions, weights: Weights) -> dict[FigureName, NDArray[np.float64]]:
    """Figures that are means, and the calibration error, of each resample."""
    n = len(predictions)
    numbers = number_bins(predictions.confidences)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), numbers] = predictions.right - predictions.confidences
    return {
        "top1": weights @ predictions.right / n,
        "top5": weights @ (predictions.ranks <= 5) / n,
        "loss": weights @ predictions.losses / n,
        "ece": np.abs(weights @ gaps).sum(axis=1) / n,
    }


def _find_ece(predictions: Predictions) -> float:
    return float(_resample(predictions, np.ones((1, len(predictions))))["ece"][0])


def number_bins(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the bin of each probability: above its lower end, up to its upper."""
    return np.clip(np.ceil(confidences * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _resample_classes(predictions: Predictions, weights: Weights) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 (B, K) of each resample, nan where it says nothing of a class."""
    classes = len(predictions.labels)
    hits = _count(weights * predictions.right, predictions.targets, classes)
    support, given = (_count(weights, numbers, classes) for numbers in (predictions.targets, predictions.given))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / support  # nan where the resample has no image of it
        precision = np.where(support > 0, hits / np.maximum(given, 1), np.nan)
        f1 = np.where(support > 0, 2 * hits / (support + given), np.nan)
    return precision, recall, f1


def _count(weights: Weights, numbers: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """(B, K) sums of the weights of each class."""
    order = np.argsort(numbers, kind="stable")
    sums = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)], axis=1)
    ends = np.searchsorted(numbers[order], np.arange(classes + 1))
    return np.diff(sums[:, ends], axis=1)


def _resample_areas(predictions: Predictions, weights: Weights) -> dict[FigureName, NDArray[np.float64]]:
    """Mean over the classes of ROC-AUC and average precision, of each resample."""
    areas, precisions = [], []
    for number in np.unique(predictions.targets):
        chances = predictions.probabilities[:, number]
        order = np.argsort(-chances, kind="stable")
        # Images of equal probability are above or below a cut together.
        last = np.append(np.flatnonzero(np.diff(chances[order])), len(order) - 1)
        mine = weights[:, order] * (predictions.targets[order] == number)
        hits = mine.cumsum(axis=1)[:, last]
        false = (weights[:, order] - mine).cumsum(axis=1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            step, before = np.diff(hits, axis=1, prepend=0), np.pad(hits, ((0, 0), (1, 0)))[:, :-1]
            wide = np.diff(false, axis=1, prepend=0)
            areas.append((wide * (hits + before) / 2).sum(axis=1) / (hits[:, -1] * false[:, -1]))
            share = hits / np.maximum(hits + false, 1)
            precisions.append((step * share).sum(axis=1) / hits[:, -1])
    return {"roc_auc": _mean(np.stack(areas, axis=1)), "average_precision": _mean(np.stack(precisions, axis=1))}


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) means over the classes that a resample says something of."""
    known = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return means


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
