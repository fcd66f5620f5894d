"""What compression does and what was measured of it, as records. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vggkit.evaluation.comparison import PairedComparison
from vggkit.weights.storage import Storage

Figure = Literal["top-1", "micro F1"]
"""What networks are compared by: with one label an image the accuracy, with several the F1 of all decisions."""
RunPrecision = Literal["fp32", "int8"]
"""What a point was computed in: float32, or int8 by the measured activation ranges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Columns of fc6 that read equal values are summed, exactly, for images of the Classifier's size."""

    grid: int
    """Side of the map that the head reads from then on."""

    def __str__(self) -> str:
        return "fc6 folded"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHead:
    """One matrix on the means of the channels in place of the fully connected layers."""

    def __str__(self) -> str:
        return "pool head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Channels of convolutions are removed, and the layers that read them fitted anew."""

    removed: float
    """Share in (0, 1) of the multiply-adds that is removed."""

    def __str__(self) -> str:
        return f"-{100 * self.removed:.0f} % multiply-adds"


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """Fully connected layers but the last become two factors."""

    ranks: tuple[int, ...]
    """Rank of each; one that would not be smaller stays a matrix."""

    def __str__(self) -> str:
        return f"ranks {', '.join(map(str, self.ranks))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """All layers are trained further, with the Classifier as it was as the teacher."""

    epochs: int
    """Passes over the training images."""

    def __str__(self) -> str:
        return f"{self.epochs} epochs"


CompressionStep = Fold | PoolHead | Prune | LowRank | FineTune
"""A change of the network; how its file holds the weights is `Storage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPoint:
    """A network that was made and measured: a point of the frontier."""

    steps: tuple[CompressionStep, ...]
    """How it was made; empty: the Classifier as it was."""
    storage: Storage
    """How its file holds the weights."""
    precision: RunPrecision
    """What it computes in."""
    size_bytes: int
    """Size of its file; of those that were not chosen without the record of the compression, a few kB."""
    parameters: int
    """Its trained values."""
    multiply_adds: int
    """Multiplications with an addition for one image."""
    top1: float | None
    """Top-1 accuracy in [0, 1] on the images that the choice is made by, or what `figure` says in its place; None
    without images."""
    figure: Figure = "top-1"
    """What `top1` is: micro F1 where an image has several labels."""
    images_per_second: float | None
    """Throughput at batch 8 on this machine, median of several rounds; None where it was not measured."""
    speedup: float | None
    """Throughput over that of the Classifier as it was, in the same rounds; None where it was not measured."""

    @property
    def name(self) -> str:
        """Its steps in a few words."""
        steps = [str(step) for step in self.steps if not isinstance(step, FineTune)]
        return ", ".join(steps) or "as it was"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What is asked of the compressed Classifier."""

    max_size_bytes: int | None = None
    """Largest size of the file."""
    max_loss: float | None = None
    """Largest loss of top-1 accuracy in [0, 1], or of micro F1 for several labels an image, on the images that the
    choice is made by."""
    min_speedup: float | None = None
    """Least throughput over that of the Classifier as it was."""

    def meets(self, point: CompressionPoint, before: CompressionPoint) -> bool:
        """Whether a point reaches all of them."""
        return not self.list_misses(point, before)

    def list_misses(self, point: CompressionPoint, before: CompressionPoint) -> list[str]:
        """The goals that a point misses, by name."""
        missed = []
        if self.max_size_bytes is not None and point.size_bytes > self.max_size_bytes:
            missed.append("max_size")
        if self.max_loss is not None:
            assert point.top1 is not None and before.top1 is not None, "measured with images"  # noqa: PT018
            if before.top1 - point.top1 > self.max_loss + 1e-12:
                missed.append("max_loss")
        if self.min_speedup is not None and (point.speedup or 0.0) < self.min_speedup:
            missed.append("min_speedup")
        return missed


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRole:
    """Images of one role: which ones, and what for."""

    purpose: Literal["fit", "choose", "report"]
    """fit: channels are ranked, layers fitted and weights trained on them. choose: points are compared on them.
    report: accuracy before and after is measured on them, once."""
    images: int
    """How many."""
    split: str
    """Which split they are, such as `train`, or `half of val`."""
    digest: str
    """What identifies them, as `identify_images` gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionRecord:
    """What a compression found: before and after, every measured point, and the images of each role."""

    before: CompressionPoint
    """The Classifier as it was."""
    chosen: CompressionPoint
    """What became of it."""
    points: tuple[CompressionPoint, ...]
    """All that were measured, in order, `before` first."""
    goals: Goals
    """What was asked."""
    roles: tuple[ImageRole, ...]
    """The images; empty without data."""
    comparison: PairedComparison | None
    """Accuracy before and after, or for several labels exact matches, on the images for the report, with its paired
    95 % interval."""
    machine: str
    """Where speeds were measured."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "before": _describe(self.before),
            "chosen": _describe(self.chosen),
            "points": [_describe(point) for point in self.points],
            "goals": asdict(self.goals),
            "roles": [asdict(role) for role in self.roles],
            "comparison": None if self.comparison is None else self._summarize(self.comparison),
            "machine": self.machine,
        }

    @staticmethod
    def _summarize(comparison: PairedComparison) -> Mapping[str, Any]:
        return {name: value for name, value in comparison.to_dict().items() if name != "changes"}


def _describe(point: CompressionPoint) -> dict[str, Any]:
    steps = [{"step": type(step).__name__, **_listed(asdict(step))} for step in point.steps]
    return {**asdict(point), "steps": steps, "name": point.name}


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
