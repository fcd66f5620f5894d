"""SGD and its learning rate over time."""

import math

import torch
from torch import nn

from vggkit.tasks.training.recipe import Recipe


def build_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum; kernels and matrices decay, biases and batch norm do not."""
    decaying = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    return torch.optim.SGD(
        [{"params": decaying, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
    )


def learning_rate_at(step: int, *, recipe: Recipe, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0: a straight line up, then half a cosine down to zero."""
    highest = recipe.learning_rate
    assert highest is not None, "the recipe is settled"
    warmup = min(recipe.warmup_epochs, recipe.epochs / 2) * steps_per_epoch
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1.0, recipe.epochs * steps_per_epoch - warmup)
    return highest * (1 + math.cos(math.pi * progress)) / 2
