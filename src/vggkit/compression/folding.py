"""Exact folding of the first fully connected layer where images are smaller than the paper's.

The paper's head reads a map of 7×7 places. A smaller map, such as the single place that is left of an image of 32
pixels, is averaged up to 7×7 first: places are repeated or overlap. That is a linear map P in front of a matrix W,
and W P reads the small map itself: the same scores from fewer columns.

Shape letters: O outputs, C channels, G side of the head's grid, S side of the trunk's last map.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.compression.rebuild import build_network, copy_state
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.models.vgg import VGG


def find_folded_grid(configuration: Configuration, pixels: int) -> int | None:
    """The smaller grid that the head can read for images of that side in pixels; None: there is none."""
    if configuration.head != "fc":
        return None
    side = Graph(configuration, input_pixels=(pixels, pixels)).trunk[-1].output_shape[-1]
    return side if side < configuration.grid else None


def fold(network: VGG, *, pixels: int) -> VGG:
    """The network with the columns of fc6 summed that always read the same values, for images of one size.

    Args:
        network: A network; one without columns to fold is returned as it is.
        pixels: Height and width of the images. For these the scores are the same but for the order of additions;
            images of other sizes get others.

    >>> network = VGG("vgg11", num_classes=10)
    >>> network.configuration.parameters, fold(network, pixels=32).configuration.parameters
    (128807306, 28144010)
    """
    configuration = network.configuration
    side = find_folded_grid(configuration, pixels)
    if side is None:
        return network
    state, first = copy_state(network), configuration.fully_connected[0]
    key = f"classifier.{first.index}.weight" if first.rank is None else f"classifier.{first.index}.0.weight"
    state[key] = _fold_columns(state[key], grid=configuration.grid, side=side)
    return build_network(replace(configuration, grid=side), state)


def _fold_columns(weight: Tensor, *, grid: int, side: int) -> Tensor:
    """(O, C·G²) to (O, C·S²)."""
    places = torch.eye(side * side, dtype=torch.float64).reshape(side * side, 1, side, side)
    spread = F.adaptive_avg_pool2d(places, grid).reshape(side * side, grid * grid)
    blocks = weight.double().reshape(len(weight), -1, grid * grid)
    return (blocks @ spread.T).reshape(len(weight), -1).float()
