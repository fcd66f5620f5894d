"""What tells a right explanation from a wrong one: deletion and insertion, mosaics, and the likeness of two maps.

Shape letters: N images, C channels, H and W pixels or places.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[np.float32]
STEPS: Final = 8
"""Of a curve: an eighth of the pixels is taken away, or put in, at each."""
BLUR: Final = 16
"""The blurred image that insertion starts from has so many times fewer pixels a side."""


def measure_areas(
    image: Values, values: Values, ask: Callable[[Values], NDArray[np.float64]]
) -> tuple[float, float]:
    """Areas in [0, 1] under the curves of deletion and of insertion.

    Args:
        image: (C, H, W) as input of the network; the mean colour is 0.
        values: A map of it, of any height and width.
        ask: Gives the probability (N,) of the explained class for images (N, C, H, W).

    Deletion sets the most important pixels to the mean colour first, insertion puts them into the blurred image
    first (Petsiuk et al., arXiv 1806.07421).
    """
    height, width = image.shape[1:]
    enlarged = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    ranks = np.empty(height * width, np.int64)
    ranks[np.argsort(-enlarged, axis=None, kind="stable")] = np.arange(height * width)
    done = ranks.reshape(height, width) < (np.linspace(0, height * width, STEPS + 1))[:, None, None]
    blurred = np.stack([_blur(channel) for channel in image])
    batch = np.concatenate([np.where(done[:, None], 0, image), np.where(done[:, None], image, blurred)])
    curves = ask(batch.astype(np.float32)).reshape(2, STEPS + 1)
    areas = (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2  # by trapezoids
    return float(areas[0]), float(areas[1])


def build_mosaics(
    inputs: Values, classes: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Values, NDArray[np.int64]]:
    """A mosaic for each image: it and three images of other classes at half their size, in a random order.

    Args:
        inputs: Images (N, C, H, W) as input of the network.
        classes: (N,) the class of each, by which others are chosen; at least two differ.
        rng: The source of the order.

    Returns mosaics (N, C, H, W), and the quarter (N,) of each that the image is in: 0 to 3, row by row.
    """
    height, width = inputs.shape[2:]
    down, across = height // 2, width // 2
    mosaics, quarters = np.zeros_like(inputs), rng.integers(0, 4, len(inputs))
    halves = np.stack([[_shrink(channel, (down, across)) for channel in image] for image in inputs])
    for number, quarter in enumerate(quarters):
        others = rng.choice(np.flatnonzero(classes != classes[number]), 3)
        members = np.insert(others, quarter, number)
        for place, member in enumerate(members):
            top, left = place // 2 * down, place % 2 * across
            mosaics[number, :, top : top + down, left : left + across] = halves[member]
    return mosaics, quarters


def find_quarters(maps: Values) -> NDArray[np.int64]:
    """(N,) the quarter of each map (N, H, W) that its largest value lies in; -1 where all values are the same."""
    height, width = maps.shape[1:]
    rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), (height, width))
    quarters = 2 * (rows + 0.5 > height / 2).astype(np.int64) + (columns + 0.5 > width / 2)
    found: NDArray[np.int64] = np.where(np.ptp(maps, axis=(1, 2)) > 0, quarters, -1)
    return found


def correlate_ranks(one: Values, other: Values) -> float | None:
    """Spearman's rank correlation of two maps (H, W), in [-1, 1]; None where all values of one are the same."""
    first, second = (_rank(values) for values in (one, other))
    if not first.std() or not second.std():
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _rank(values: Values) -> NDArray[np.float64]:
    """The rank of each value, equal values sharing theirs."""
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _blur(channel: Values) -> Values:
    height, width = channel.shape
    small = _shrink(channel, (max(1, height // BLUR), max(1, width // BLUR)))
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _shrink(channel: Values, sides: tuple[int, int]) -> Values:
    return np.asarray(Image.fromarray(channel).resize(sides[::-1], Image.Resampling.BILINEAR))
