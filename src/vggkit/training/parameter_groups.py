"""A network's layers from the head down, and which of them are trained in each epoch. No torch here."""

from dataclasses import dataclass
from typing import Final

from vggkit.models.configuration import Configuration
from vggkit.training.recipe import Recipe

WHITENED: Final = "features.0.weight"
"""The key of the kernels that `whitening` sets from the training images, and that are not trained."""


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """A layer that has weights, with its batch norm."""

    name: str
    """`conv3_2`, with its batch norm, or `fc6`."""
    block: int
    """Its block, counted from 1; 0: the head."""
    depth: int
    """Number of convolutions from the head down to it, the uppermost 1; 0: the head."""
    modules: tuple[str, ...]
    """Its places in the network, such as `features.8`."""


def list_groups(configuration: Configuration) -> tuple[ParameterGroup, ...]:
    """The layers that have weights, from the last one down to the first."""
    found: list[tuple[str, int, list[str]]] = []
    for layer in configuration.trunk:
        if layer.kind == "conv":
            found.append((layer.name, int(layer.name.removeprefix("conv").split("_")[0]), []))
        if layer.kind in ("conv", "bn"):
            found[-1][2].append(f"features.{layer.index}")
    head = [ParameterGroup(fc.name, 0, 0, (f"classifier.{fc.index}",)) for fc in configuration.fully_connected]
    trunk = [
        ParameterGroup(name, block, depth, tuple(modules))
        for depth, (name, block, modules) in enumerate(reversed(found), start=1)
    ]
    return (*reversed(head), *trunk)


def list_learning(recipe: Recipe, configuration: Configuration, epoch: int) -> tuple[ParameterGroup, ...]:
    """The layers that are trained in an epoch, counted from 1, of a resolved recipe.

    - `head`: the last fully connected layer.
    - `top`: the fully connected layers, and the last block of convolutions that there is.
    - `gradual`: the fully connected layers, and with each epoch more blocks from the top, all of them
      after half of the epochs (Howard and Ruder, 2018, section 3.3).
    """
    groups = list_groups(configuration)
    blocks = sorted({group.block for group in groups if group.block}, reverse=True)
    match recipe.trainable:
        case "head":
            return groups[:1]
        case "top":
            return tuple(group for group in groups if group.block in (0, blocks[0]))
        case "gradual":
            opened = min(len(blocks), (epoch - 1) * len(blocks) // max(1, recipe.epochs // 2))
            return tuple(group for group in groups if group.block in (0, *blocks[:opened]))
        case _:
            return groups


def list_learnt(configuration: Configuration, recipe: Recipe) -> list[str]:
    """Keys of the parameters that are trained in any epoch of a resolved recipe, in the network's order."""
    groups = list_learning(recipe, configuration, recipe.epochs)
    places = tuple(f"{place}." for group in groups for place in group.modules)
    norms = {f"features.{layer.index}" for layer in configuration.trunk if layer.kind == "bn"}
    return [
        key
        for key in configuration.state_shapes()
        if key.startswith(places)
        and key.endswith((".weight", ".bias"))
        and not (recipe.freeze_norm and key.rpartition(".")[0] in norms)
        and not (recipe.whitening and key == WHITENED)
    ]
