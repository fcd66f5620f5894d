"""Rounding to 4 bits by what it does to a layer's output, and not to each weight alone.

Column by column: what rounding one column does to the output is made up for by the columns that are still to come
(Frantar et al. 2023, "GPTQ", arXiv:2210.17323). Each layer is fitted to the outputs of the whole network first, so
that it also makes up for the layers before it, and its bias, which is not rounded, takes what is left.

Shape letters: O outputs, I columns.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from vggkit.compression.layer_inputs import LayerInputs
from vggkit.compression.moments import Moments, measure_moments
from vggkit.compression.pruning import OnLayer, list_prunable_convolutions
from vggkit.compression.rebuild import build_network, copy_state
from vggkit.models.vgg import VGG
from vggkit.weights.storage import LEVELS, choose_codings, choose_scales

BLOCK: Final = 128
"""Columns whose errors are passed on together to those behind them."""


def round_by_outputs(
    network: VGG,
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    on_layer: OnLayer = lambda what, done, total: None,
) -> VGG:
    """The network with the weights that `int4` stores in 4 bits rounded to them; storing it changes nothing more.

    Layers that read more than 5,000 columns, and the fully connected ones behind the first, are left as they are:
    storing rounds each weight of them to the nearest code.

    Args:
        network: The network, in evaluation mode.
        batches: Preprocessed images (N, C, H, W), in batches.
        seed: Places of maps are drawn by it.
        on_layer: Called with what is done, the number of layers done, and of all.
    """
    configuration = network.configuration
    coarse = [
        key for key, coding in choose_codings(configuration.state_shapes(), "int4").items() if coding == "int4"
    ]
    inputs, originals = LayerInputs(network, batches), LayerInputs(network, batches)
    layers = [layer for layer in list_prunable_convolutions(configuration) if layer.columns in coarse]
    rounded = network
    for done, layer in enumerate(layers):
        on_layer("rounding to 4 bits, layers", done, len(layers))
        inputs.move_to(layer)
        originals.move_to(layer)
        moments = measure_moments(inputs, originals, layer, seed=seed)
        if moments.by_factor:
            continue
        state = copy_state(rounded)
        weights = _round_columns(moments)
        state[layer.columns] = weights[:, :-1].reshape(state[layer.columns].shape)
        bias = layer.columns.removesuffix("weight") + "bias"
        if bias in state:
            state[bias] = weights[:, -1]
        rounded = build_network(configuration, state)
        inputs.keep(rounded, torch.arange(layer.channels))
    return rounded


def _round_columns(moments: Moments) -> Tensor:
    """The weights (O, I + 1) with the least error, all but the last column, the bias, on the grid of each row."""
    weights = moments.solve(torch.arange(moments.channels))
    levels = LEVELS["int4"]
    scale = torch.from_numpy(choose_scales(weights[:, :-1].float().numpy(), "int4")).double()
    inverse = torch.linalg.inv(moments.gram.double())
    factor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    count = weights.shape[1] - 1
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        errors = torch.zeros(len(weights), last - first, dtype=torch.float64)
        for column in range(first, last):
            kept = (weights[:, column] / scale).round().clamp(-levels, levels) * scale
            error = (weights[:, column] - kept) / factor[column, column]
            weights[:, column] = kept
            weights[:, column + 1 : last] -= torch.outer(error, factor[column, column + 1 : last])
            errors[:, column - first] = error
        weights[:, last:] -= errors @ factor[first:last, last:]
    return weights.float()
