"""The learning rate over time."""

import math
from typing import Final

from vggkit.training.recipe import Recipe

ONE_CYCLE_RISE: Final = 0.3
"""Share of the steps in which a one-cycle rate rises (Smith and Topin, 2018)."""


def learning_rate_at(step: int, *, recipe: Recipe, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0, of a settled recipe: a straight line up, then its schedule."""
    highest = recipe.learning_rate
    assert highest is not None, "the recipe is settled"
    steps = recipe.epochs * steps_per_epoch
    rise = min(recipe.warmup_epochs, recipe.epochs / 2) * steps_per_epoch
    if recipe.schedule == "one-cycle":
        rise = ONE_CYCLE_RISE * steps
    if step < rise:
        return highest * (step + 1) / (rise + 1)
    match recipe.schedule:
        case "cosine" | "one-cycle":
            progress = (step - rise) / max(1.0, steps - rise)
            return highest * (1 + math.cos(math.pi * progress)) / 2
        case "step":
            epochs = recipe.step_epochs or max(1, math.ceil(recipe.epochs / 3))
            return highest * 0.1 ** int(step / steps_per_epoch / epochs)
        case "constant":
            return highest
