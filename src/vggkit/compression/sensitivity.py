"""How many channels each layer gives: by what removing them was measured to do to the predictions.

Shape letters: N images, K classes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from vggkit.compression.channels import change_widths
from vggkit.compression.layer_inputs import LayerInputs
from vggkit.compression.moments import measure_moments
from vggkit.compression.pruning import OnLayer, list_prunable_convolutions, remove
from vggkit.compression.ranking import eliminate
from vggkit.errors import BadInput
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.models.vgg import VGG
from vggkit.task import Task
from vggkit.training.distillation import diverge

Cost = Literal["multiply-adds", "parameters"]
"""What is to become less."""
TRIED: Final = (0.25, 0.5, 0.75)
"""Shares of a layer's channels that are removed to measure what that does."""
LEAST_SHARE: Final = 1 / 16
"""Share of a layer's channels that always stays."""
STEPS: Final = 32
"""Steps in which a layer loses its channels when a budget is divided."""
_FLOOR: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What removing channels of one layer alone does to the predictions."""

    layer: str
    """The convolution, such as `conv3_1`."""
    channels: int
    """Its channels."""
    removed: tuple[float, ...]
    """Shares of them that were removed."""
    divergence: tuple[float, ...]
    """Mean Kullback-Leibler divergence of the predictions from those of the whole network, in nats, at each."""

    def estimate(self, removed: float) -> float:
        """The divergence at another share: between measured ones as a power of the share, and so beyond them."""
        shares, found = [0.0, *self.removed], [_FLOOR, *self.divergence]
        for place in range(1, len(found)):  # more is never better
            found[place] = max(found[place], found[place - 1] * 1.0001)
        upper = next((place for place, share in enumerate(shares) if share >= removed), len(shares) - 1)
        if upper <= 1:
            return float(found[1] * (removed / shares[1]) ** 2)
        low, high = upper - 1, upper
        slope = math.log(found[high] / found[low]) / math.log(shares[high] / shares[low])
        return float(found[low] * (removed / shares[low]) ** slope)


def measure_sensitivity(
    network: VGG,
    batches: Sequence[Tensor],
    *,
    measured: int | None = None,
    task: Task = "single-label",
    on_layer: OnLayer = lambda what, done, total: None,
) -> tuple[Sensitivity, ...]:
    """Remove shares of each convolution's channels alone, the next layer refitted, and compare the predictions.

    Args:
        network: The network, in evaluation mode.
        batches: Preprocessed images that channels are ranked on.
        measured: Number of these batches that predictions are compared on; None: all.
        task: What the logits mean: their softmax, or the sigmoid of each.
        on_layer: Called with what is done, the number of layers done, and of all.
    """
    count = len(batches) if measured is None else min(measured, len(batches))
    with torch.no_grad():
        before = [network(batch).double() for batch in batches[:count]]
    layers, found = list_prunable_convolutions(network.configuration), list[Sensitivity]()
    inputs = LayerInputs(network, batches)
    for done, layer in enumerate(layers):
        on_layer(f"measuring the sensitivity of {layer.name}", done, len(layers))
        inputs.move_to(layer)
        widths = [max(1, round(layer.channels * (1 - share))) for share in TRIED]
        moments = measure_moments(inputs, inputs, layer)
        ranked = eliminate(moments, least=min(widths))
        divergences = []
        for width in widths:
            kept = ranked.keep(width)
            after = inputs.finish(remove(network, layer, kept, moments), kept, batches=count)
            divergences.append(_diverge(after, before, task))
        found.append(
            Sensitivity(layer=layer.name, channels=layer.channels, removed=TRIED, divergence=tuple(divergences))
        )
    return tuple(found)


def divide_budget(
    configuration: Configuration,
    sensitivities: Sequence[Sensitivity],
    *,
    removed: float,
    pixels: int,
    cost: Cost = "multiply-adds",
) -> dict[str, int]:
    """Widths of the convolutions that leave a share of the cost, with the least divergence added up.

    Greedy: the layer whose next channels diverge least for each unit of cost gives them.

    Args:
        configuration: The network.
        sensitivities: Of its layers.
        removed: Share of the cost in (0, 1) that is to go.
        pixels: Height and width of the images, which multiply-adds depend on.
        cost: What is counted.

    Raises BadInput where not so much can be removed.
    """
    count = _choose_count(configuration, pixels, cost)
    widths = {each.layer: each.channels for each in sensitivities}
    least = {each.layer: max(2, round(each.channels * LEAST_SHARE)) for each in sensitivities}
    whole = now = count(widths)
    while now > (1 - removed) * whole:
        best: tuple[float, str, int, int] | None = None
        for each in sensitivities:
            width = widths[each.layer]
            narrower = max(least[each.layer], width - max(1, each.channels // STEPS))
            if narrower == width:
                continue
            after = count(widths | {each.layer: narrower})
            worse = each.estimate(1 - narrower / each.channels) - each.estimate(1 - width / each.channels)
            price = worse / (now - after)
            if best is None or price < best[0]:
                best = price, each.layer, narrower, after
        if best is None:
            most = 1 - now / whole
            raise BadInput(
                f"{100 * removed:.4g} % of the {cost} cannot be removed: every layer keeps 1 of 16 channels, which "
                f"removes {100 * most:.4g} %; ask for less"
            )
        _, name, widths[name], now = best[0], best[1], best[2], best[3]
    return widths


def _choose_count(configuration: Configuration, pixels: int, cost: Cost) -> Callable[[Mapping[str, int]], int]:
    def count(widths: Mapping[str, int]) -> int:
        graph = Graph(change_widths(configuration, widths), input_pixels=(pixels, pixels))
        return sum(step.multiply_adds if cost == "multiply-adds" else step.parameters for step in graph.steps)

    return count


def _diverge(after: Sequence[Tensor], before: Sequence[Tensor], task: Task) -> float:
    """Mean divergence of logits (N, K), in batches, from others."""
    total = 0.0
    for logits, known in zip(after, before, strict=True):
        total += float(diverge(logits.double(), known, task)) * len(logits)
    return max(total / sum(map(len, before)), _FLOOR)
