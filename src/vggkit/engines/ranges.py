"""Which values the products of a network read, as pictures show: rounding them to 8 bits needs both ends."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.drawing import IMAGES
from vggkit.engines.openvino import OpenVINOEngine
from vggkit.engines.outputs import Output, find_relu
from vggkit.engines.weights import Weights
from vggkit.errors import BadInput
from vggkit.networks.configurations import Configuration

if TYPE_CHECKING:
    from vggkit.networks.vgg import VGG


def measure_ranges(
    weights: "Weights | VGG", batches: Iterable[NDArray[np.float32]]
) -> dict[Output, tuple[float, float]]:
    """Both ends of what each convolution and matrix reads, by its name, for an engine in int8.

    Each end is the mean over pictures of the picture's own: one strange picture does not widen it for all.

    Args:
        weights: A VGG, or a ModelFile.
        batches: Preprocessed pictures (N, C, H, W), as the network will see: a few hundred in all.

    Raises BadInput without pictures, MissingExtra without OpenVINO, and BadCheckpoint.
    """
    names = list_reads(weights.configuration)
    engine = OpenVINOEngine(weights, output=names[1:] or "logits")
    found: dict[Output, list[tuple[float, float]]] = {name: [] for name in names}
    for batch in batches:
        for name, values in (engine.compute(batch) | {IMAGES: batch}).items():
            if name in found:
                flat = values.reshape(len(values), -1)
                found[name] += zip(flat.min(axis=1).tolist(), flat.max(axis=1).tolist(), strict=True)
    if not found[IMAGES]:
        raise BadInput("ranges are measured on pictures, and there are none; give a few hundred")
    # Zero is in every range: padding is zero.
    ends = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    return {name: (min(0.0, float(low)), max(0.0, float(high))) for name, (low, high) in ends.items()}


def list_reads(configuration: Configuration) -> list[Output]:
    """Names of what convolutions and matrices read, the pictures first.

    Statistics of a pool head are none of them: its matrix is small, and what it reads is wide.
    """
    trunk = configuration.trunk
    names = [
        IMAGES,
        *(before.name for before, layer in pairwise(trunk) if layer.kind == "conv"),
    ]
    if configuration.head != "pool":
        names += [trunk[-1].name, *(find_relu(fc) for fc in configuration.fully_connected[:-1])]
    return names
