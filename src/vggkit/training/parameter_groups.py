"""What of a network learns, when, and how fast: the layers from the head down."""

from collections.abc import Mapping

from torch import nn

from vggkit.models.vgg import VGG
from vggkit.training.by_hand import NOTHING, SetByHand
from vggkit.training.layer_groups import list_learning, list_strata
from vggkit.training.recipe import Recipe


def open_layers(network: VGG, recipe: Recipe, epoch: int, *, by_hand: SetByHand = NOTHING) -> None:
    """Put the network in the state in which it learns in that epoch.

    What does not learn needs no gradients, and its batch norm keeps its running statistics: in eval
    mode, for a frozen layer whose statistics drift is not frozen. What was frozen by hand stays so.
    """
    network.train()
    network.requires_grad_(False)
    for stratum in list_learning(recipe, network.configuration, epoch):
        for place in stratum.modules:
            module = network.get_submodule(place)
            module.requires_grad_(not (recipe.freeze_norm and isinstance(module, nn.BatchNorm2d)))
    for key in by_hand.frozen:
        network.get_parameter(key).requires_grad_(False)
    for name in by_hand.resting:
        network.get_submodule(name).training = False
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
