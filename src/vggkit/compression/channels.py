"""Removal of channels: a VGG is a chain, so a layer's output channels appear in three places and no others.

They are the rows of its own kernel with their biases and norms, and the columns of the layer that reads it; of the
first fully connected layer, columns in blocks of grid² for each channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vggkit.compression.rebuild import build_network, copy_state
from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import FullyConnected
from vggkit.models.vgg import VGG


@dataclass(frozen=True, slots=True, kw_only=True)
class Prunable:
    """A layer whose output channels can be removed, and the layer that reads them."""

    name: str
    """`conv3_1`, or `fc6` for the values of a hidden layer."""
    channels: int
    """Output channels."""
    rows: tuple[str, ...]
    """Keys of the tensors with a row for each channel."""
    reader: str
    """Module that reads them: `features.8`, `classifier.0`."""
    columns: str
    """Key of the reader's weights, with columns for each channel."""
    block: int = 1
    """Columns of a channel that are neighbours: a kernel's places, or the places of the head's grid."""
    repeats: int = 1
    """How often all channels come: 2 where the head reads means and then standard deviations."""


def list_prunable(configuration: Configuration) -> tuple[Prunable, ...]:
    """The layers from the first to the last but one: the last layer's outputs are the classes, and stay.

    A convolution in front of local response normalisation, which mixes neighbouring channels, stays whole too.
    """
    found: list[Prunable] = []
    trunk = configuration.trunk
    convolutions = [place for place, layer in enumerate(trunk) if layer.kind == "conv"]
    ends = [*convolutions[1:], len(trunk)]
    head = _list_first_keys(configuration.fully_connected)
    for start, end in zip(convolutions, ends, strict=True):
        layer, between = trunk[start], trunk[start + 1 : end]
        if any(each.kind == "lrn" for each in between):
            continue
        rows = [f"features.{layer.index}.weight", f"features.{layer.index}.bias"]
        for norm in (each for each in between if each.kind == "bn"):
            names = ("weight", "bias", "running_mean", "running_var")
            rows += [f"features.{norm.index}.{name}" for name in names]
        if end < len(trunk):
            reader = trunk[end]
            module, block, repeats = f"features.{reader.index}", reader.kernel**2, 1
            columns = f"{module}.weight"
        else:
            module, columns = head[0]
            pooled = configuration.head == "pool"
            block = 1 if pooled else configuration.grid**2
            repeats = 2 if pooled and configuration.statistics == "mean+std" else 1
        found.append(
            Prunable(
                name=layer.name,
                channels=layer.out_channels,
                rows=tuple(rows),
                reader=module,
                columns=columns,
                block=block,
                repeats=repeats,
            )
        )
    for place, fc in enumerate(configuration.fully_connected[:-1]):
        key = f"classifier.{fc.index}" + ("" if fc.rank is None else ".1")
        module, columns = head[place + 1]
        found.append(
            Prunable(
                name=fc.name,
                channels=fc.out_features,
                rows=(f"{key}.weight", f"{key}.bias"),
                reader=module,
                columns=columns,
            )
        )
    return tuple(found)


def change_widths(configuration: Configuration, widths: Mapping[str, int]) -> Configuration:
    """The configuration with other numbers of channels, by the names of `list_prunable`."""
    blocks = tuple(
        tuple(widths.get(f"conv{number}_{place}", width) for place, width in enumerate(block, start=1))
        for number, block in enumerate(configuration.blocks, start=1)
    )
    layers = configuration.fully_connected[:-1]
    hidden = tuple(widths.get(fc.name, fc.out_features) for fc in layers)
    return replace(configuration, blocks=blocks, hidden=hidden)


def keep_channels(network: VGG, keep: Mapping[str, Tensor]) -> VGG:
    """The network with these channels alone.

    Args:
        network: The network.
        keep: Numbers of the channels that stay, in ascending order, by the layer's name; layers that are not named
            stay whole.
    """
    configuration, state = network.configuration, copy_state(network)
    for layer in list_prunable(configuration):
        if layer.name not in keep:
            continue
        chosen = keep[layer.name]
        for key in layer.rows:
            state[key] = state[key][chosen]
        state[layer.columns] = select_columns(state[layer.columns], layer, chosen)
    widths = {name: len(chosen) for name, chosen in keep.items()}
    return build_network(change_widths(configuration, widths), state)


def select_columns(weight: Tensor, layer: Prunable, chosen: Tensor) -> Tensor:
    """The reader's weights for these channels."""
    if weight.dim() == 4:
        return weight[:, chosen]
    return weight[:, list_columns(layer, chosen)]


def list_columns(layer: Prunable, chosen: Tensor) -> Tensor:
    """The columns of these channels in the reader's weights as a matrix, channel by channel."""
    places = torch.arange(layer.block)
    first = (chosen[:, None] * layer.block + places).flatten()
    width = layer.channels * layer.block
    return torch.cat([first + repeat * width for repeat in range(layer.repeats)])


def _list_first_keys(layers: tuple[FullyConnected, ...]) -> list[tuple[str, str]]:
    """Module and key of the weights that read a fully connected layer's input: of two factors the first."""
    return [
        (f"classifier.{fc.index}", f"classifier.{fc.index}" + (".weight" if fc.rank is None else ".0.weight"))
        for fc in layers
    ]
