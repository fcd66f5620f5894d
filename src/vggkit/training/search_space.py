"""What a search for a recipe tries, and for how long: a few recipes drawn around the one that would be taken.

Successive halving: every recipe is trained for a few epochs, the better third of them for longer, and so on
(Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization",
arXiv:1502.07943; Li et al. 2018, "Hyperband", arXiv:1603.06560, whose factor 3 this is). No torch here.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from vggkit.errors import BadConfiguration
from vggkit.hardware import derive_seed
from vggkit.training.recipe import Recipe, Trainable

ETA: Final = 3
"""Each round keeps one of so many recipes, and trains it for so many times as many epochs."""
RATE_POWERS: Final = (-1.0, 0.75)
"""Range of the power of ten by which learning rates differ from the usual one: a tenth to 5.6 times as high."""
DECAY_POWERS: Final = (-1.0, 1.0)
"""The same of weight decays."""
Strength = Literal["as given", "light", "medium", "strong"]
STRENGTHS: Final[Mapping[Strength, Mapping[str, Any]]] = {
    "light": {},
    "medium": {"rand_augment": 5, "random_erasing": 0.1},
    "strong": {"rand_augment": 9, "random_erasing": 0.25, "mixup": 0.2},
}
"""Augmentations beside the crops and mirror images that a recipe has anyway."""
OF_AUGMENTATION: Final = ("augmentation", "mirror", "rand_augment", "random_erasing", "mixup", "cutmix")
"""Fields of a recipe that state an augmentation; where one is given, none is searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A recipe of a search, by what it differs in from the one that would be taken without a search."""

    number: int
    """Counted from 1, which differs in nothing."""
    rate_factor: float = 1.0
    """Of the usual learning rate."""
    decay_factor: float = 1.0
    """Of the usual weight decay."""
    trainable: Trainable | None = None
    """The layers that are trained; None: as without a search."""
    strength: Strength = "as given"
    """The strength of the augmentation."""

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these layers and this augmentation, still to be resolved; then see `scale`."""
        changes = dict(STRENGTHS.get(self.strength, {}))
        if recipe.balance == "weights":
            changes.pop("mixup", None)  # blended images have no one class to weigh by
        if self.trainable is not None:
            changes["trainable"] = self.trainable
        return replace(recipe, **changes)

    def scale(self, resolved: Recipe) -> Recipe:
        """The resolved recipe with this learning rate and this weight decay, rounded to two digits."""
        changes: dict[str, Any] = {}
        if resolved.learning_rate is not None and self.rate_factor != 1:
            changes["learning_rate"] = float(f"{resolved.learning_rate * self.rate_factor:.2g}")
        if resolved.weight_decay is not None and self.decay_factor != 1:
            changes["weight_decay"] = float(f"{resolved.weight_decay * self.decay_factor:.2g}")
        return replace(resolved, **changes)


@dataclass(frozen=True, slots=True)
class Round:
    """A round of successive halving."""

    trials: int
    """Number of recipes that are trained, the best of the round before."""
    epochs: int
    """Epochs of each in all, those of earlier rounds included."""


def plan_rounds(trials: int, epochs: int) -> tuple[Round, ...]:
    """The rounds of a search of so many recipes, before the best one is trained in full, for `epochs`.

    >>> plan_rounds(12, 30)
    (Round(trials=12, epochs=3), Round(trials=4, epochs=10))
    """
    count = max(1, math.floor(math.log(trials, ETA) + 1e-9))
    rounds: list[Round] = []
    for number in range(count):
        planned = max(1, round(epochs / ETA ** (count - number)))
        if not rounds or planned > rounds[-1].epochs:
            rounds.append(Round(math.ceil(trials / ETA**number), planned))
    return tuple(rounds)


def demand_search(trials: int, recipe: Recipe) -> None:
    """Raise BadConfiguration where so many recipes cannot be searched, or nothing is left to search."""
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 2:
        raise BadConfiguration(
            f"search must be 0, for none, or the number of recipes to try, 2 or more; got {trials!r}"
        )
    if recipe.trainable == "head" or recipe.views > 1:
        raise BadConfiguration(
            "trainable=head (and views) solves the last layer directly, and nothing is left to search; leave it "
            "out, so that it is one of the recipes, or leave out search"
        )
    if not any(_list_open(recipe).values()):
        raise BadConfiguration(
            "search has nothing to choose: learning_rate, weight_decay, trainable and an augmentation are given; "
            "leave out one of them"
        )


def draw_candidates(
    recipe: Recipe, trials: int, *, from_weights: bool, has_head: bool, channels: int
) -> tuple[Candidate, ...]:
    """The recipes of a search; the same arguments give the same ones.

    The first is the recipe itself, so that the search chooses nothing worse by validation. Where the weights are
    loaded, a linear probe is one of them. Learning rates and weight decays of the others are spread evenly over the
    powers of ten, each in a random order (a Latin hypercube), and layers and augmentations occur equally often.
    Options that are given are not searched.

    Args:
        recipe: As it was given; what differs from the default is given.
        trials: Number of recipes.
        from_weights: Whether the network starts from loaded weights.
        has_head: Whether the last layer alone can be trained.
        channels: Of the network's input; RandAugment has three.
    """
    is_open = _list_open(recipe)
    draws = np.random.default_rng(derive_seed(recipe.seed, "search"))
    found = [Candidate(number=1, strength="light" if is_open["augmentation"] else "as given")]
    if from_weights and has_head and is_open["trainable"] and trials > 2:
        found.append(Candidate(number=2, trainable="head"))
    rest = trials - len(found)
    rates, decays = (_spread(draws, rest, powers) for powers in (RATE_POWERS, DECAY_POWERS))
    layers: tuple[Trainable, ...] = ("all", "top") if from_weights else ("all",)
    strengths: tuple[Strength, ...] = ("light", "medium", "strong")
    if channels == 4 or importlib.util.find_spec("torchvision") is None:
        strengths = ("light",)
    # One after the other in turn, in an order that does not follow the rates.
    chosen = [strengths[place % len(strengths)] for place in draws.permutation(rest)]
    trained = [layers[place % len(layers)] for place in draws.permutation(rest)]
    for place in range(rest):
        found.append(
            Candidate(
                number=len(found) + 1,
                rate_factor=rates[place] if is_open["learning_rate"] else 1.0,
                decay_factor=decays[place] if is_open["weight_decay"] else 1.0,
                trainable=trained[place] if is_open["trainable"] else None,
                strength=chosen[place] if is_open["augmentation"] else "as given",
            )
        )
    return tuple(found)


def _list_open(recipe: Recipe) -> dict[str, bool]:
    """Which parts of a recipe were left open."""
    usual = Recipe()
    return {
        "learning_rate": recipe.learning_rate is None,
        "weight_decay": recipe.weight_decay is None,
        "trainable": recipe.trainable == "auto",
        "augmentation": all(getattr(recipe, name) == getattr(usual, name) for name in OF_AUGMENTATION),
    }


def _spread(draws: np.random.Generator, count: int, powers: tuple[float, float]) -> list[float]:
    """Powers of ten, one in each of so many equal parts of the range, in a random order."""
    low, high = powers
    places = (draws.permutation(count) + draws.random(count)) / max(1, count)
    return [float(10 ** (low + (high - low) * place)) for place in places]
