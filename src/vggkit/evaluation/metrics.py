"""Metrics of a predictions table, by scikit-learn, with bootstrap confidence intervals (Efron, 1979).

Shape letters: B resamples, N images, K classes, U distinct probabilities.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import MissingExtra
from vggkit.evaluation.calibration import (
    BINS,
    describe_calibration,
    find_ece,
    find_threshold,
    number_bins,
    reject_below,
)
from vggkit.evaluation.evaluation import ClassMetrics, Evaluation, FigureName, Interval, proportion_interval
from vggkit.evaluation.predictions import Predictions

RESAMPLES: Final = 1000
FEWEST: Final = 50
"""The least number of resamples for the areas below curves of very large tables."""
MOST_WORK: Final = 2_000_000_000
"""Resamples times images times classes above which the areas are computed on fewer resamples."""
AT_ONCE: Final = 4_000_000
"""Numbers in the largest array."""

Weights = NDArray[np.float64]
"""(B, N) how often each resample holds each image."""


def score(
    predictions: Predictions,
    *,
    data: str,
    split: str = "",
    model: str = "",
    protocol: str = "",
    temperature: float = 1.0,
    threshold: float = 0.0,
    wanted_precision: float | None = None,
    averaged: bool = False,
    images: str = "",
    unreadable: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Evaluation:
    """All metrics of a predictions table; the same table gives the same metrics.

    Args:
        predictions: The predictions of one image or more.
        data: Name or place of the dataset.
        split: The evaluated split.
        model: Name of the Classifier.
        protocol: Which views of each image were evaluated, in words.
        temperature: The temperature that the logits were divided by.
        threshold: Confidence below which the Classifier predicts "unknown"; 0 for never.
        wanted_precision: Search for the threshold that gives this precision, in place of `threshold`.
        averaged: Whether the probabilities are averages over several views or several Classifiers.
        images: Digest of the evaluated images.
        unreadable: Images that were excluded, each with its reason.
        notes: Remarks that matter for the interpretation of the metrics.

    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn import metrics
    except ImportError as absent:
        raise MissingExtra.of("scikit-learn", "evaluating", "train") from absent
    n, numbers = len(predictions), list(range(len(predictions.labels)))
    confusion = metrics.confusion_matrix(predictions.targets, predictions.predicted, labels=numbers)
    each = metrics.precision_recall_fscore_support(
        predictions.targets, predictions.predicted, labels=numbers, zero_division=0.0
    )
    intervals, f1_intervals = find_intervals(predictions)
    classes = []
    for number, (precision, recall, f1, support) in enumerate(zip(*each, strict=True)):
        mine, probabilities = predictions.targets == number, predictions.probabilities[:, number]
        some, others = bool(support), support < n
        classes.append(
            ClassMetrics(
                label=predictions.labels[number],
                support=int(support),
                predicted=int(confusion[:, number].sum()),
                precision=float(precision),
                recall=float(recall),
                f1=float(f1),
                f1_interval=f1_intervals[number],
                roc_auc=float(metrics.roc_auc_score(mine, probabilities)) if some and others else None,
                average_precision=float(metrics.average_precision_score(mine, probabilities)) if some else None,
            )
        )
    present = [each for each in classes if each.support]
    areas = [each.roc_auc for each in present if each.roc_auc is not None]
    precisions = [each.average_precision for each in present if each.average_precision is not None]
    several = len(present) > 1
    calibration = describe_calibration(predictions, temperature=temperature, averaged=averaged)
    remarks = list(notes)
    rejection = reject_below(predictions, threshold, wanted_precision=None) if threshold > 0 else None
    if wanted_precision is not None:
        rejection = find_threshold(predictions, wanted_precision)
        if rejection is None:
            remarks.append(
                f"no threshold gives a precision of {wanted_precision:g} on these images: even the most confident "
                "predictions are wrong too often"
            )
        else:
            remarks.append(
                f"the threshold for a precision of {wanted_precision:g} was chosen on these images; the precision "
                "on new images may differ"
            )
    return Evaluation(
        top1=float(predictions.correct.mean()),
        top5=float((predictions.ranks <= 5).mean()),
        loss=float(predictions.losses.mean()),
        macro_precision=_mean([each.precision for each in present]),
        macro_recall=_mean([each.recall for each in present]),
        macro_f1=_mean([each.f1 for each in present]),
        roc_auc=_mean(areas) if several else None,
        average_precision=_mean(precisions) if several else None,
        ece=calibration.ece,
        intervals=intervals,
        n=n,
        labels=predictions.labels,
        classes=tuple(classes),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        calibration=calibration,
        rejection=rejection,
        data=data,
        split=split,
        model=model,
        protocol=protocol,
        images=images,
        unreadable=unreadable,
        notes=tuple(remarks),
        predictions=predictions,
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def find_intervals(
    predictions: Predictions, *, seed: int = 0
) -> tuple[dict[FigureName, Interval], tuple[Interval | None, ...]]:
    """95 % confidence intervals of the metrics, and of the F1 of each class (None without images of it).

    Percentile bootstrap: each resample draws as many images with replacement. A share of 0 or 1 does not vary
    between resamples and gets Wilson's interval.

    Args:
        predictions: The predictions of one image or more.
        seed: Determines the resamples.
    """
    n, classes = predictions.log_probabilities.shape
    drawn: dict[FigureName, list[NDArray[np.float64]]] = {}
    f1s = []
    for weights in _draw(n, RESAMPLES, seed):
        for name, values in _resample(predictions, weights).items():
            drawn.setdefault(name, []).append(values)
        precision, recall, f1 = _resample_classes(predictions, weights)
        for name, each in (("macro_precision", precision), ("macro_recall", recall), ("macro_f1", f1)):
            drawn.setdefault(name, []).append(_class_mean(each))
        f1s.append(f1)
    if len(np.unique(predictions.targets)) > 1:
        for weights in _draw(n, int(np.clip(MOST_WORK // (n * classes), FEWEST, RESAMPLES)), seed):
            for name, values in _resample_areas(predictions, weights).items():
                drawn.setdefault(name, []).append(values)
    together = {name: np.concatenate(values) for name, values in drawn.items()}
    # The calibration error of a resample is biased upwards; the mean bias is subtracted.
    together["ece"] = np.maximum(0.0, together["ece"] + find_ece(predictions) - together["ece"].mean())
    found = {name: _percentiles(values) for name, values in together.items() if np.ptp(values) > 0}
    shares: dict[FigureName, int] = {
        "top1": int(predictions.correct.sum()),
        "top5": int((predictions.ranks <= 5).sum()),
    }
    found |= {name: proportion_interval(hits, n) for name, hits in shares.items() if hits in (0, n)}
    present = np.bincount(predictions.targets, minlength=classes) > 0
    each_f1 = np.concatenate(f1s)
    varied = [present[k] and np.ptp(each_f1[~np.isnan(each_f1[:, k]), k]) > 0 for k in range(classes)]
    return found, tuple(_percentiles(each_f1[:, k]) if varied[k] else None for k in range(classes))


def _draw(n: int, resamples: int, seed: int) -> Iterator[Weights]:
    """Resamples in blocks of limited size."""
    generator = np.random.default_rng(seed)
    left, step = resamples, max(1, AT_ONCE // n)
    while left > 0:
        count = min(step, left)
        places = generator.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)
        left -= count


def _resample(predictions: Predictions, weights: Weights) -> dict[FigureName, NDArray[np.float64]]:
    """Metrics that are means, and the calibration error, of each resample."""
    n = len(predictions)
    numbers = number_bins(predictions.confidences)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), numbers] = predictions.correct - predictions.confidences
    return {
        "top1": weights @ predictions.correct / n,
        "top5": weights @ (predictions.ranks <= 5) / n,
        "loss": weights @ predictions.losses / n,
        "ece": np.abs(weights @ gaps).sum(axis=1) / n,
    }


def _resample_classes(predictions: Predictions, weights: Weights) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 (B, K) of each resample, NaN where it has no image of a class."""
    classes = len(predictions.labels)
    hits = _count(weights * predictions.correct, predictions.targets, classes)
    support, given = (_count(weights, numbers, classes) for numbers in (predictions.targets, predictions.predicted))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / support  # NaN where the resample has no image of the class
        precision = np.where(support > 0, hits / np.maximum(given, 1), np.nan)
        f1 = np.where(support > 0, 2 * hits / (support + given), np.nan)
    return precision, recall, f1


def _count(weights: Weights, numbers: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """(B, K) sum of the weights (B, N) of the images of each class."""
    order = np.argsort(numbers, kind="stable")
    sums = np.concatenate([np.zeros((len(weights), 1)), weights[:, order].cumsum(axis=1)], axis=1)
    ends = np.searchsorted(numbers[order], np.arange(classes + 1))
    return np.diff(sums[:, ends], axis=1)


def _resample_areas(predictions: Predictions, weights: Weights) -> dict[FigureName, NDArray[np.float64]]:
    """Mean over the classes of the ROC AUC and the average precision, (B,) each."""
    areas, precisions = [], []
    for number in np.unique(predictions.targets):
        probabilities = predictions.probabilities[:, number]
        order = np.argsort(-probabilities, kind="stable")
        # Images of equal probability lie on the same side of every threshold.
        last = np.append(np.flatnonzero(np.diff(probabilities[order])), len(order) - 1)
        mine = weights[:, order] * (predictions.targets[order] == number)
        hits = mine.cumsum(axis=1)[:, last]
        false = (weights[:, order] - mine).cumsum(axis=1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            step, before = np.diff(hits, axis=1, prepend=0), np.pad(hits, ((0, 0), (1, 0)))[:, :-1]
            wide = np.diff(false, axis=1, prepend=0)
            areas.append((wide * (hits + before) / 2).sum(axis=1) / (hits[:, -1] * false[:, -1]))
            share = hits / np.maximum(hits + false, 1)
            precisions.append((step * share).sum(axis=1) / hits[:, -1])
    return {
        "roc_auc": _class_mean(np.stack(areas, axis=1)),
        "average_precision": _class_mean(np.stack(precisions, axis=1)),
    }


def _class_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) means of (B, K) over the classes that are not NaN."""
    known = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return means


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
