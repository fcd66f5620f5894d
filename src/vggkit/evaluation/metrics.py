"""Metrics of a predictions table, with bootstrap confidence intervals (Efron, 1979).

Shape letters: B resamples, N images, K classes.
"""

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadInput
from vggkit.evaluation.calibration import (
    BINS,
    describe_calibration,
    find_ece,
    find_threshold,
    number_bins,
    reject_below,
)
from vggkit.evaluation.classification import (
    count_confusions,
    find_average_precision,
    find_class_rates,
    find_roc_auc,
)
from vggkit.evaluation.evaluation import ClassMetrics, Evaluation, FigureName, Interval, proportion_interval
from vggkit.evaluation.label_metrics import score_labels
from vggkit.evaluation.label_predictions import MultiLabelPredictions
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.resampling import (
    Weights,
    average_classes,
    draw_resamples,
    find_percentiles,
    resample_areas,
)


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
        predictions: The predictions of one image or more; of MultiLabelPredictions `label_metrics`.
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

    Raises BadInput for options that do not fit the predictions, and BadData where no image has a label.
    """
    if isinstance(predictions, MultiLabelPredictions):
        if wanted_precision is not None:
            raise BadInput(
                "wanted_precision is for one label an image; several labels have a threshold for each class, which "
                "training and --calibrate choose for the highest F1"
            )
        return score_labels(
            predictions,
            temperature=temperature,
            averaged=averaged,
            data=data,
            split=split,
            model=model,
            protocol=protocol,
            images=images,
            unreadable=unreadable,
            notes=notes,
        )
    n = len(predictions)
    confusion = count_confusions(predictions.targets, predictions.predicted, len(predictions.labels))
    supports, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    each = find_class_rates(confusion.diagonal(), predicted, supports)
    intervals, f1_intervals = find_intervals(predictions)
    classes = []
    for number, (precision, recall, f1, support) in enumerate(zip(*each, supports, strict=True)):
        mine, probabilities = predictions.targets == number, predictions.probabilities[:, number]
        some, others = bool(support), support < n
        classes.append(
            ClassMetrics(
                label=predictions.labels[number],
                support=int(support),
                predicted=int(predicted[number]),
                precision=float(precision),
                recall=float(recall),
                f1=float(f1),
                f1_interval=f1_intervals[number],
                roc_auc=find_roc_auc(mine, probabilities) if some and others else None,
                average_precision=find_average_precision(mine, probabilities) if some else None,
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
    for weights in draw_resamples(n, classes=1, seed=seed):
        for name, values in _resample(predictions, weights).items():
            drawn.setdefault(name, []).append(values)
        precision, recall, f1 = _resample_classes(predictions, weights)
        for name, each in (("macro_precision", precision), ("macro_recall", recall), ("macro_f1", f1)):
            drawn.setdefault(name, []).append(average_classes(each))
        f1s.append(f1)
    if len(np.unique(predictions.targets)) > 1:
        true = predictions.targets[:, None] == np.arange(classes)
        for weights in draw_resamples(n, classes=classes, seed=seed):
            areas, precisions = resample_areas(predictions.probabilities, true, weights)
            drawn.setdefault("roc_auc", []).append(areas)
            drawn.setdefault("average_precision", []).append(precisions)
    together = {name: np.concatenate(values) for name, values in drawn.items()}
    # The calibration error of a resample is biased upwards; the mean bias is subtracted.
    together["ece"] = np.maximum(0.0, together["ece"] + find_ece(predictions) - together["ece"].mean())
    found = {name: find_percentiles(values) for name, values in together.items() if np.ptp(values) > 0}
    shares: dict[FigureName, int] = {
        "top1": int(predictions.correct.sum()),
        "top5": int((predictions.ranks <= 5).sum()),
    }
    found |= {name: proportion_interval(hits, n) for name, hits in shares.items() if hits in (0, n)}
    present = np.bincount(predictions.targets, minlength=classes) > 0
    each_f1 = np.concatenate(f1s)
    varied = [present[k] and np.ptp(each_f1[~np.isnan(each_f1[:, k]), k]) > 0 for k in range(classes)]
    return found, tuple(find_percentiles(each_f1[:, k]) if varied[k] else None for k in range(classes))


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
