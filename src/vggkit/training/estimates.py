"""The memory of a training, and the batch size that fits.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch

from vggkit.errors import BadInput
from vggkit.hardware import find_available_memory
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.models.vgg import VGG
from vggkit.training.batches import count_batches
from vggkit.training.durations import time_step
from vggkit.training.parameter_groups import list_learnt
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

LIBRARIES: Final = 560_000_000
"""Memory in bytes of a process after importing the libraries."""
PASSING: Final = 0.9
"""Gradients of maps, the kernels' own copies and gaps between blocks, as a share of maps stored for backward."""
LEAST: Final = 8
"""Smallest batch size that is chosen, where nothing prevents it."""
MOST: Final = 256
"""Largest batch size that is chosen on a CPU."""
STEP_COST: Final = 275
"""Cost of updating a parameter, for any batch size, in multiply-adds of an image's forward and backward pass."""
LEAST_STEPS: Final = 10
"""Least number of steps in an epoch, if there are enough images; fewer steps train hardly anything."""
GROWTH: Final = 1.05
"""The gain in throughput on a GPU at which twice the batch size is worth it."""
GPU_SHARE: Final = 0.9
"""The share of a GPU's memory that is planned for."""


def estimate_memory(configuration: Configuration, recipe: Recipe, *, crop_pixels: int, batch_size: int) -> int:
    """Bytes that a training by steps holds at its largest, libraries included, of a resolved recipe.

    Within a quarter of what processes on Linux held that trained VGG11, with and without batch norm, in
    each precision; a GPU holds less beside the network.
    """
    shapes = configuration.state_shapes()
    learnt = set(list_learnt(configuration, recipe))
    all_values = sum(math.prod(shape) for shape in shapes.values())
    learnt_values = sum(math.prod(shapes[key]) for key in learnt)
    kernels = sum(math.prod(shapes[key]) for key in learnt if len(shapes[key]) == 4)
    moments = {
        "sgd": learnt_values if recipe.momentum else 0,
        "adamw": 2 * learnt_values,
        "muon": kernels + 2 * (learnt_values - kernels),
    }[recipe.optimizer]
    values = all_values + learnt_values + moments + (all_values if recipe.ema_decay else 0)
    state = 4 * values
    # A batch's gradients are added to those of the step: both are in memory.
    if recipe.precision == "fp32":
        state += 4 * learnt_values
    elif recipe.precision == "amp":
        state += 2 * all_values + 4 * learnt_values
    else:
        state += 2 * (all_values + learnt_values)
    size = 4 if recipe.precision == "fp32" else 2
    return LIBRARIES + state + int(batch_size * _measure_maps(configuration, learnt, crop_pixels, size))


def _measure_maps(configuration: Configuration, learnt: set[str], pixels: int, size: int) -> float:
    """Bytes an image of the maps that are held at once, numbers being `size` bytes."""
    # A ReLU works in place, and a convolution without batch norm then stores no output.
    copies = {"conv": int(configuration.batch_norm), "bn": 0, "relu": 1, "lrn": 5, "pool": 1}
    stored = configuration.head_features + 2 * sum(configuration.hidden)
    largest, indices, learns = 0, 0, False
    for step in Graph(configuration, input_pixels=(pixels, pixels)).trunk:
        values = math.prod(step.output_shape)
        learns = learns or not learnt.isdisjoint(step.weights)
        largest = max(largest, values)
        if learns:
            stored += copies[step.kind] * values
            indices += 8 * values if step.kind == "pool" and configuration.pooling == "max" else 0
    images = 4 * 4 * configuration.in_channels * pixels**2  # in float32, some batches ahead
    # Where nothing is stored, a map is computed from another.
    return images + max((size * stored + indices) * (1 + PASSING), 4 * size * largest)


