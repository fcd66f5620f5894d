"""Measurement of activation ranges: the smallest and largest inputs of convolutions and matrices, for int8."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.model_weights import Weights
from vggkit.engines.openvino import OpenVINOEngine
from vggkit.engines.outputs import Output, list_reads
from vggkit.errors import BadInput
from vggkit.models.graph import IMAGES

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

WITHIN: Final = 0.99
"""Share of images whose values lie within a range at each end."""


def measure_ranges(
    weights: "Weights | VGG", batches: Iterable[NDArray[np.float32]]
) -> dict[Output, tuple[float, float]]:
    """The range of the inputs of each convolution and matrix, by its name, for an engine in int8.

    The values of 99 % of the images lie within it, so that one unusual image does not widen a range for all.

    Args:
        weights: A VGG, or a ModelFile.
        batches: Preprocessed images (N, C, H, W), as the network will see: a few hundred in all.

    Raises BadInput without images, MissingExtra without OpenVINO, and BadCheckpoint.
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
        raise BadInput("ranges are measured on images, and there are none; give a few hundred")
    rows = {name: np.array(pairs) for name, pairs in found.items()}
    if lost := max(int((~np.isfinite(pairs)).any(axis=1).sum()) for pairs in rows.values()):
        raise BadInput(
            f"of {lost:,} of {len(found[IMAGES]):,} images the network's values overflow or are not numbers, and "
            "have no range. Its weights are broken or far too large: take an earlier checkpoint, or train it again "
            "at a lower learning rate"
        )
    return {name: _find_ends(pairs) for name, pairs in rows.items()}


def _find_ends(pairs: NDArray[np.float64]) -> tuple[float, float]:
    """A range from the ends of each image (N, 2)."""
    low, high = np.quantile(pairs[:, 0], 1 - WITHIN), np.quantile(pairs[:, 1], WITHIN)
    return min(0.0, float(low)), max(0.0, float(high))  # zero is in every range: padding is zero
