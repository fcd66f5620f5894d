"""How much memory a training takes, how many images a step, and how long it will be.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from vggkit.errors import BadInput
from vggkit.hardware import count_threads, derive_seed, find_available_memory
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.models.vgg import VGG
from vggkit.training.parameter_groups import list_learnt
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

LIBRARIES: Final = 560_000_000
"""Bytes that a process holds when the libraries are there and nothing else is."""
PASSING: Final = 0.9
"""Gradients of maps, the kernels' own copies and gaps between blocks, as a share of maps stored for backward."""
LEAST: Final = 8
"""Images a step that are chosen at least, where nothing forbids it."""
MOST: Final = 256
"""And at most on a CPU."""
STEP_COST: Final = 275
"""What it costs to learn a parameter, whatever the batch, in multiply-adds of an image's forward and backward."""
LEAST_STEPS: Final = 10
"""Steps that an epoch has at least where there are images enough; with fewer, hardly anything is learnt in it."""
TRIED: Final = 4
"""Trial steps by which a training's time is estimated."""
GROWTH: Final = 1.05
"""What twice the batch must bring in throughput on a GPU to be worth it."""
GPU_SHARE: Final = 0.9
"""Of a GPU's memory, at most so much is planned with."""


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
    # A batch's gradients are added to those of the step: both are there.
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
    # A ReLU works in place, and a convolution without batch norm then keeps nothing of its own.
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
    of a step, so that more images a step are hardly faster, within half of the memory there is. Of
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
        return min(wanted, max(1, images)), "more at once compute no faster"
    size, reason = wanted, "more a step are hardly faster here"
    if size > fair:
        size, reason = fair, f"{math.ceil(images / fair)} steps an epoch from {images:,} images"
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
        seconds, device = _time_step(self.train_state, size, self.pixels, times=4), self.train_state.device
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
            return best, "more a step are hardly faster here"
        best, fastest, size = size, size / seconds, 2 * size
    if size > largest:
        return best, "more a step would leave an epoch too few steps"
    if best:
        return best, "as many as the GPU's memory holds"
    for size in (LEAST // 2, LEAST // 4, 1):
        if _try(time_step, size) is not None:
            return size, "as many as the GPU's memory holds"
    raise BadInput(
        "not even one image a step fits the GPU's memory: end what else runs there, feed smaller images "
        "(--image-size), learn fewer layers (--trainable top), or take --device cpu"
    )


def _try(time_step: Callable[[int], float], size: int) -> float | None:
    try:
        return time_step(size)
    except RuntimeError as problem:
        # Some devices have no class for it.
        if not (isinstance(problem, torch.OutOfMemoryError) or "out of memory" in str(problem).lower()):
            raise
    _free_memory()  # only here: until its error is gone, the step's maps are still held
    return None


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a training will be, about."""

    epoch_seconds: float
    """Of an epoch, validation included."""
    seconds: float
    """Of all epochs."""


def estimate_seconds(
    train_state: TrainState,
    train: Sequence[ImageSample],
    val: Sequence[ImageSample],
    *,
    preprocessing: Preprocessing,
    keep_seconds: float = 0.0,
) -> Estimate | None:
    """How long a training from here will be, by some trial steps and some images decoded.

    The train_state stays as it is, bit for bit: network, statistics of batch norm, optimizer, random
    generators. None where there are fewer than ten steps for one that is tried.

    Args:
        train_state: About to begin.
        train: Images to learn from.
        val: Images to measure each epoch on.
        preprocessing: What the network is fed.
        keep_seconds: What it takes to write a state; an epoch writes one, and the weights of the best epoch.

    Raises BadImage for an image that is gone.
    """
    size, epochs = train_state.recipe.batch_size, train_state.recipe.epochs
    assert size is not None, "the recipe is resolved"
    steps = math.ceil(len(train) / size)
    if steps * epochs < 10 * TRIED:  # trial steps are to be little of all
        return None
    before = {key: value.clone() for key, value in train_state.state().items()}
    modes = {module: module.training for module in train_state.compute_copy.modules()}
    learning = {value: value.requires_grad for value in train_state.compute_copy.parameters()}
    train_state.start_epoch(1)
    try:
        step = _time_step(train_state, size, preprocessing.crop_pixels, times=TRIED)
    finally:
        train_state.restore(before)
        for module, training in modes.items():
            module.training = training
        for value, learns in learning.items():
            value.requires_grad_(learns)
    image = _time_image(train, preprocessing)
    # Measuring is the forward third of learning. A processor that decodes does not compute meanwhile.
    computing = steps * step + len(val) * step / size / 3
    decoding = (len(train) + len(val)) * image / count_threads()
    epoch = computing + decoding if train_state.device.type == "cpu" else max(computing, decoding)
    epoch += 1.5 * keep_seconds
    return Estimate(epoch, epochs * epoch)


def _time_step(train_state: TrainState, size: int, pixels: int, *, times: int) -> float:
    """Seconds of a step of random images, the median of some after one that warms up."""
    configuration, device = train_state.network.configuration, train_state.device
    draw = torch.Generator().manual_seed(derive_seed("trial", size))
    images = torch.randn(size, configuration.in_channels, pixels, pixels, generator=draw)
    targets = torch.randint(configuration.num_classes, (size,), generator=draw)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        train_state.compute(images, targets, draw=0)
        train_state.step(0.0, number=0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


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
    epoch, whole = spell_duration(estimate.epoch_seconds), spell_duration(estimate.seconds)
    return f"about {epoch} an epoch, {whole} of training in all, {memory}"


def spell_duration(seconds: float) -> str:
    """A duration in the unit in which it has one to three digits."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
