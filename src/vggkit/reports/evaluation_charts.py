"""The charts of an evaluation and of the training before it, for the report."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from vggkit.evaluation.calibration import list_cuts
from vggkit.evaluation.evaluation import Evaluation, proportion_interval
from vggkit.reports.pages.charts import BOTTOM, Bar, Chart, across, draw_line, up

MOST_POINTS: Final = 200
"""Of a curve."""


def draw_curves(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> list[Chart]:
    """Losses, and validation accuracy, by epoch, of the rows of `metrics.csv`; none where there is one alone."""
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
    shares = [row["val_top1"] for row in history]
    floor = max(0.0, min(shares) - 0.1)
    share = up(floor, min(1.0, max(shares) + 0.05))
    best = next((row for row in history if row["epoch"] == best_epoch), None)
    return [
        Chart(
            title="Loss (cross-entropy, nats)",
            across="epoch",
            across_ticks=ticks,
            up_ticks=y.ticks(most=5),
            lines=lines,
            note="Training images are seen changed, and while the network still learns them.",
        ),
        Chart(
            title="Validation accuracy (%)",
            across="epoch",
            across_ticks=ticks,
            up_ticks=share.ticks(percent=True, most=5),
            lines=(draw_line("val", list(zip(epochs, shares, strict=True)), x, share, dots=few),),
            mark=None if best is None else (x(best["epoch"]), share(best["val_top1"])),
            mark_text=""
            if best is None
            else f"Kept: {100 * best['val_top1']:.1f} % "
            + (f"after epoch {best['epoch']:.0f}" if best["epoch"] else "before the first step"),
        ),
    ]


def draw_reliability(evaluation: Evaluation) -> Chart:
    """How often answers of a probability are right; on the diagonal they are as right as they say."""
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
                f"{each.n:,} answers of {100 * each.low:.0f} to {100 * each.high:.0f} %: "
                f"{100 * each.accuracy:.1f} % right",
            )
        )
    found = evaluation.calibration
    said = "surer" if found.mean_confidence > evaluation.top1 else "less sure"
    text = f"Answers say {100 * found.mean_confidence:.1f} % on average and {100 * evaluation.top1:.1f} % are right"
    gap = abs(found.mean_confidence - evaluation.top1)
    text += f": {said} than they are right" if gap >= 0.01 else ": as sure as they are right"
    if found.temperature != 1:
        text += f". Logits are divided by a temperature of {found.temperature:.3g}, which the Classifier keeps"
        if found.ece_before is not None:
            text += f"; without it the error is {100 * found.ece_before:.1f} %"
    return Chart(
        title="Right answers (%) by probability",
        across="probability of the answer (%)",
        across_ticks=x.ticks(percent=True, most=5),
        up_ticks=y.ticks(percent=True, most=5),
        bars=tuple(bars),
        lines=(draw_line("ideal", [(0, 0), (1, 1)], x, y, name="true to its word"),),
        note=text + ".",
    )


def draw_withholding(evaluation: Evaluation) -> Chart:
    """How many of the surest answers are right, by how many are given."""
    cuts = list_cuts(evaluation.predictions)
    if len(cuts.given) > MOST_POINTS:
        cuts = cuts.keep(np.unique(np.linspace(0, len(cuts.given) - 1, MOST_POINTS).round().astype(int)))
    x, y = across(0, 1), up(max(0.0, float(cuts.precision.min()) - 0.05), 1)
    points = list(zip((cuts.given / evaluation.n).tolist(), cuts.precision.tolist(), strict=True))
    found = evaluation.rejection
    mark, text = None, "Withholding the least sure answers leaves fewer, and more of them right."
    if found is not None and found.precision is not None and found.precision_interval is not None:
        mark = (x(found.coverage), y(found.precision))
        low, high = found.precision_interval
        text = (
            f"At a threshold of {100 * found.threshold:.1f} % {100 * found.coverage:.1f} % of the images get an "
            f"answer and {100 * found.precision:.1f} % of these are right ({100 * low:.1f} to {100 * high:.1f}); "
            "the others are “unknown”."
        )
    return Chart(
        title="Right answers (%) when the least sure are withheld",
        across="images that get an answer (%)",
        across_ticks=x.ticks(percent=True, most=5),
        up_ticks=y.ticks(percent=True, most=5),
        lines=(draw_line("val", points, x, y),),
        mark=mark,
        mark_text="",
        note=text,
    )
