"""The learning rate range test: a suitable learning rate for a network and its images, by one short run.

Source: Smith, "Cyclical learning rates for training neural networks", 2017, section 3.3, with the
growth, smoothing and stop of Gugger's "How do you find a good learning rate", 2018.
"""

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from vggkit.errors import BadConfiguration
from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.models.vgg import VGG
from vggkit.training.augmentation import Mixing
from vggkit.training.batches import TrainingBatches
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.objective import Objective
from vggkit.training.recipe import Recipe, find_least_share
from vggkit.training.train_state import TrainState
from vggkit.training.whitening import whiten_first_layer
from vggkit.weights.model import Model

SMOOTHING: Final = 0.9
"""Share of the earlier losses in the smoothed loss; about the last ten count."""
BLOW_UP: Final = 4.0
"""The search ends when the smoothed loss is this multiple of its minimum."""
LEAST_FALL: Final = 0.02
"""Least relative decrease of the loss if a network learns; that of a stuck plain VGG varies by half of it."""
BELOW_LOWEST: Final = 0.1
"""A suggestion is at most this share of the rate at which the loss is lowest: there it is about to grow."""


@dataclass(frozen=True, slots=True)
class RateSearch:
    """The losses of a search for a learning rate, and its suggestion."""

    rates: tuple[float, ...]
    """The rate of each step, rising."""
    losses: tuple[float, ...]
    """Mean cross-entropy in nats of each step's images, before the step; each is finite."""
    smoothed: tuple[float, ...]
    """The losses, averaged exponentially."""
    suggested: float | None
    """A highest learning rate for a training; None where the loss falls at no rate."""
    why: str
    """A sentence on it."""


def find_learning_rate(
    network: VGG,
    batches: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    device: torch.device,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    objective: Objective | None = None,
    caller_settings: CallerSettings = NO_SETTINGS,
    on_step: Callable[[int, int], None] | None = None,
    group: ProcessGroup = SINGLE,
) -> RateSearch:
    """Take one step at each of many learning rates, and suggest the one at which the loss falls steepest.

    A copy learns; the given network stays as it is. All the layers that learn at the end of a training
    do. The loss is smoothed, and the slope is taken by the logarithm of the rate. The same arguments
    give the same result.

    Args:
        network: The network to be trained.
        batches: (images (N, C, H, W), targets) as for `TrainState.compute`; repeated from the
            start where they end early.
        recipe: Resolved, but for its learning rate.
        device: Where to learn.
        lowest: The first rate.
        highest: The last one.
        steps: How many, each at a rate the same factor higher.
        objective: As for `TrainState`.
        caller_settings: As for `TrainState`.
        on_step: Called with the steps that are done, and all of them; a loss that grows ends them early.
        group: The processes, each of which has its part of the batches.
    """
    assert 0 < lowest < highest, "the rates rise"
    assert steps > 1, "one step has no slope"
    train_state = TrainState(
        copy.deepcopy(network),
        replace(recipe, ema_decay=None),
        device=device,
        objective=objective,
        caller_settings=caller_settings,
        group=group,
    )
    train_state.start_epoch(recipe.epochs)
    coming = _repeat(batches)
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for number in range(steps):
        rate = lowest * (highest / lowest) ** (number / (steps - 1))
        loss = weight = 0.0
        for place in range(recipe.accumulate):
            images, targets = next(coming)
            counts = train_state.weigh(targets)
            is_last = place + 1 == recipe.accumulate
            found = train_state.compute(images, targets, draw=number * recipe.accumulate + place, is_last=is_last)
            loss += found.item() * counts
            weight += counts
        loss, weight = group.sum(loss, weight)
        loss /= weight
        if not math.isfinite(loss):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - SMOOTHING ** (number + 1)))  # the average starts at 0, which is not a loss
        if on_step:
            on_step(number + 1, steps)
        if smoothed[-1] > BLOW_UP * min(smoothed) or not train_state.step(rate, number=number):
            break
    suggested, why = _suggest(rates, losses, smoothed)
    return RateSearch(tuple(rates), tuple(losses), tuple(smoothed), suggested, why)


