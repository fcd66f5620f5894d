"""Dialects of a checkpoint: one network's weights under the keys that another way of writing it gives them.

The canonical keys are our own state dict's, which are torchvision's; every map starts from them.
No torch here.
"""

from typing import Literal, get_args

from vggkit.errors import UnknownName
from vggkit.networks.configurations import Configuration, Layer

Dialect = Literal["torchvision", "blocks", "explicit"]
"""torchvision: `features.3.weight`, `classifier.0.weight`; the canonical keys themselves.
blocks: `features.2.conv1.weight`, the pools at odd positions; `classifier` as in torchvision.
explicit: `conv2_1.weight`, `fc1.weight`; no `features` and no `classifier`."""


def rename_keys(configuration: Configuration, dialect: Dialect) -> dict[str, str]:
    """For every canonical key of the state dict, in its order, the same tensor's key in that dialect.

    The tensors themselves are equal in these dialects, so that renaming is all there is to do:
    `{renamed[key]: value for key, value in network.state_dict().items()}`.

    Raises UnknownName for another dialect.
    """
    modules = _name_modules(configuration, dialect)
    renamed = {}
    for key in configuration.state_shapes():
        root, index, rest = key.split(".", 2)
        renamed[key] = f"{modules[f'{root}.{index}']}.{rest}"
    return renamed


def _name_modules(configuration: Configuration, dialect: Dialect) -> dict[str, str]:
    """Each module's canonical name (`features.3`, `classifier.0`), and its name in that dialect."""
    trunk = {f"features.{layer.index}": layer for layer in configuration.trunk if layer.kind in ("conv", "bn")}
    head = [f"classifier.{fc.index}" for fc in configuration.fully_connected]
    match dialect:
        case "torchvision":
            return {name: name for name in (*trunk, *head)}
        case "blocks":
            return {name: _name_in_block(layer) for name, layer in trunk.items()} | {name: name for name in head}
        case "explicit":
            # Listings written by hand count the fully connected layers from 1.
            counted = {name: f"fc{j}" for j, name in enumerate(head, start=1)}
            return {name: layer.name for name, layer in trunk.items()} | counted
        case _:
            raise UnknownName.of("dialect", dialect, get_args(Dialect))


def _name_in_block(layer: Layer) -> str:
    """`conv3_2` is `features.4.conv2`: each block is followed by its pool, so blocks stand at even positions."""
    block, position = layer.name.removeprefix(layer.kind).split("_")
    return f"features.{2 * (int(block) - 1)}.{layer.kind}{position}"
