"""Estimates of the duration of a training, from some trial steps and some decoded images.

Shape letters: N images, C channels, H and W pixels.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vggkit.hardware import count_threads, derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.training.batches import TrainingBatches
from vggkit.training.train_state import TrainState

TRIED: Final = 4
"""Trial steps by which a training's time is estimated."""
TOLERANCE: Final = 1.3
"""Ratio of measured to estimated time above which the remaining time is re-estimated, and its inverse below."""
MIN_REPORTED_SECONDS: Final = 5.0
"""Remaining time below which a new estimate is not logged."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated duration of a training."""

    first_seconds: float
    """Of the first epoch, in which every image is decoded; validation included."""
    later_seconds: float
    """Of each later one."""
    epochs: int
    """Number of epochs."""

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return self.first_seconds + (self.epochs - 1) * self.later_seconds

    def describe_left(self, first_seconds: float) -> str | None:
        """A sentence on the remaining time after the first epoch, if it took another time than estimated."""
        ratio = first_seconds / self.first_seconds
        left = (self.epochs - 1) * self.later_seconds * ratio
        if left < MIN_REPORTED_SECONDS or 1 / TOLERANCE < ratio < TOLERANCE:
            return None
        return f"by this epoch's {spell_duration(first_seconds)}: about {spell_duration(left)} left"


def estimate_seconds(
    train_state: TrainState,
    batches: TrainingBatches,
    val: Sequence[ImageSample],
    *,
    preprocessing: Preprocessing,
    write_seconds: float = 0.0,
    processes: int = 1,
) -> Estimate | None:
    """The duration of a training from here, by some trial steps and some decoded images.

    The train_state stays as it is, bit for bit: network, statistics of batch norm, optimizer, random
    generators. None where there are fewer than ten steps for one that is tried.

    Args:
        train_state: The state before the first step.
        batches: The training batches; images that it caches are decoded in the first epoch only.
        val: Images to measure each epoch on.
        preprocessing: The preprocessing of images.
        write_seconds: Seconds in which a state is written; an epoch writes one, and the weights of the best epoch.
        processes: Number of processes that divide each batch.

    Raises BadImage for an image that no longer exists.
    """
    recipe, pixels = train_state.recipe, preprocessing.crop_pixels
    assert recipe.batch_size is not None, "the recipe is resolved"
    size, epochs = recipe.batch_size // processes, recipe.epochs
    if len(batches) * epochs < 10 * TRIED:  # trial steps are a small part of the training
        return None
    before = {key: value.clone() for key, value in train_state.state().items()}
    modes = {module: module.training for module in train_state.compute_copy.modules()}
    learning = {value: value.requires_grad for value in train_state.compute_copy.parameters()}
    tried = (1, epochs) if recipe.trainable == "gradual" else (1,)  # more layers are trained in its last epoch
    steps = []
    try:
        for epoch in tried:
            train_state.start_epoch(epoch)
            steps.append(time_step(train_state, size, pixels, times=TRIED))
        forward = _time_forward(train_state, size, pixels)
    finally:
        train_state.restore(before)
        for module, training in modes.items():
            module.training = training
        for value, learns in learning.items():
            value.requires_grad_(learns)
    cores, is_processor = max(1, count_threads() // processes), train_state.device.type == "cpu"

    def overlap(computing: float, preparing: float, threads: int) -> float:
        """Images are prepared by threads while others are computed; a processor does both."""
        return max(computing + preparing / cores if is_processor else computing, preparing / threads)

    measured = len(val) / processes
    validating = overlap(measured * forward / size, measured * _time_image(val, preprocessing), cores)

    def estimate_epoch(image_seconds: float) -> float:
        preparing = batches.count_images() * image_seconds
        learning = overlap(len(batches) * statistics.mean(steps), preparing, batches.threads)
        return learning + validating + 1.5 * write_seconds

    first, later = batches.time_images()
    return Estimate(estimate_epoch(first), estimate_epoch(later), epochs)


def time_step(train_state: TrainState, size: int, pixels: int, *, times: int) -> float:
    """Seconds of a step of random images, the median of some after one that warms up."""
    device = train_state.device
    images, targets = _draw_batch(train_state, size, pixels)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        train_state.compute(images, targets, draw=0)
        train_state.step(0.0, number=0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _time_forward(train_state: TrainState, size: int, pixels: int) -> float:
    """Seconds of a forward pass of random images without gradients, the second of two."""
    network, device = train_state.compute_copy, train_state.device
    images, _ = _draw_batch(train_state, size, pixels)
    kind = next(network.parameters()).dtype
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        with torch.inference_mode():
            network.eval()(images.to(device, kind, memory_format=torch.channels_last))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds


def _draw_batch(train_state: TrainState, size: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Random images (N, C, H, W) and targets as for `Objective`."""
    configuration = train_state.network.configuration
    draw = torch.Generator().manual_seed(derive_seed("trial", size))
    images = torch.randn(size, configuration.in_channels, pixels, pixels, generator=draw)
    targets = torch.randint(configuration.num_classes, (size,), generator=draw)
    if train_state.task == "multi-label":
        return images, torch.nn.functional.one_hot(targets, configuration.num_classes).float()
    return images, targets


def _time_image(images: Sequence[ImageSample], preprocessing: Preprocessing) -> float:
    """Seconds of one thread for one image, by some of them."""
    chosen = [images[place * len(images) // 8] for place in range(8)]
    started = time.perf_counter()
    for image in chosen:
        preprocessing.see(image)
    return (time.perf_counter() - started) / len(chosen)


def describe(estimate: Estimate | None, *, memory_bytes: int) -> str:
    """Such as `about 12 s an epoch, 2 min of training in all, 3.1 GB of memory`."""
    memory = f"{memory_bytes / 1e9:.1f} GB of memory"
    if estimate is None:
        return f"about {memory}"
    epoch, whole = spell_duration(estimate.seconds / estimate.epochs), spell_duration(estimate.seconds)
    return f"about {epoch} an epoch, {whole} of training in all, {memory}"


def spell_duration(seconds: float) -> str:
    """A duration in the unit in which it has one to three digits."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
