"""The input convention of a file's weights: channel order, range, mean and std of what conv1_1 was trained on.

Keys and names do not state it. It is stated, or known by a fingerprint of conv1_1, or unknown.
No torch here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadCheckpoint, UnknownName, VggkitError
from vggkit.images.preprocessing import ChannelOrder, Preprocessing
from vggkit.models.statements import Statements
from vggkit.weights.card import Card
from vggkit.weights.dialects import Place
from vggkit.weights.formats.weight_file import WeightFile

InputConvention = Literal["imagenet", "caffe", "caffe-rgb", "caffe-unit"]
"""imagenet: RGB in [0, 1], ImageNet's mean and std; torchvision's and timm's own weights.
caffe: BGR, 0 to 255, minus (103.939, 116.779, 123.68); Oxford's files and Keras.
caffe-rgb: the same in RGB. caffe-unit: RGB in [0, 1], minus Caffe's mean / 255."""

CAFFE_MEAN: Final = (123.68, 116.779, 103.939)
"""Mean of ImageNet's R, G and B on the scale of 255, which Oxford's networks subtract."""

CONVENTIONS: Final[Mapping[str, Preprocessing]] = {
    "imagenet": Preprocessing(),
    "caffe": Preprocessing(channel_order="BGR", full_value=255.0, mean=CAFFE_MEAN[::-1], std=(1.0,) * 3),
    "caffe-rgb": Preprocessing(full_value=255.0, mean=CAFFE_MEAN, std=(1.0,) * 3),
    "caffe-unit": Preprocessing(mean=tuple(value / 255 for value in CAFFE_MEAN), std=(1.0,) * 3),
}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Rounded sums that identify one published conv1_1; no filter can be computed from them."""

    network: str
    """The network that it is of."""
    sums: tuple[tuple[float, float, float], ...]
    """For each of the first 16 filters, the sum of its 3×3 window for B, G and R."""
    biases: tuple[float, ...]
    """The biases of these filters: changed where a mean was folded into them."""


# Computed here from Oxford's published weights (BGR, 0 to 255), to two decimals.
_FINGERPRINTS: Final = (
    Fingerprint(
        "vgg16",
        (
            (0.02, -0.03, 0.03),
            (1.37, 0.38, -1.53),
            (0.04, 0.46, -0.04),
            (0.07, -0.10, 0.02),
            (-0.07, -0.07, 0.23),
            (2.16, -1.86, -0.58),
            (-0.02, 0.13, -0.11),
            (-0.46, -0.12, 0.36),
            (0.95, -2.65, 1.66),
            (1.10, -0.38, -0.70),
            (0.01, -0.00, 0.01),
            (-0.47, 0.81, -0.49),
            (-1.31, 3.09, -1.75),
            (0.72, 0.33, -1.04),
            (-0.30, -0.24, -0.12),
            (1.00, -1.99, 0.96),
        ),
        (0.73, 0.09, 0.07, 0.89, 0.26, 0.66, -0.02, 0.32, 0.69, 0.06, 0.58, 0.24, 0.70, 0.19, 0.49, 0.45),
    ),
    Fingerprint(
        "vgg19",
        (
            (-0.00, 0.02, -0.02),
            (1.00, 0.31, -0.82),
            (0.16, 0.83, -0.43),
            (-0.20, -0.10, -0.05),
            (-0.08, -0.08, 0.41),
            (1.92, -1.64, -0.49),
            (0.05, 0.08, -0.25),
            (-0.58, -0.15, 0.43),
            (0.87, -1.90, 1.03),
            (1.11, -0.57, -0.54),
            (0.00, 0.02, 0.01),
            (-0.32, 0.76, -0.53),
            (-1.37, 3.04, -1.64),
            (0.60, 0.23, -0.82),
            (-0.23, -0.32, -0.09),
            (0.95, -2.04, 1.05),
        ),
        (0.73, 0.06, 0.03, 0.83, 0.26, 0.55, -0.01, 0.35, 0.55, 0.06, 0.61, 0.27, 0.65, 0.17, 0.48, 0.38),
    ),
)
# Half a hundredth of rounding, and the rounding of bfloat16 in the sum of nine weights.
_TOLERANCE: Final = 0.015


def match_fingerprint(
    filters: NDArray[np.float32], biases: NDArray[np.float32]
) -> tuple[str, Preprocessing] | None:
    """The network of a published conv1_1 and the input convention of its file; None for an unknown one.

    Args:
        filters: (64, 3, 3, 3), as they lie in the file: O, I, H, W.
        biases: (64,).

    Oxford's VGG16 and VGG19 are known as they are (BGR, 0 to 255), flipped (RGB, 0 to 255) and scaled
    by 255 (range [0, 1]). Where a mean was folded into the biases they are not: the file's own mean
    cannot be known then. Filters changed in training are none of these.
    """
    if filters.shape != (64, 3, 3, 3) or biases.shape != (64,):
        return None
    sums = filters.astype(np.float64).sum((2, 3))[:16]
    for known in _FINGERPRINTS:
        if np.abs(biases[:16] - np.asarray(known.biases)).max() > _TOLERANCE:
            continue
        for name, flipped, scale in (("caffe", False, 1), ("caffe-rgb", True, 1), ("caffe-unit", True, 255)):
            found = (sums[:, ::-1] if flipped else sums) / scale
            if np.abs(found - np.asarray(known.sums)).max() <= _TOLERANCE:
                return known.network, CONVENTIONS[name]
    return None


def find_convention(convention: str | Preprocessing | None) -> Preprocessing | None:
    """The preprocessing under a convention's name; a Preprocessing and None are themselves.

    Raises UnknownName.
    """
    if convention is None or isinstance(convention, Preprocessing):
        return convention
    if convention not in CONVENTIONS:
        raise UnknownName.of("input convention", convention, CONVENTIONS)
    return CONVENTIONS[convention]


def describe_convention(preprocessing: Preprocessing) -> str:
    """The input convention in a few words: `BGR 0-255, mean (103.939, 116.779, 123.68), std (1, 1, 1)`."""

    def listed(values: Sequence[float]) -> str:
        return f"({', '.join(f'{value:.6g}' for value in values)})"

    p = preprocessing
    return f"{p.channel_order} 0-{p.full_value:g}, mean {listed(p.mean)}, std {listed(p.std)}"


def same_convention(one: Preprocessing, other: Preprocessing) -> bool:
    """Whether both give a network the same values; resizing and cropping aside."""

    def convention(p: Preprocessing) -> tuple[Any, ...]:
        return (p.channel_order, p.full_value, p.mean, p.std)

    return convention(one) == convention(other)


def turn_convention(source: Preprocessing, *, caffe: bool) -> tuple[Preprocessing, tuple[float, ...]]:
    """The convention that a dialect's readers expect, and the function that converts conv1_1 to it.

    Caffe's and Keras's readers take BGR from 0 to 255, the others RGB from 0 to 1; std becomes 1
    where it can. The mean stays what it was, on the new scale: folded into the bias it would be
    wrong at the borders, where zero padding represents the mean.

    Args:
        source: The present preprocessing of the weights' input.
        caffe: To BGR, 0 to 255.

    Returns:
        The preprocessing, and for each input channel in its *new* order the factor of conv1_1's filters.
    """
    order: ChannelOrder = "L" if source.channel_order == "L" else "BGR" if caffe else "RGB"
    full_value = 255.0 if caffe else 1.0
    ratio = full_value / source.full_value
    # Files for a torch reader keep the std they have, as their readers divide by one; Caffe's do not.
    keep_std = not caffe and source.full_value == full_value
    flip = order != source.channel_order
    mean, std = ((values[::-1] if flip else values) for values in (source.mean, source.std))
    turned = replace(
        source,
        channel_order=order,
        full_value=full_value,
        mean=tuple(value if ratio == 1 else value * ratio for value in mean),
        std=std if keep_std else (1.0,) * len(std),
    )
    # Fed (v * full - mean) / std, a filter w and its turned one agree where w_new = w * new std / (ratio * std).
    factors = tuple(new / (ratio * old) for new, old in zip(turned.std, std, strict=True))
    return _named(turned), factors


def _named(preprocessing: Preprocessing) -> Preprocessing:
    """The named convention with its exact values, where scaling there and back has changed the last digits."""
    p = preprocessing
    for known in CONVENTIONS.values():
        near = (
            np.allclose((*p.mean, *p.std), (*known.mean, *known.std), rtol=1e-9, atol=0)
            if p.channels == 3
            else False
        )
        if near and (p.channel_order, p.full_value) == (known.channel_order, known.full_value):
            return replace(p, mean=known.mean, std=known.std)
    return p


@dataclass(frozen=True, slots=True)
class Evidence:
    """The known preprocessing and labels of a file, and their source."""

    preprocessing: Preprocessing | None = None
    evidence: str | None = None
    network: str | None = None
    labels: tuple[str, ...] | None = None


def find_evidence(
    file: WeightFile, first: tuple[Place, str] | None, card: Card | None, statements: Statements
) -> Evidence:
    """The preprocessing, by the card, else by other metadata, else by the fingerprint.

    Args:
        file: The open file.
        first: Where its conv1_1 has its filters, and the key of its bias; None where it has none.
        card: The card of a Classifier's file.
        statements: The other statements of the file.
    """
    matched = _match_first(file, *first) if first is not None else None
    network = matched[0] if matched else None
    if card is not None:
        return Evidence(card.preprocessing, "card", network, card.labels)
    if statements.preprocessing is not None:
        return Evidence(statements.preprocessing, "metadata", network, statements.labels)
    if matched is not None:
        return Evidence(matched[1], "fingerprint", network, statements.labels)
    return Evidence(labels=statements.labels)


def read_statements(file: WeightFile) -> Statements:
    """The network, preprocessing and labels that a file states."""
    try:
        return Statements.read(file.metadata)
    except (ValueError, TypeError, RecursionError, VggkitError) as problem:
        raise BadCheckpoint(
            f"{file.path}: its metadata of network, input or labels cannot be read ({problem})"
        ) from problem


def _match_first(file: WeightFile, filters: Place, bias: str) -> tuple[str, Preprocessing] | None:
    """The network and convention of conv1_1 by its fingerprint."""
    if file.entries[filters.key].shape != filters.shape_of((64, 3, 3, 3)) or file.entries[bias].shape != (64,):
        return None
    values = file.read_array(filters.key)
    values = values.transpose(3, 2, 0, 1) if filters.layout == "hwio" else values
    return match_fingerprint(values, file.read_array(bias))
