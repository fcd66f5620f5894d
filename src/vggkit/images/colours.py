"""Transfer of colours between images, with which style transfer preserves the colours of its content.

Source: Gatys, Bethge, Hertzmann and Shechtman, "Preserving color in neural artistic style transfer", arXiv
1606.05897: linear matching of mean and covariance (section 3), and luminance alone (section 4).

Shape letters: H and W pixels.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.images.decoding import Pixels

TO_YIQ: Final = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""Luminance, and two channels of colour, of RGB (NTSC)."""
LEAST_VARIANCE: Final = 1e-5
"""Added to the variance of colours in [0, 1]: an image of one colour has none."""


def match_colours(pixels: Pixels, reference: Pixels) -> Pixels:
    """An image whose colours have the mean and the covariance of another's, by one linear map of its colours.

    Args:
        pixels: RGB (H, W, 3), uint8.
        reference: RGB of any size.
    """
    ours, theirs = (_list_colours(each) for each in (pixels, reference))
    spread, wanted = (np.cov(each.T) + LEAST_VARIANCE * np.eye(3) for each in (ours, theirs))
    transform = _root(wanted) @ np.linalg.inv(_root(spread))
    matched = (ours - ours.mean(0)) @ transform.T + theirs.mean(0)
    return _to_pixels(matched.reshape(pixels.shape))


def match_luminance(pixels: Pixels, reference: Pixels) -> Pixels:
    """A grey image of an image's luminance, with the mean and the deviation of another's, as RGB (H, W, 3)."""
    ours, theirs = (_list_colours(each) @ TO_YIQ[0] for each in (pixels, reference))
    scale = theirs.std() / max(ours.std(), LEAST_VARIANCE**0.5)
    matched = ((ours - ours.mean()) * scale + theirs.mean()).reshape(pixels.shape[:2])
    return _to_pixels(np.repeat(matched[:, :, None], 3, axis=2))


def combine_luminance(luminance: Pixels, colours: Pixels) -> Pixels:
    """The luminance of one image with the colours of another of the same size, RGB (H, W, 3)."""
    taken = _list_colours(colours) @ TO_YIQ.T
    taken[:, 0] = _list_colours(luminance) @ TO_YIQ[0]
    return _to_pixels((taken @ np.linalg.inv(TO_YIQ).T).reshape(colours.shape))


def _list_colours(pixels: Pixels) -> NDArray[np.float64]:
    return pixels.reshape(-1, 3) / 255


def _to_pixels(values: NDArray[np.float64]) -> Pixels:
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a covariance matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
