"""Speed and accuracy of engines: the records of a bench, and the figures of its rounds.

Every engine has a turn in each round, so that what slows the machine down meanwhile meets all of them; ratios
are of one round.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from vggkit.engines.info import EngineName
from vggkit.engines.outputs import Precision


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of several rounds."""

    median: float
    """The middle one."""
    least: float
    """The smallest."""
    most: float
    """The largest."""

    @classmethod
    def of(cls, found: Sequence[float]) -> Self:
        """Of one figure or more."""
        return cls(median(found), min(found), max(found))


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of an engine's predictions with those of PyTorch in float32, on the same images."""

    images: int
    """N."""
    same_class: int
    """Images whose most probable class is the same."""
    interval: tuple[float, float]
    """95 % interval of the share with the same class."""
    error: float
    """Root of the mean square of differences of logits, over the logits' standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTimings:
    """The measurements of one engine in one precision, or the reason why it does not run."""

    engine: EngineName
    """The engine."""
    precision: Precision
    """The precision."""
    device: str
    """Where: `cpu`, `cuda`, `mps`."""
    is_auto: bool = False
    """Whether `vggkit predict` takes it here, whose engine and precision are auto."""
    is_python_default: bool = False
    """Whether `Classifier.predict` takes it here, whose engine is auto and whose precision is fp32."""
    is_reference: bool = False
    """Whether it is the reference that others are compared with, PyTorch in float32."""
    problem: str | None = None
    """The reason why it does not run here; the figures below are then absent."""
    latency_p50_seconds: Spread | None = None
    """Median seconds of a pass of one image."""
    latency_p95_seconds: Spread | None = None
    """95th percentile of the seconds of a pass of one image."""
    images_per_second: Mapping[int, Spread] | None = None
    """Images a second by batch size."""
    best_batch_size: int | None = None
    """The batch size with the most images a second."""
    times_reference: Spread | None = None
    """Images a second at the best number over those of PyTorch in float32 at its best."""
    start_seconds: float | None = None
    """From the start of a process to its first result, once."""
    peak_memory_bytes: int | None = None
    """Peak memory of its process, including the mapped file of the weights and a batch of images."""
    device_memory_bytes: int | None = None
    """Its peak GPU memory."""
    agreement: Agreement | None = None
    """None for the reference, and where the reference does not run."""

    @property
    def speed(self) -> float:
        """Images a second at the best number; 0 where it does not run."""
        if self.images_per_second is None or self.best_batch_size is None:
            return 0.0
        return self.images_per_second[self.best_batch_size].median


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Every engine and precision of a machine, on one Classifier."""

    model: str
    """The Classifier's file, or its name."""
    network: str
    """The name of its network, such as vgg11."""
    input_pixels: int
    """Height and width of the network's input in pixels."""
    images: str | None
    """The images; None where random images were used, so that only speeds are measured."""
    unreadable: int = 0
    """Images that cannot be read."""
    rounds: int
    """Turns that each engine had."""
    machine: str
    """Processor and accelerators."""
    versions: Mapping[str, str]
    """Of the packages that compute."""
    engines: tuple[EngineTimings, ...]
    """Fastest first, those that do not run last."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)


@dataclass(slots=True)
class Rounds:
    """The timings of one engine."""

    passes: dict[int, list[list[float]]] = field(default_factory=dict)
    """Seconds of each pass of each round, by the number of images that pass together."""

    def add(self, batch_size: int, seconds: Sequence[float]) -> None:
        """A turn's passes."""
        self.passes.setdefault(batch_size, []).append(list(seconds))

    def find_speeds(self) -> dict[int, list[float]]:
        """Images a second of each round."""
        return {
            size: [size * len(seconds) / sum(seconds) for seconds in rounds] for size, rounds in self.passes.items()
        }

    def find_best(self) -> int:
        """The number of images with the most of them a second."""
        speeds = self.find_speeds()
        return max(speeds, key=lambda size: median(speeds[size]))

    def find_latencies(self, share: float) -> list[float]:
        """Seconds within which that share of the single images of each round were computed."""
        return [_find_quantile(seconds, share) for seconds in self.passes.get(1, ())]


def _find_quantile(values: Sequence[float], share: float) -> float:
    """The quantile of the values: the smallest that the given share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
