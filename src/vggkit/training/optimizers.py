"""The optimizers: what is stepped, in which groups, and by what.

Whatever the network computes in, learning is in float32. Kernels and matrices decay, biases and norms do not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vggkit.training.recipe import Recipe


def build_optimizers(
    parameters: Mapping[str, Tensor],
    scales: Mapping[str, float],
    recipe: Recipe,
    *,
    decays: Mapping[str, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """One optimizer, or for muon two, of a settled recipe; `set_rate` sets their learning rates.

    Args:
        parameters: What is stepped, by key; float32, each with its gradient's place in `.grad`.
        scales: The share of the learning rate of each key.
        recipe: Says which.
        decays: What the weight decay of a key is multiplied by; of others 1.

    Muon (Jordan et al., 2024) steps the convolutions, whose kernels are rows of a matrix, and AdamW
    the rest; Muon's steps are scaled to the size of AdamW's, so that one rate suits both.
    """
    assert recipe.weight_decay is not None, "the recipe is settled"
    decays = decays or {}
    kernels = [key for key, value in parameters.items() if key.startswith("features.") and value.dim() > 1]
    others = [key for key in parameters if key not in set(kernels)]
    match recipe.optimizer:
        case "sgd":
            groups = _group(parameters, [*kernels, *others], scales, recipe.weight_decay, decays)
            sgd = torch.optim.SGD(
                groups, lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
            )
            if recipe.momentum:  # all have it from the start, for layers may begin to learn later
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
