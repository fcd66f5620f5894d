"""Optimizers, their parameter groups, and learning rate schedules.

The weights are updated in float32, in whatever precision the network computes. Kernels and matrices decay, biases
and norms do not.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn

from vggkit.models.vgg import VGG
from vggkit.training.caller_settings import NO_SETTINGS, CallerSettings
from vggkit.training.parameter_groups import WHITENED, list_groups, list_learning
from vggkit.training.recipe import Recipe

ONE_CYCLE_RISE: Final = 0.3
"""Share of the steps in which a one-cycle rate rises (Smith and Topin, 2018)."""


def build_optimizers(
    parameters: Mapping[str, Tensor],
    scales: Mapping[str, float],
    recipe: Recipe,
    *,
    decays: Mapping[str, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """One optimizer, or for muon two, of a resolved recipe; `set_rate` sets their learning rates.

    Args:
        parameters: The parameters to update, by key; float32, each with its gradient in `.grad`.
        scales: The share of the learning rate of each key.
        recipe: Gives the optimizer and its settings.
        decays: The factor of the weight decay of a key; of others 1.

    Muon (Jordan et al., 2024) steps the convolutions, whose kernels are rows of a matrix, and AdamW
    the rest; Muon's steps are scaled to the size of AdamW's, so that the same learning rate works for both.
    """
    assert recipe.weight_decay is not None, "the recipe is resolved"
    decays = decays or {}
    kernels = [key for key, value in parameters.items() if key.startswith("features.") and value.dim() > 1]
    others = [key for key in parameters if key not in set(kernels)]
    match recipe.optimizer:
        case "sgd":
            groups = _group(parameters, [*kernels, *others], scales, recipe.weight_decay, decays)
            sgd = torch.optim.SGD(
                groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
            )
            if recipe.momentum:  # all have it from the start, because layers may be unfrozen later
                for value in parameters.values():
                    sgd.state[value]["momentum_buffer"] = torch.zeros_like(value)
            return [sgd]
        case "adamw":
            return [
                torch.optim.AdamW(
                    _group(parameters, [*kernels, *others], scales, recipe.weight_decay, decays), lr=0.0, fused=True
                )
            ]
        case "muon":
            found: list[torch.optim.Optimizer] = []
            if kernels:
                found.append(
                    torch.optim.Muon(
                        _group(parameters, kernels, scales, recipe.weight_decay, decays),
                        lr=0.0,
                        momentum=recipe.momentum,
                        weight_decay=recipe.weight_decay,
                        adjust_lr_fn="match_rms_adamw",
                    )
                )
            if others:
                rest = _group(parameters, others, scales, recipe.weight_decay, decays)
                found.append(torch.optim.AdamW(rest, lr=0.0, fused=True))
            return found


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """The learning rate of the next step, before each group's share of it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]


def _group(
    parameters: Mapping[str, Tensor],
    keys: list[str],
    scales: Mapping[str, float],
    weight_decay: float,
    decays: Mapping[str, float],
) -> list[dict[str, object]]:
    """Groups of one share of the rate and one weight decay, in the order of their first keys."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for key in keys:
        value = parameters[key]
        decay = weight_decay * decays.get(key, 1.0) if value.dim() > 1 else 0.0
        groups.setdefault((scales[key], decay), []).append(value)
    return [{"params": values, "weight_decay": decay, "scale": scale} for (scale, decay), values in groups.items()]


def learning_rate_at(step: int, *, recipe: Recipe, steps_per_epoch: int) -> float:
    """The rate of a step, counted from 0, of a resolved recipe: a straight line up, then its schedule."""
    highest = recipe.learning_rate
    assert highest is not None, "the recipe is resolved"
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
        case "linear":
            return highest * (1 - (step - rise) / max(1.0, steps - rise))
        case "step":
            epochs = recipe.step_epochs or max(1, math.ceil(recipe.epochs / 3))
            return highest * 0.1 ** int(step / steps_per_epoch / epochs)
        case "constant":
            return highest


def open_layers(network: VGG, recipe: Recipe, epoch: int, *, caller_settings: CallerSettings = NO_SETTINGS) -> None:
    """Unfreeze the layers that are trained in that epoch, and freeze the others.

    Layers that are not trained need no gradients, and their batch norms are in evaluation mode, so that their
    running statistics do not change either. Parameters that the caller froze stay so.
    """
    network.train()
    network.requires_grad_(False)
    for group in list_learning(recipe, network.configuration, epoch):
        for place in group.modules:
            module = network.get_submodule(place)
            module.requires_grad_(not (recipe.freeze_norm and isinstance(module, nn.BatchNorm2d)))
    for key in (*caller_settings.frozen, *([WHITENED] if recipe.whitening else [])):
        network.get_parameter(key).requires_grad_(False)
    for name in caller_settings.resting:
        network.get_submodule(name).training = False
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def scale_rates(network: VGG, recipe: Recipe, *, feature_scale: float = 1.0) -> Mapping[str, float]:
    """The factor of the learning rate of each parameter, by its key.

    Args:
        network: Names the parameters.
        recipe: Gives the decay of the learning rate per layer, and the factor of biases.
        feature_scale: Root mean square of what the last layer reads, 1 or more; its weights learn that much slower.
    """
    scales = {}
    for group in list_groups(network.configuration):
        for place in group.modules:
            for name, _ in network.get_submodule(place).named_parameters():
                factor = recipe.bias_rate_factor if name.endswith("bias") else 1.0
                scales[f"{place}.{name}"] = factor * recipe.layer_decay**group.depth
    scales[name_last_weight(network)] /= feature_scale
    return scales


def name_last_weight(network: VGG) -> str:
    """The key of the last layer's weights; of two factors the second's."""
    return [key for key, _ in network.classifier.named_parameters(prefix="classifier") if key.endswith("weight")][
        -1
    ]
