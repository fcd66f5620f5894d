"""The charts of the evaluation report: training curves, the reliability diagram, accuracy by coverage.

This module computes coordinates; the template `pages/charts.html` draws them as SVG in the colours of the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from vggkit.evaluation.calibration import list_thresholds
from vggkit.evaluation.evaluation import Evaluation, proportion_interval

WIDTH: Final = 400
HEIGHT: Final = 250
LEFT: Final = 44
RIGHT: Final = 388
TOP: Final = 14
BOTTOM: Final = 212
MOST_POINTS: Final = 200
"""Points of a curve; longer ones are thinned out."""


class Tick(NamedTuple):
    """A value beside an axis."""

    place: float
    """Coordinate on the page."""
    text: str


class Line(NamedTuple):
    """A curve."""

    kind: str
    """CSS class: `train`, `val` or `ideal`."""
    path: str
    """An SVG path."""
    dots: tuple[tuple[float, float], ...] = ()
    """Coordinates of the points that are marked."""
    name: str = ""
    """Name in the legend; empty for none."""


class Bar(NamedTuple):
    """A vertical bar with an error bar."""

    left: float
    width: float
    top: float
    height: float
    whisker: tuple[float, float] | None
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, `WIDTH` by `HEIGHT`."""

    title: str
    across: str
    """Title of the horizontal axis."""
    across_ticks: tuple[Tick, ...]
    up_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    mark: tuple[float, float] | None = None
    """Coordinates of a highlighted point."""
    mark_text: str = ""
    """Description of the highlighted point."""
    note: str = ""
    """Text below the chart."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis: values from low to high at coordinates from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Coordinate of a value."""
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)

    def ticks(self, *, percent: bool = False, most: int = 6, whole: bool = False) -> tuple[Tick, ...]:
        """Ticks at round values."""
        step = find_step(self.high - self.low, most)
        step = max(1.0, round(step)) if whole else step
        first = math.ceil(self.low / step - 1e-9)
        values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
        digits = max(0, -math.floor(math.log10(step * (100 if percent else 1)) + 1e-9))
        return tuple(
            Tick(self(value), f"{100 * value:.{digits}f}" if percent else f"{value:.{digits}f}") for value in values
        )


def find_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10 … that divides a span into at most so many steps."""
    raw = (span or 1.0) / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= raw * (1 - 1e-9))


def across(low: float, high: float) -> Scale:
    """The horizontal axis."""
    return Scale(low, high, LEFT, RIGHT)


def up(low: float, high: float) -> Scale:
    """The vertical axis."""
    return Scale(low, high, BOTTOM, TOP)


def draw_line(
    kind: str, points: Sequence[tuple[float, float]], x: Scale, y: Scale, *, name: str = "", dots: bool = False
) -> Line:
    """A curve through points, each marked by a dot if `dots`."""
    placed = tuple((x(across), y(up)) for across, up in points)
    path = "M" + "L".join(f"{across} {up}" for across, up in placed)
    return Line(kind, path, placed if dots else (), name)


def draw_curves(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> list[Chart]:
    """Losses and validation accuracy by epoch, from the rows of `metrics.csv`; no charts for fewer than two epochs.

    Args:
        history: Rows with the keys epoch, train_loss, val_loss and val_top1.
        best_epoch: The best epoch, whose weights were saved; it is marked.
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
    name = "val_top1" if history[-1].get("val_map") is None else "val_map"
    accuracies = [row[name] for row in history]
    share = up(max(0.0, min(accuracies) - 0.1), min(1.0, max(accuracies) + 0.05))
    best = next((row for row in history if row["epoch"] == best_epoch), None)
    best_text = ""
    if best is not None:
        when = f"after epoch {best['epoch']:.0f}" if best["epoch"] else "before the first step"
        best_text = f"Best: {100 * best[name]:.1f} % {when}"
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
            title="Validation accuracy, top-1 (%)" if name == "val_top1" else "Validation mAP (%)",
            across="epoch",
            across_ticks=ticks,
            up_ticks=share.ticks(percent=True, most=5),
            lines=(draw_line("val", list(zip(epochs, accuracies, strict=True)), x, share, dots=few),),
            mark=None if best is None else (x(best["epoch"]), share(best[name])),
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
    several = evaluation.task == "multi-label"
    return Chart(
        title=f"Reliability diagram: {'frequency (%) by probability' if several else 'accuracy (%) by confidence'}",
        across="probability of a class (%)" if several else "confidence: probability of the predicted class (%)",
        across_ticks=x.ticks(percent=True, most=5),
        up_ticks=y.ticks(percent=True, most=5),
        bars=tuple(bars),
        lines=(draw_line("ideal", [(0, 0), (1, 1)], x, y, name="perfect calibration"),),
        note=_describe_calibration(evaluation),
    )


def _describe_calibration(evaluation: Evaluation) -> str:
    calibration = evaluation.calibration
    several = evaluation.task == "multi-label"
    share = sum(each.support for each in evaluation.classes) / (evaluation.n * len(evaluation.labels))
    gap = calibration.mean_confidence - (share if several else evaluation.top1)
    verdict = "well calibrated on average" if abs(gap) < 0.01 else "overconfident" if gap > 0 else "underconfident"
    sentences = [
        f"The mean confidence is {100 * calibration.mean_confidence:.1f} % and the accuracy "
        f"{100 * evaluation.top1:.1f} %: the model is {verdict}."
    ]
    if several:
        sentences = [
            f"The mean probability of a class is {100 * calibration.mean_confidence:.1f} %, and images have "
            f"{100 * share:.1f} % of the classes."
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