def _repeat(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, over and over; they are not stored, which would fill the memory."""
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        assert count, "there are batches, and they can be iterated again"


def _suggest(rates: list[float], losses: list[float], smoothed: list[float]) -> tuple[float | None, str]:
    """A rate and a sentence on it; the first steps, whose average is of few losses, count for nothing."""
    warm = round(1 / (1 - SMOOTHING))
    if len(smoothed) < 2 * warm:
        return (
            None,
            "the loss diverges from the lowest rates on: check the images and the weights",
        )
    # At the lowest rates nothing is learnt: the losses differ only by the batches.
    start, noise = statistics.mean(losses[:warm]), statistics.stdev(losses[:warm])
    low = min(range(warm, len(smoothed)), key=smoothed.__getitem__)
    fall = start - smoothed[low]
    if fall < max(LEAST_FALL * start, noise):
        return None, (
            f"the loss falls at no rate from {rates[0]:.2g} to {rates[-1]:.2g}: it stays near {start:.3f}. "
            "A network that is stuck may need batch norm (its name with _bn) or given weights"
        )
    # Over five steps, because the slope of one is mostly noise.
    places = range(warm, low + 1)
    steepest = max(places, key=lambda place: smoothed[max(0, place - 2)] - smoothed[min(low, place + 2)])
    most = rates[low] * BELOW_LOWEST
    suggested = float(f"{min(rates[steepest], most):.2g}")
    found = f"the loss falls from {start:.3f} to {smoothed[low]:.3f} at {rates[low]:.2g}"
    if rates[steepest] > most:
        return suggested, f"{found}, beyond which it grows: a tenth of that"
    return suggested, f"{found}, and steepest here"


def search_learning_rate(
    classifier: Model,
    images: Sequence[ImageSample],
    recipe: Recipe,
    *,
    device: torch.device,
    caller_settings: CallerSettings = NO_SETTINGS,
    on_step: Callable[[int, int], None] | None = None,
    group: ProcessGroup = SINGLE,
) -> RateSearch:
    """Look for a learning rate on the batches of a training's first epoch, as the training will see them.

    Args:
        classifier: About to be trained; it stays as it is.
        images: The training images.
        recipe: Resolved, but for its learning rate.
        device: Where to train.
        caller_settings: The settings of the network that training preserves.
        on_step: Called with the steps that are done, and all of them.
        group: The processes that train together.

    Raises BadConfiguration for `trainable=head`, which has no learning rate.
    """
    if recipe.trainable == "head":
        raise BadConfiguration(
            "trainable=head solves the last layer directly and has no learning rate to search for; "
            "leave out --find-learning-rate, or set --trainable top or all"
        )
    batches = TrainingBatches.of(
        recipe,
        images,
        labels=classifier.labels,
        preprocessing=classifier.preprocessing,
        device=device,
        task=classifier.task,
        group=group,
        least_share=find_least_share(recipe, batch_norm=classifier.configuration.batch_norm),
    )
    network = classifier.network
    if recipe.whitening:
        network = copy.deepcopy(network)
        whiten_first_layer(network, images, classifier.preprocessing, seed=recipe.seed, group=group)
    return find_learning_rate(
        network,
        _MixedBatches(batches, Mixing.of(recipe, len(classifier.labels)), recipe.seed),
        recipe,
        device=device,
        objective=Objective.of(recipe, images, classifier.labels, classifier.task),
        caller_settings=caller_settings,
        on_step=on_step,
        group=group,
    )


@dataclass(frozen=True, slots=True)
class _MixedBatches:
    """The first epoch's batches, with mixup and CutMix, as often as they are iterated over."""

    batches: TrainingBatches
    mixing: Mixing | None
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (images, classes) in enumerate(self.batches.of_epoch(1)):
            if self.mixing is None:
                yield images, classes
            else:
                yield self.mixing(images, classes, seed=derive_seed(self.seed, "mix", number))
