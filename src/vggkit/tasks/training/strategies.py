"""What of a network learns, when, and how fast: the layers from the head down."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from vggkit.networks.configurations import Configuration
from vggkit.networks.vgg import VGG
from vggkit.tasks.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Stratum:
    """A layer that has weights, as a strategy sees it."""

    name: str
    """`conv3_2`, with its batch norm, or `fc6`."""
    block: int
    """Its block, counted from 1; 0: the head."""
    depth: int
    """How many convolutions from the head it lies, the uppermost 1; 0: the head."""
    modules: tuple[str, ...]
    """Its places in the network, such as `features.8`."""


def list_strata(configuration: Configuration) -> tuple[Stratum, ...]:
    """The layers that have weights, from the last one down to the first."""
    found: list[tuple[str, int, list[str]]] = []
    for layer in configuration.trunk:
        if layer.kind == "conv":
            found.append((layer.name, int(layer.name.removeprefix("conv").split("_")[0]), []))
        if layer.kind in ("conv", "bn"):
            found[-1][2].append(f"features.{layer.index}")
    head = [Stratum(fc.name, 0, 0, (f"classifier.{fc.index}",)) for fc in configuration.fully_connected]
    trunk = [
        Stratum(name, block, depth, tuple(modules))
        for depth, (name, block, modules) in enumerate(reversed(found), start=1)
    ]
    return (*reversed(head), *trunk)


def list_learning(recipe: Recipe, configuration: Configuration, epoch: int) -> tuple[Stratum, ...]:
    """The layers that learn in an epoch, counted from 1, of a settled recipe.

    - `head`: the last fully connected layer.
    - `top`: the fully connected layers, and the last block of convolutions that there is.
    - `gradual`: the fully connected layers, and with each epoch more blocks from the top, all of them
      after half of the epochs (Howard and Ruder, 2018, section 3.3).
    """
    strata = list_strata(configuration)
    blocks = sorted({stratum.block for stratum in strata if stratum.block}, reverse=True)
    match recipe.trainable:
        case "head":
            return strata[:1]
        case "top":
            return tuple(stratum for stratum in strata if stratum.block in (0, blocks[0]))
        case "gradual":
            opened = min(len(blocks), (epoch - 1) * len(blocks) // max(1, recipe.epochs // 2))
            return tuple(stratum for stratum in strata if stratum.block in (0, *blocks[:opened]))
        case _:
            return strata


def open_layers(network: VGG, recipe: Recipe, epoch: int) -> None:
    """Put the network in the state in which it learns in that epoch.

    What does not learn needs no gradients, and its batch norm keeps its running statistics: in eval
    mode, for a frozen layer whose statistics drift is not frozen.
    """
    network.train()
    network.requires_grad_(False)
    for stratum in list_learning(recipe, network.configuration, epoch):
        for place in stratum.modules:
            module = network.get_submodule(place)
            module.requires_grad_(not (recipe.freeze_norm and isinstance(module, nn.BatchNorm2d)))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()


def scale_rates(network: VGG, recipe: Recipe, *, feature_scale: float = 1.0) -> Mapping[str, float]:
    """The share of the learning rate that each parameter, by its key, learns at.

    Args:
        network: Names the parameters.
        recipe: Says how much less each deeper layer learns.
        feature_scale: Root mean square of what the last layer reads, 1 or more; its weights learn that much slower.
    """
    scales = {}
    for stratum in list_strata(network.configuration):
        for place in stratum.modules:
            for name, _ in network.get_submodule(place).named_parameters():
                scales[f"{place}.{name}"] = recipe.layer_decay**stratum.depth
    scales[name_last_weight(network)] /= feature_scale
    return scales


def name_last_weight(network: VGG) -> str:
    """The key of the last layer's weights; of two factors the second's."""
    return [key for key, _ in network.classifier.named_parameters(prefix="classifier") if key.endswith("weight")][
        -1
    ]
