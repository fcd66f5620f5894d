"""From the table of answers to figures; the scores are scikit-learn's.

Shape letters: N images, K classes.
"""

import numpy as np

from vggkit.errors import MissingExtra
from vggkit.evaluation.calibration import describe_calibration, find_threshold, withhold
from vggkit.evaluation.evaluation import ClassFigures, Evaluation
from vggkit.evaluation.intervals import find_intervals
from vggkit.evaluation.predictions import Predictions


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
    """All figures of a table of answers; the same table gives the same figures.

    Args:
        predictions: At least one image.
        data: Where the images come from.
        split: Which part of it.
        model: What was measured.
        protocol: How each image was looked at.
        temperature: What the answers' logits were divided by.
        threshold: Probability below which the Classifier answers "unknown"; 0: never.
        wanted_precision: Look for the threshold that gives it, in place of `threshold`.
        averaged: Whether they are means over several looks, or of several Classifiers.
        images: What tells these images from others.
        unreadable: Images left out, each with its reason.
        notes: What the reader of the numbers must know.

    Raises MissingExtra without scikit-learn.
    """
    try:
        from sklearn import metrics
    except ImportError as absent:
        raise MissingExtra.of("scikit-learn", "evaluating", "train") from absent
    n, numbers = len(predictions), list(range(len(predictions.labels)))
    confusion = metrics.confusion_matrix(predictions.targets, predictions.given, labels=numbers)
    each = metrics.precision_recall_fscore_support(
        predictions.targets, predictions.given, labels=numbers, zero_division=0.0
    )
    intervals, f1_intervals = find_intervals(predictions)
    classes = []
    for number, (precision, recall, f1, support) in enumerate(zip(*each, strict=True)):
        mine, chances = predictions.targets == number, predictions.probabilities[:, number]
        some, others = bool(support), support < n
        classes.append(
            ClassFigures(
                label=predictions.labels[number],
                support=int(support),
                given=int(confusion[:, number].sum()),
                precision=float(precision),
                recall=float(recall),
                f1=float(f1),
                f1_interval=f1_intervals[number],
                roc_auc=float(metrics.roc_auc_score(mine, chances)) if some and others else None,
                average_precision=float(metrics.average_precision_score(mine, chances)) if some else None,
            )
        )
    present = [each for each in classes if each.support]
    areas = [each.roc_auc for each in present if each.roc_auc is not None]
    precisions = [each.average_precision for each in present if each.average_precision is not None]
    several = len(present) > 1
    calibration = describe_calibration(predictions, temperature=temperature, averaged=averaged)
    said = list(notes)
    rejection = withhold(predictions, threshold, wanted_precision=None) if threshold > 0 else None
    if wanted_precision is not None:
        rejection = find_threshold(predictions, wanted_precision)
        if rejection is None:
            said.append(
                f"no threshold gives a precision of {wanted_precision:g} on these images: even the surest "
                "answers are wrong too often"
            )
        else:
            said.append(
                f"the threshold for a precision of {wanted_precision:g} was chosen on these very images; on new "
                "ones it will be about that"
            )
    return Evaluation(
        top1=float(predictions.right.mean()),
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
        notes=tuple(said),
        predictions=predictions,
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
