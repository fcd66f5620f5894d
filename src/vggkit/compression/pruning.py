"""Structured pruning of convolutions: whole channels go, and the layer that reads them is fitted anew.

The result is a smaller VGG, not a sparse one: it is as much faster as it has fewer multiply-adds.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from vggkit.compression.channels import Prunable, keep_channels, list_prunable
from vggkit.compression.layer_inputs import LayerInputs
from vggkit.compression.moments import Moments, measure_moments
from vggkit.compression.ranking import eliminate
from vggkit.compression.rebuild import build_network, copy_state
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG

OnLayer = Callable[[str, int, int], None]
"""Called with the current task, how much of it is done, and of how much."""


def list_prunable_convolutions(configuration: Configuration) -> tuple[Prunable, ...]:
    """The convolutions whose channels can be removed."""
    return tuple(layer for layer in list_prunable(configuration) if layer.name.startswith("conv"))


def prune_channels(
    network: VGG,
    widths: Mapping[str, int],
    batches: Sequence[Tensor],
    *,
    seed: int = 0,
    on_layer: OnLayer = lambda what, done, total: None,
) -> VGG:
    """The network with fewer channels, layer by layer from the first.

    Each layer's channels are ranked by how well the next layer's output is reconstructed without them, on what the
    layers before leave of it, and the next layer's weights are then fitted by least squares to the outputs of the
    whole network.

    Args:
        network: The network.
        widths: Channels that are left, by the name of the convolution; one that is not named stays whole.
        batches: Preprocessed images (N, C, H, W), in batches: 1,000 for small images, a hundred photos.
        seed: Places of maps are drawn by it.
        on_layer: Called with what is done, the number of layers done, and of all.
    """
    pruned = network
    inputs, originals = LayerInputs(network, batches), LayerInputs(network, batches)
    going = [
        layer
        for layer in list_prunable_convolutions(network.configuration)
        if widths.get(layer.name, layer.channels) < layer.channels
    ]
    for done, layer in enumerate(going):
        on_layer(f"removing channels of {layer.name}", done, len(going))
        inputs.move_to(layer)
        originals.move_to(layer)
        moments = measure_moments(inputs, originals, layer, seed=seed)
        kept = eliminate(moments, least=widths[layer.name]).keep(widths[layer.name])
        pruned = remove(pruned, layer, kept, moments)
        inputs.keep(pruned, kept)
    return pruned


def remove(network: VGG, layer: Prunable, kept: Tensor, moments: Moments) -> VGG:
    """The network with these channels of a layer alone, and with the weights of its reader fitted to that."""
    smaller = keep_channels(network, {layer.name: kept})
    state, solved = copy_state(smaller), moments.solve(kept).float()
    weight = state[layer.columns]
    if moments.by_factor:
        factors = solved[0, :-1].repeat_interleave(layer.block).repeat(layer.repeats)
        state[layer.columns] = (weight.flatten(1) * factors).reshape(weight.shape)
    else:
        state[layer.columns] = solved[:, :-1].reshape(weight.shape)
        bias = layer.columns.removesuffix("weight") + "bias"
        if bias in state:
            state[bias] = solved[:, -1]
    return build_network(smaller.configuration, state)
