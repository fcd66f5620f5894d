"""What style transfer optimises in place of pixels: waves of equal weight in the loss, without bounds.

A loss of a trunk's values reacts to a slow wave of pixels far more gently than to the place of one of them, and
pixels have bounds. Both make a minimisation by pixels slow. Here values pass a filter, whose gain falls with the
frequency, and then a curve that is straight between 0 and 1 and flat beyond. Olah, Mordvintsev and Schubert
(Feature Visualization, Distill 2017, "Preconditioning and Parameterization") optimise images in this way.

Shape letters: H and W pixels. Batches hold one image.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

DECAY: Final = 0.75
"""The gain falls with this power of the frequency."""
LEAST_FREQUENCY: Final = 0.03
"""Below so many cycles a pixel the gain falls no further."""
SHARPNESS: Final = 15.0
"""How sharply the curve bends at 0 and 1; without bound it would clip."""
EDGE: Final = 0.004
"""Distance from 0 and 1 of the values to start from: at the bounds themselves the curve is flat."""


class Coordinates:
    """Values (1, 3, H, W) for images (1, 3, H, W) in (0, 1); zeros stand for the images to start from."""

    def __init__(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        down = torch.fft.fftfreq(height, device=images.device)[:, None]
        across = torch.fft.rfftfreq(width, device=images.device)
        gains = (down.square() + across.square() + LEAST_FREQUENCY**2) ** (-DECAY / 2)
        self._gains = gains / gains.square().mean().sqrt()
        self._start = _unbend(images)

    def to_images(self, values: Tensor) -> Tensor:
        """The images that values stand for."""
        return _bend(self._start + self.filter(values))

    def filter(self, values: Tensor) -> Tensor:
        """How far the values move pixels that are not near their bounds."""
        waves = torch.fft.rfft2(values) * self._gains
        moved: Tensor = torch.fft.irfft2(waves, s=values.shape[-2:])
        return moved


def _bend(values: Tensor) -> Tensor:
    """Values without bounds in (0, 1), those between nearly as they are."""
    return (F.softplus(SHARPNESS * values) - F.softplus(SHARPNESS * (values - 1))) / SHARPNESS


def _unbend(images: Tensor) -> Tensor:
    """The inverse of `_bend`."""
    images = images.clamp(EDGE, 1 - EDGE)
    return (torch.expm1(SHARPNESS * images) / -torch.expm1(SHARPNESS * (images - 1))).log() / SHARPNESS
