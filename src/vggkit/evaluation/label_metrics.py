"""Metrics of a multi-label predictions table, with bootstrap confidence intervals.

Means over classes are over those that occur among the images. Shape letters: B resamples, N images, K classes.
"""

import numpy as np
from numpy.typing import NDArray

from vggkit.evaluation.calibration import BINS, describe_bins, number_bins
from vggkit.evaluation.classification import find_average_precision, find_class_rates, find_roc_auc
from vggkit.evaluation.evaluation import ClassMetrics, Evaluation, FigureName, Interval, proportion_interval
from vggkit.evaluation.label_predictions import MultiLabelPredictions, demand_images
from vggkit.evaluation.resampling import average_classes, draw_resamples, find_percentiles, resample_areas
from vggkit.task import USUAL_THRESHOLD


def score_labels(
    predictions: MultiLabelPredictions,
    *,
    data: str,
    split: str,
    model: str,
    protocol: str,
    temperature: float,
    averaged: bool,
    images: str,
    unreadable: tuple[str, ...],
    notes: tuple[str, ...],
) -> Evaluation:
    """All metrics of a multi-label predictions table; the same table gives the same metrics.

    Args:
        predictions: The predictions of one image or more.
        data: As for `metrics.score`, like all that follow.
        split: The evaluated split.
        model: Name of the Classifier.
        protocol: Which views of each image were evaluated, in words.
        temperature: The temperature that the logits were divided by.
        averaged: Whether the probabilities are averages over several views or several Classifiers.
        images: Digest of the evaluated images.
        unreadable: Images that were excluded, each with its reason.
        notes: Remarks that matter for the interpretation of the metrics.

    Raises BadData where no image has a label.
    """
    demand_images(predictions)
    true, decided, probabilities = predictions.targets, predictions.predicted, predictions.probabilities
    n = len(predictions)
    supports, hits = true.sum(axis=0), (true & decided).sum(axis=0)
    each = find_class_rates(hits, decided.sum(axis=0), supports)
    intervals, f1_intervals = find_label_intervals(predictions)
    thresholds = predictions.thresholds or (USUAL_THRESHOLD,) * len(predictions.labels)
    classes = tuple(
        ClassMetrics(
            label=predictions.labels[number],
            support=int(support),
            predicted=int(decided[:, number].sum()),
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
            f1_interval=f1_intervals[number],
            roc_auc=find_roc_auc(true[:, number], probabilities[:, number]) if 0 < support < n else None,
            average_precision=find_average_precision(true[:, number], probabilities[:, number])
            if support
            else None,
            threshold=thresholds[number],
        )
        for number, (precision, recall, f1, support) in enumerate(zip(*each, supports, strict=True))
    )
    present = [one for one in classes if one.support]
    areas = [one.roc_auc for one in present if one.roc_auc is not None]
    calibration = describe_bins(
        probabilities.ravel(),
        true.ravel(),
        temperature=temperature,
        before=None if averaged else _undo(predictions, temperature),
    )
    return Evaluation(
        task="multi-label",
        top1=float((predictions.ranks == 1).mean()),
        top5=float((predictions.ranks <= 5).mean()),
        loss=float(predictions.losses.mean()),
        macro_precision=float(np.mean([one.precision for one in present])),
        macro_recall=float(np.mean([one.recall for one in present])),
        macro_f1=float(np.mean([one.f1 for one in present])),
        micro_f1=float(2 * hits.sum() / max(1, decided.sum() + supports.sum())),
        exact_match=float(predictions.correct.mean()),
        roc_auc=float(np.mean(areas)) if areas else None,
        average_precision=float(np.mean([one.average_precision for one in present])),
        ece=calibration.ece,
        intervals=intervals,
        n=n,
        labels=predictions.labels,
        classes=classes,
        confusion=(),
        calibration=calibration,
        rejection=None,
        predictions=predictions,
        data=data,
        split=split,
        model=model,
        protocol=protocol,
        images=images,
        unreadable=unreadable,
        notes=notes,
    )


def _undo(predictions: MultiLabelPredictions, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    raw = predictions if temperature == 1 else predictions.sharpen(1 / temperature)
    return raw.probabilities.ravel(), raw.targets.ravel()


def find_label_intervals(
    predictions: MultiLabelPredictions, *, seed: int = 0
) -> tuple[dict[FigureName, Interval], tuple[Interval | None, ...]]:
    """95 % confidence intervals of the metrics, and of the F1 of each class (None without images of it).

    Percentile bootstrap over images. A share of 0 or 1 does not vary and gets Wilson's interval.

    Args:
        predictions: The predictions of one image or more.
        seed: Determines the resamples.
    """
    n, count = predictions.targets.shape
    true, decided = predictions.targets, predictions.predicted
    gaps = np.zeros((n, BINS))
    np.add.at(
        gaps,
        (np.repeat(np.arange(n), count), number_bins(predictions.probabilities.ravel())),
        (true - predictions.probabilities).ravel(),
    )
    shares: dict[FigureName, NDArray[np.bool_]] = {
        "top1": predictions.ranks == 1,
        "top5": predictions.ranks <= 5,
        "exact_match": predictions.correct,
    }
    drawn: dict[FigureName, list[NDArray[np.float64]]] = {}
    f1s = []
    for weights in draw_resamples(n, classes=1, seed=seed):
        found: dict[FigureName, NDArray[np.float64]] = {
            name: weights @ values / n for name, values in shares.items()
        }
        found["loss"] = weights @ predictions.losses / n
        found["ece"] = np.abs(weights @ gaps).sum(axis=1) / (n * count)
        hits, support, given = (weights @ each.astype(np.float64) for each in (true & decided, true, decided))
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(support > 0, 2 * hits / (support + given), np.nan)
            found["macro_recall"] = average_classes(hits / support)
            found["macro_precision"] = average_classes(np.where(support > 0, hits / np.maximum(given, 1), np.nan))
        found["macro_f1"] = average_classes(f1)
        found["micro_f1"] = 2 * hits.sum(axis=1) / np.maximum((support + given).sum(axis=1), 1)
        f1s.append(f1)
        for name, values in found.items():
            drawn.setdefault(name, []).append(values)
    for weights in draw_resamples(n, classes=count, seed=seed):
        areas, precisions = resample_areas(predictions.probabilities, true, weights)
        drawn.setdefault("roc_auc", []).append(areas)
        drawn.setdefault("average_precision", []).append(precisions)
    together = {name: np.concatenate(values) for name, values in drawn.items()}
    # The calibration error of a resample is biased upwards; the mean bias is subtracted.
    ece = float(np.abs(gaps.sum(axis=0)).sum() / (n * count))
    together["ece"] = np.maximum(0.0, together["ece"] + ece - together["ece"].mean())
    known = {name: values for name, values in together.items() if np.isfinite(values).any()}
    intervals = {name: find_percentiles(values) for name, values in known.items() if np.ptp(values) > 0}
    for name, hit in shares.items():
        if int(hit.sum()) in (0, n):
            intervals[name] = proportion_interval(int(hit.sum()), n)
    each_f1 = np.concatenate(f1s)
    varied = [bool(true[:, k].any()) and np.ptp(each_f1[~np.isnan(each_f1[:, k]), k]) > 0 for k in range(count)]
    return intervals, tuple(find_percentiles(each_f1[:, k]) if varied[k] else None for k in range(count))