def choose_batch_size(
    configuration: Configuration, recipe: Recipe, *, crop_pixels: int, images: int, device: torch.device
) -> tuple[int, str]:
    """Images a step, and why, for a recipe that is resolved but for it and the learning rate.

    On a CPU and on MPS a rule: the power of two from which learning the parameters takes about a ninth
    of a step, so that larger batches are barely faster, within half of the memory there is. Of
    VGG11's bf16 step, one thread of a Zen 5 gave with the pool head at 32 pixels, for 8, 16, 32, 64, 128,
    256 and 512 images, 143, 206, 273, 323, 339, 348 and 367 images a second; at 224 pixels, for 4, 8
    and 16, 8.0, 9.6 and 9.6. The same command so gives the same size. On CUDA real steps are tried.
    Either way an epoch keeps about ten steps.
    """
    fair = max(LEAST, _power_below(images / LEAST_STEPS))
    if device.type == "cuda" and recipe.trainable != "head":
        _free_memory()
        try:
            size, reason = search_batch_size(_Trial(configuration, recipe, crop_pixels, device), largest=fair)
        finally:
            _free_memory()
        return min(size, images), reason
    wanted = _find_flat(configuration, recipe, crop_pixels)
    if recipe.trainable == "head":
        return min(wanted, max(1, images)), "larger batches are not faster"
    size, reason = wanted, "larger batches are barely faster on this machine"
    if size > fair:
        count = count_batches(images, fair)
        size, reason = fair, f"{count} batch{'es' if count > 1 else ''} an epoch from {images:,} images"
    available = find_available_memory()
    while (
        available is not None
        and size > 2
        and estimate_memory(configuration, recipe, crop_pixels=crop_pixels, batch_size=size) > available / 2
    ):
        size, reason = size // 2, f"within half of the {available / 1e9:.1f} GB of memory that are free"
    if size >= images:
        return max(1, images), "there are no more images"
    return size, reason


def _find_flat(configuration: Configuration, recipe: Recipe, pixels: int) -> int:
    """The power of two from which throughput hardly grows."""
    shapes = configuration.state_shapes()
    learnt = sum(math.prod(shapes[key]) for key in list_learnt(configuration, recipe))
    multiply_adds = sum(step.multiply_adds for step in Graph(configuration, input_pixels=(pixels, pixels)).steps)
    nearest = round(math.log2(8 * STEP_COST * learnt / multiply_adds))
    return max(LEAST, min(MOST, 1 << max(0, nearest)))


def _power_below(value: float) -> int:
    return 1 << int(math.log2(max(1, value)))


class _Trial:
    """Gives seconds of a step of random images, by their number; raises torch's error where memory is short."""

    def __init__(self, configuration: Configuration, recipe: Recipe, pixels: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):  # other draws stay as they are
            network = VGG(configuration)
        self.train_state, self.pixels = TrainState(network, replace(recipe, accumulate=1), device=device), pixels
        self.train_state.start_epoch(recipe.epochs)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def __call__(self, size: int) -> float:
        seconds, device = time_step(self.train_state, size, self.pixels, times=4), self.train_state.device
        if device.type == "cuda":
            held = torch.cuda.max_memory_reserved(device)
            if held > GPU_SHARE * torch.cuda.get_device_properties(device).total_memory:
                raise torch.OutOfMemoryError(f"out of memory: {held} bytes leave no margin")
        return seconds


def search_batch_size(time_step: Callable[[int], float], *, largest: int) -> tuple[int, str]:
    """The power of two that doubling ends at, while it fits and pays, and why there.

    Args:
        time_step: Seconds of a step of so many images; raises torch's out-of-memory error.
        largest: The last one that is tried, LEAST or more.

    Raises BadInput where not one image fits.
    """
    best, fastest, size = 0, 0.0, LEAST
    while size <= largest:
        seconds = _try(time_step, size)
        if seconds is None:
            break
        if size / seconds < GROWTH * fastest:
            return best, "larger batches are barely faster on this machine"
        best, fastest, size = size, size / seconds, 2 * size
    if size > largest:
        return best, "larger batches would leave an epoch too few steps"
    if best:
        return best, "as many as the GPU's memory holds"
    for size in (LEAST // 2, LEAST // 4, 1):
        if _try(time_step, size) is not None:
            return size, "as many as the GPU's memory holds"
    raise BadInput(
        "not even one image a step fits the GPU's memory: end other programs that use it, use smaller "
        "images (--image-size), train fewer layers (--trainable top), or use --device cpu"
    )


def _try(time_step: Callable[[int], float], size: int) -> float | None:
    try:
        return time_step(size)
    except RuntimeError as problem:
        # Some devices have no class for it.
        if not (isinstance(problem, torch.OutOfMemoryError) or "out of memory" in str(problem).lower()):
            raise
    _free_memory()  # only here: the exception holds the step's maps until it is freed
    return None


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
