"""The records of an evaluation: metrics, per-class metrics, calibration and rejection."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from vggkit.evaluation.predictions import Predictions
from vggkit.notebook import write_html
from vggkit.task import Task

FigureName = Literal[
    "top1",
    "top5",
    "loss",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "micro_f1",
    "exact_match",
    "roc_auc",
    "average_precision",
    "ece",
]
ProtocolName = Literal["single", "dense", "multi-scale", "multi-crop", "dense+crops"]
Interval = tuple[float, float]
"""Lower and upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """The metrics of one class against all others."""

    label: str
    """The class name."""
    support: int
    """Number of images of the class."""
    predicted: int
    """Number of images predicted as the class, correctly or not."""
    precision: float
    """Share in [0, 1] of the images predicted as the class that belong to it; 0 where none was."""
    recall: float
    """Share in [0, 1] of the images of the class that are predicted as it; 0 where there are none."""
    f1: float
    """Harmonic mean of precision and recall."""
    f1_interval: Interval | None
    """95 % bootstrap interval of `f1`; None without images of the class."""
    roc_auc: float | None
    """Area under the ROC curve of the class against all others; None where either has no images."""
    average_precision: float | None
    """Average precision of the class against all others; None without images of the class."""
    threshold: float | None = None
    """Multi-label: the probability from which the class is predicted; else None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Predictions of similar confidence: one bin of the reliability diagram."""

    low: float
    """Lower bound of the confidence, exclusive."""
    high: float
    """Upper bound of the confidence, inclusive."""
    n: int
    """Number of predictions."""
    confidence: float
    """Mean confidence; the middle of the bin where it is empty."""
    accuracy: float | None
    """Share of the predictions that are correct; None where the bin is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The match of confidence and accuracy (Guo et al., 2017, "On calibration of modern neural networks")."""

    ece: float
    """Expected calibration error in [0, 1]: the mean of |accuracy - confidence| over the bins, weighted by size."""
    mean_confidence: float
    """Mean confidence; a model is overconfident where it exceeds the accuracy."""
    bins: tuple[Bin, ...]
    """The reliability diagram: bins of equal width over [0, 1]."""
    temperature: float
    """The temperature that logits are divided by; 1 leaves them unchanged."""
    ece_before: float | None
    """`ece` at a temperature of 1; None where several views of an image were averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Rejection of predictions below a confidence threshold, as "unknown"."""

    threshold: float
    """Predictions of lower confidence are rejected."""
    wanted_precision: float | None
    """The precision that the threshold was chosen for; None where it was given."""
    n: int
    """Number of accepted predictions."""
    coverage: float
    """Share in [0, 1] of the predictions that are accepted."""
    precision: float | None
    """Share in [0, 1] of the accepted predictions that are correct; None where all are rejected."""
    precision_interval: Interval | None
    """Wilson's 95 % confidence interval of `precision`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of an evaluation: what was measured, on which images, and how."""

    top1: float
    """Top-1 accuracy in [0, 1]: share of images whose most probable class is the true one; multi-label is one of
    theirs."""
    top5: float
    """Top-5 accuracy in [0, 1]: share of images whose true class is among the five most probable; multi-label one
    of theirs."""
    loss: float
    """Mean cross-entropy in nats; multi-label the mean of the binary ones of all classes."""
    macro_precision: float
    """Unweighted mean of the precision of the classes that have images."""
    macro_recall: float
    """Unweighted mean of the recall of these classes, also called balanced accuracy."""
    macro_f1: float
    """Unweighted mean of the F1 of these classes."""
    roc_auc: float | None
    """Area under the ROC curve, one-vs-rest, mean of the classes; None where only one class has images."""
    average_precision: float | None
    """Average precision, one-vs-rest, mean of the classes; None where only one class has images. Multi-label the
    mean average precision (mAP) of the classes that have images."""
    ece: float
    """Expected calibration error in [0, 1], the same as `calibration.ece`."""
    intervals: Mapping[FigureName, Interval]
    """95 % confidence interval of each metric above: bootstrap percentiles, or Wilson's interval for a
    share of 0 or 1, which does not vary between resamples. Other metrics that do not vary have none."""
    n: int
    """Number of evaluated images: readable, and of a class that the Classifier knows."""
    labels: tuple[str, ...]
    """Class names, in the order of the confusion matrix."""
    classes: tuple[ClassMetrics, ...]
    """Metrics of each class, in that order."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class (row) and predicted class (column); empty for multi-label."""
    calibration: Calibration
    """The match of predicted probabilities and accuracy."""
    rejection: Rejection | None
    """Coverage and precision with rejection, where a threshold is set or was searched for; else None."""
    data: str
    """Name or place of the dataset."""
    split: str
    """The evaluated split: `train`, `val`, `test` or `all`."""
    model: str
    """Name of the evaluated Classifier."""
    protocol: str
    """The views of each image that were evaluated, in words."""
    images: str = ""
    """Digest of the evaluated images: their classes, file names and sizes."""
    unreadable: tuple[str, ...] = ()
    """Unreadable images, which were excluded, each with its reason."""
    notes: tuple[str, ...] = ()
    """Remarks that matter for the interpretation of the metrics."""
    predictions: Predictions = field(repr=False, compare=False)
    """The predictions table, from which every metric can be computed again; `predictions.save` writes it."""
    task: Task = "single-label"
    """Whether an image has exactly one class, or any number of them."""
    micro_f1: float | None = None
    """Multi-label: F1 of all decisions on images and classes together, at the thresholds; else None."""
    exact_match: float | None = None
    """Multi-label: share in [0, 1] of images of which exactly the labels are predicted; else None."""

    @property
    def source(self) -> str:
        """The dataset and the split, as one phrase."""
        return f"{self.data}, split {self.split}" if self.split else self.data

    @property
    def main_figure(self) -> FigureName:
        """The figure that is looked at first: `top1`, or for multi-label `average_precision`, the mAP."""
        return "top1" if self.task == "single-label" else "average_precision"

    @property
    def top1_interval(self) -> Interval:
        """95 % interval of `top1`."""
        return self.intervals["top1"]

    def __repr__(self) -> str:
        low, high = self.top1_interval
        measured = f"top-1 {self.top1:.4f} ({low:.4f} to {high:.4f}), loss {self.loss:.4f}"
        if self.task == "multi-label":
            measured = f"mAP {self.average_precision:.4f}, macro F1 {self.macro_f1:.4f}, loss {self.loss:.4f}"
        return f"Evaluation({self.model} on {self.source}, {self.n:,} images, {measured})"

    def _repr_html_(self) -> str:
        rows = []
        for name in get_args(FigureName):
            value, ends = getattr(self, name), self.intervals.get(name)
            if value is not None:
                rows.append((name, f"{value:.4f}", f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""))
        rows += [("note", note, "") for note in self.notes]
        return write_html(
            f"{self.model} on {self.source}: {self.n:,} images", rows, header=("metric", "", "95 % interval")
        )

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: every field except the predictions table."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "predictions"}
        for name in ("classes", "unreadable", "notes", "labels"):
            values[name] = list(values[name])
        return values | {
            "top1_interval": list(self.top1_interval),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "confusion": [list(row) for row in self.confusion],
            "classes": [asdict(each) for each in self.classes],
            "calibration": asdict(self.calibration),
            "rejection": None if self.rejection is None else asdict(self.rejection),
        }


def proportion_interval(hits: int, n: int) -> Interval:
    """Wilson's 95 % confidence interval of a proportion (Wilson, 1927).

    The same as `scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")`, without importing scipy.stats.

    Args:
        hits: Number of successes, 0 to `n`.
        n: Number of trials, 1 or more.

    >>> low, high = proportion_interval(90, 100)
    >>> f"{low:.3f} to {high:.3f}"
    '0.826 to 0.945'
    """
    z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
    share, weight = hits / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * ((share * (1 - share) + weight / 4) / n) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
