"""Bootstrap resamples of images (Efron, 1979), and the areas below curves of each.

Shape letters: B resamples, N images, K classes, U distinct probabilities.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.evaluation.evaluation import Interval

RESAMPLES: Final = 1000
FEWEST: Final = 50
"""The least number of resamples for the areas below curves of very large tables."""
MOST_WORK: Final = 2_000_000_000
"""Resamples times images times classes above which the areas are computed on fewer resamples."""
AT_ONCE: Final = 4_000_000
"""Numbers in the largest array."""

Weights = NDArray[np.float64]
"""(B, N) how often each resample holds each image."""


def draw_resamples(n: int, *, classes: int, seed: int) -> Iterator[Weights]:
    """Resamples of so many images, with replacement, in blocks of limited size; fewer for very large tables."""
    generator = np.random.default_rng(seed)
    left, step = int(np.clip(MOST_WORK // (n * classes), FEWEST, RESAMPLES)), max(1, AT_ONCE // n)
    while left > 0:
        count = min(step, left)
        places = generator.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        left -= count


def resample_areas(
    probabilities: NDArray[np.float64], true: NDArray[np.bool_], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the classes that occur of the ROC AUC and of the average precision, (B,) each.

    Args:
        probabilities: (N, K).
        true: (N, K) whether each image is of each class.
        weights: (B, N).
    """
    areas, precisions = [], []
    for number in np.flatnonzero(true.any(axis=0)):
        order = np.argsort(-probabilities[:, number], kind="stable")
        # Images of equal probability lie on the same side of every threshold.
        last = np.append(np.flatnonzero(np.diff(probabilities[order, number])), len(order) - 1)
        mine = weights[:, order] * true[order, number]
        hits = mine.cumsum(axis=1)[:, last]
        false = (weights[:, order] - mine).cumsum(axis=1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            step, before = np.diff(hits, axis=1, prepend=0), np.pad(hits, ((0, 0), (1, 0)))[:, :-1]
            wide = np.diff(false, axis=1, prepend=0)
            areas.append((wide * (hits + before) / 2).sum(axis=1) / (hits[:, -1] * false[:, -1]))
            share = hits / np.maximum(hits + false, 1)
            precisions.append((step * share).sum(axis=1) / hits[:, -1])
    return average_classes(np.stack(areas, axis=1)), average_classes(np.stack(precisions, axis=1))


def average_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) means of (B, K) over the classes that are not NaN."""
    known = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return means


def find_percentiles(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of values, NaN left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
