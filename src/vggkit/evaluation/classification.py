"""Figures of single classes: confusions, precision, recall and F1, and the areas below ROC and precision-recall
curves.

The figures are those of `sklearn.metrics`, to the last bits, without its import, which takes two seconds.

Shape letters: N images, K classes.
"""

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Values = NDArray[np.float64]


def count_confusions(true: NDArray[np.integer], predicted: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """(K, K) how many images of each true class, a row, were predicted as each class; both (N,).

    >>> count_confusions(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    pairs = np.bincount(classes * true.astype(np.int64) + predicted, minlength=classes * classes)
    return pairs.reshape(classes, classes).astype(np.int64)


def find_class_rates(
    hits: NDArray[np.integer], predicted: NDArray[np.integer], support: NDArray[np.integer]
) -> tuple[Values, Values, Values]:
    """Precision, recall and F1 of each class, (K,) each; 0 where a class was not predicted or does not occur.

    Args:
        hits: Images (K,) of each class that were predicted as it.
        predicted: Images that were predicted as each class.
        support: Images of each class.
    """

    def share(part: NDArray[np.integer], whole: NDArray[np.integer]) -> Values:
        shares: Values = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
        return shares

    return share(hits, predicted), share(hits, support), share(2 * hits, predicted + support)


def find_roc_auc(positive: Flags, scores: NDArray[np.floating]) -> float:
    """The area below the ROC curve: the chance that an image of the class scores higher than another, ties half.

    Args:
        positive: Which images (N,) are of the class: some and not all.
        scores: Their probabilities of the class, (N,).

    >>> find_roc_auc(np.array([True, False, False]), np.array([0.6, 0.6, 0.1]))
    0.75
    """
    hits, false = _count_above(positive, scores)
    wide = np.diff(false, prepend=0)
    before = np.append(0, hits[:-1])
    return float((wide * (hits + before)).sum() / (2 * hits[-1] * false[-1]))


def find_average_precision(positive: Flags, scores: NDArray[np.floating]) -> float:
    """The average precision: the precision at each threshold, weighted by the recall that it adds.

    Args:
        positive: Which images (N,) are of the class: some.
        scores: Their probabilities of the class, (N,).

    >>> find_average_precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.1])).__round__(4)
    0.8333
    """
    hits, false = _count_above(positive, scores)
    return float((np.diff(hits, prepend=0) * (hits / (hits + false))).sum() / hits[-1])


def _count_above(positive: Flags, scores: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images of the class, and others, that score at least each distinct score, from the highest on."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = positive[order].astype(np.int64).cumsum()[last]
    return hits, last + 1 - hits
