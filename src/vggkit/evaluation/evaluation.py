"""What an evaluation comes to: the records that reports are drawn from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from vggkit.evaluation.predictions import Predictions

FigureName = Literal[
    "top1", "top5", "loss", "macro_precision", "macro_recall", "macro_f1", "roc_auc", "average_precision", "ece"
]
ProtocolName = Literal["single", "dense", "multi-scale", "multi-crop", "dense+crops"]
Interval = tuple[float, float]
"""Lower and upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFigures:
    """How well one class is told from the others."""

    label: str
    """Its name."""
    support: int
    """Images of it."""
    given: int
    """Images that were taken for it, rightly or not."""
    precision: float
    """Share in [0, 1] of `given` that are of it; 0 where none was."""
    recall: float
    """Share of `support` that were taken for it; 0 where there is none."""
    f1: float
    """Harmonic mean of both."""
    f1_interval: Interval | None
    """95 % bootstrap interval; None without images of it."""
    roc_auc: float | None
    """Chance that its probability is higher on an image of it than on another; None where either lacks."""
    average_precision: float | None
    """Precision averaged over the recalls that its probability can be cut at; None without images of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Answers of about the same probability."""

    low: float
    """Probabilities above this,"""
    high: float
    """and up to this."""
    n: int
    """Predictions."""
    confidence: float
    """Their mean probability; the middle of the bin where it is empty."""
    accuracy: float | None
    """Share of them that are right; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether answers of a probability are right that often (Guo et al., 2017)."""

    ece: float
    """Expected calibration error in [0, 1]: the mean of |accuracy - confidence| over the answers' bins."""
    mean_confidence: float
    """Mean probability of the answers; above the accuracy they are too sure."""
    bins: tuple[Bin, ...]
    """The reliability diagram: bins of equal width over [0, 1]."""
    temperature: float
    """What logits are divided by; 1 leaves them."""
    ece_before: float | None
    """`ece` at a temperature of 1; None where several looks at an image were averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Answering "unknown" below a probability."""

    threshold: float
    """Answers of a lower probability are withheld."""
    wanted_precision: float | None
    """The share of right answers that it was chosen for; None where it was only given."""
    n: int
    """Answers that are not withheld."""
    coverage: float
    """Their share in [0, 1] of all."""
    precision: float | None
    """Share of them that are right; None where all are withheld."""
    precision_interval: Interval | None
    """Wilson's 95 % interval of `precision`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured, on what, and how."""

    top1: float
    """Share in [0, 1] of images whose best class is the right one."""
    top5: float
    """Share of images whose right class is among the best five; 1 where there are five classes or fewer."""
    loss: float
    """Mean cross-entropy in nats."""
    macro_precision: float
    """Mean of the precision of the classes that there are images of."""
    macro_recall: float
    """Mean of their recall, also called balanced accuracy."""
    macro_f1: float
    """Mean of their F1."""
    roc_auc: float | None
    """Mean of each class's area under its ROC curve against all others; None where only one class has images."""
    average_precision: float | None
    """Mean of each class's average precision."""
    ece: float
    """Expected calibration error; see `calibration`."""
    intervals: Mapping[FigureName, Interval]
    """95 % interval of each figure above: percentiles over bootstrap resamples of the images; for a share of 0 or
    1, of which a resample tells nothing, Wilson's. Other figures that all resamples agree on have none."""
    n: int
    """Images that count: readable, and of a class the Classifier knows."""
    labels: tuple[str, ...]
    """Class names, in the order of the confusion matrix."""
    classes: tuple[ClassFigures, ...]
    """Figures of each class, in that order."""
    confusion: tuple[tuple[int, ...], ...]
    """Images by right class (row) and given class (column)."""
    calibration: Calibration
    """Whether probabilities can be taken at their word."""
    rejection: Rejection | None
    """What answering "unknown" would come to, where a threshold is known or was looked for."""
    data: str
    """Where the images come from."""
    split: str
    """Which part of it: `train`, `val`, `test` or `all`."""
    model: str
    """What was measured."""
    protocol: str
    """How each image was looked at."""
    images: str = ""
    """What tells these images from others; see `identify_images`."""
    unreadable: tuple[str, ...] = ()
    """Images left out because they cannot be read, each with its reason."""
    notes: tuple[str, ...] = ()
    """What the reader of the numbers must know."""
    predictions: Predictions = field(repr=False, compare=False)
    """The table that every figure can be computed from again; `answers.save` writes it."""

    @property
    def source(self) -> str:
        """Where the images come from and which part of it, for people."""
        return f"{self.data}, split {self.split}" if self.split else self.data

    @property
    def top1_interval(self) -> Interval:
        """95 % interval of `top1`."""
        return self.intervals["top1"]

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: everything but the answers."""
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
    """Wilson's 95 % interval for a share of `hits` in `n`."""
    z = 1.959963984540054  # the normal distribution's 97.5 % quantile; scipy.stats takes 4 s to import
    share, weight = hits / n, z * z / n
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * ((share * (1 - share) + weight / 4) / n) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
