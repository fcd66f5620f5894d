"""The charts of the evaluation report: training curves, the reliability diagram, accuracy by coverage."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from vggkit.evaluation.calibration import list_thresholds
from vggkit.evaluation.evaluation import Evaluation, proportion_interval
from vggkit.reports.pages.charts import BOTTOM, Bar, Chart, across, draw_line, up

MOST_POINTS: Final = 200
"""Points of a curve; longer ones are thinned out."""


def draw_curves(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> list[Chart]:
    """Losses and validation accuracy by epoch, from the rows of `metrics.csv`; no charts for fewer than two epochs.

    Args:
        history: Rows with the keys epoch, train_loss, val_loss and val_top1.
        best_epoch: The epoch whose weights were kept; it is marked.
    """
    if len(history) < 2:
        return []
    epochs = [row["epoch"] for row in history]
    x = across(epochs[0], epochs[-1])
    ticks = x.ticks(whole=True, most=8)
    few = len(epochs) <= 40
    losses = [row[name] for row in history for name in ("train_loss", "val_loss")]
    y = up(0, 1.05 * max(losses))
    lines = tuple(
        draw_line(kind, [(row["epoch"], row[f"{kind}_loss"]) for row in history], x, y, name=name, dots=few)
        for kind, name in (("train", "training"), ("val", "validation"))
    )
    accuracies = [row["val_top1"] for row in history]
    share = up(max(0.0, min(accuracies) - 0.1), min(1.0, max(accuracies) + 0.05))
    best = next((row for row in history if row["epoch"] == best_epoch), None)
    best_text = ""
    if best is not None:
        when = f"after epoch {best['epoch']:.0f}" if best["epoch"] else "before the first step"
        best_text = f"Best: {100 * best['val_top1']:.1f} % {when}"
    return [
        Chart(
            title="Cross-entropy loss (nats)",
            across="epoch",
            across_ticks=ticks,
            up_ticks=y.ticks(most=5),
            lines=lines,
            note="The training loss is averaged over each epoch, with augmentation and dropout.",
        ),
        Chart(
            title="Validation accuracy, top-1 (%)",
            across="epoch",
            across_ticks=ticks,
            up_ticks=share.ticks(percent=True, most=5),
            lines=(draw_line("val", list(zip(epochs, accuracies, strict=True)), x, share, dots=few),),
            mark=None if best is None else (x(best["epoch"]), share(best["val_top1"])),
            mark_text=best_text,
        ),
    ]


def draw_reliability(evaluation: Evaluation) -> Chart:
    """The reliability diagram: accuracy of the predictions of each confidence bin, with Wilson's 95 % intervals."""
    x, y = across(0, 1), up(0, 1)
    bars = []
    for each in evaluation.calibration.bins:
        if each.accuracy is None:
            continue
        low, high = proportion_interval(round(each.accuracy * each.n), each.n)
        left, right, top = x(each.low) + 1, x(each.high) - 1, y(each.accuracy)
        bars.append(
            Bar(
                round(left, 2),
                round(right - left, 2),
                top,
                round(BOTTOM - top, 2),
                (y(low), y(high)),
                f"confidence {100 * each.low:.0f} to {100 * each.high:.0f} %: {each.n:,} predictions, "
                f"{100 * each.accuracy:.1f} % correct",
            )
        )
    return Chart(
        title="Reliability diagram: accuracy (%) by confidence",
        across="confidence: probability of the predicted class (%)",
        across_ticks=x.ticks(percent=True, most=5),
        up_ticks=y.ticks(percent=True, most=5),
        bars=tuple(bars),
        lines=(draw_line("ideal", [(0, 0), (1, 1)], x, y, name="perfect calibration"),),
        note=_describe_calibration(evaluation),
    )


def _describe_calibration(evaluation: Evaluation) -> str:
    calibration = evaluation.calibration
    gap = calibration.mean_confidence - evaluation.top1
    verdict = "well calibrated on average" if abs(gap) < 0.01 else "overconfident" if gap > 0 else "underconfident"
    sentences = [
        f"The mean confidence is {100 * calibration.mean_confidence:.1f} % and the accuracy "
        f"{100 * evaluation.top1:.1f} %: the model is {verdict}."
    ]
    if calibration.temperature != 1:
        before = calibration.ece_before
        without = "" if before is None else f"; without it the ECE is {100 * before:.1f} %"
        sentences.append(
            f"Logits are divided by a temperature of {calibration.temperature:.3g}, which is stored in the model "
            f"file{without}."
        )
    return " ".join(sentences)


def draw_coverage(evaluation: Evaluation) -> Chart:
    """Accuracy of the most confident predictions by their share of all, as the confidence threshold falls."""
    cuts = list_thresholds(evaluation.predictions)
    if len(cuts.accepted) > MOST_POINTS:
        cuts = cuts.keep(np.unique(np.linspace(0, len(cuts.accepted) - 1, MOST_POINTS).round().astype(int)))
    x, y = across(0, 1), up(max(0.0, float(cuts.precision.min()) - 0.05), 1)
    points = list(zip((cuts.accepted / evaluation.n).tolist(), cuts.precision.tolist(), strict=True))
    found = evaluation.rejection
    mark = None
    note = "Rejecting the least confident predictions lowers the coverage and raises the accuracy on the rest."
    if found is not None and found.precision is not None and found.precision_interval is not None:
        mark = (x(found.coverage), y(found.precision))
        low, high = found.precision_interval
        note = (
            f"At a confidence threshold of {100 * found.threshold:.1f} % the coverage is "
            f"{100 * found.coverage:.1f} % and the accuracy on the accepted images {100 * found.precision:.1f} % "
            f"(95 % CI {100 * low:.1f} to {100 * high:.1f}). The other images are predicted as “unknown”."
        )
    return Chart(
        title="Accuracy (%) by coverage",
        across="coverage: share of images whose prediction is accepted (%)",
        across_ticks=x.ticks(percent=True, most=5),
        up_ticks=y.ticks(percent=True, most=5),
        lines=(draw_line("val", points, x, y),),
        mark=mark,
        note=note,
    )
