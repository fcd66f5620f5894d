"""Size, accuracy and speed of a Classifier as its file will give it.

Shape letters: N images, C channels, H and W pixels.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

import numpy as np
import torch

from vggkit.compression.records import RunPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import NamedEngine
from vggkit.errors import BadImage
from vggkit.evaluation.measure import predict_labelled
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import plan_protocol, prepare_engines
from vggkit.images.dataset import ImageSample
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.weights.model import Model

BATCH: Final = 8
"""Images that pass together when speed is measured."""
ROUNDS: Final = 5
"""Turns of each of two engines."""
TURN_SECONDS: Final = 0.2
"""Least length of a turn."""


def count_multiply_adds(configuration: Configuration, pixels: int) -> int:
    """Multiply-adds for one square image of that side."""
    return sum(step.multiply_adds for step in Graph(configuration, input_pixels=(pixels, pixels)).steps)


def predict_all(
    model: Model,
    images: Sequence[ImageSample],
    *,
    precision: RunPrecision,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """The predictions of labelled images; raises BadImage for one that cannot be read."""
    plan = plan_protocol("single", model.preprocessing)
    engines = prepare_engines(model, plan, device="cpu" if precision == "int8" else device, precision=precision)
    found, unreadable = predict_labelled(model, images, plan, engines=engines, on_progress=on_progress)
    if unreadable:
        raise BadImage(f"{unreadable[0]}; exclude it: vggkit check --fix clean.csv writes a table without it")
    return found


def measure_speedup(
    before: Model, after: Model, *, precision: RunPrecision, device: torch.device
) -> tuple[float, float]:
    """Images a second of `after` at batch 8, and how many times those of `before` they are, by turns.

    Args:
        before: In float32, by the engine that `Classifier.predict` takes.
        after: Another Classifier.
        precision: What `after` computes in.
        device: Where both compute.
    """
    engines = [
        choose_engine(before, device, precision="fp32"),
        choose_engine(after, "cpu" if precision == "int8" else device, precision=precision),
    ]
    side, channels = before.preprocessing.crop_pixels, before.configuration.in_channels
    batch = np.random.default_rng(0).standard_normal((BATCH, channels, side, side), np.float32)
    speeds: list[list[float]] = [[], []]
    for number in range(ROUNDS):
        for place in (0, 1) if number % 2 else (1, 0):
            speeds[place].append(_time(engines[place], batch))
    ratios = [mine / other for other, mine in zip(*speeds, strict=True)]
    return median(speeds[1]), median(ratios)


def _time(engine: NamedEngine, batch: np.ndarray) -> float:
    """Images a second of a turn; its first pass does not count."""
    engine.run(batch)
    passes, started = 0, time.perf_counter()
    while passes < 2 or time.perf_counter() - started < TURN_SECONDS:
        engine.run(batch)
        passes += 1
    return passes * len(batch) / (time.perf_counter() - started)
