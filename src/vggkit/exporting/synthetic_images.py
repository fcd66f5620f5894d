"""Synthetic images for the check of an exported file if the caller gives none; they are always the same.

Shape letters: H and W pixels.
"""

from typing import Final

import numpy as np

from vggkit.images.decoding import Pixels
from vggkit.images.resizing import resize

SIZES: Final = ((300, 400), (341, 256), (256, 256), (480, 270))
"""Height and width in pixels of each."""
GRAINS: Final = (4, 12, 40, 120)
"""Numbers of blots along a side; coarse ones are the strongest, as in the spectrum of photographs."""


def make_synthetic_images(channels: int) -> list[Pixels]:
    """Images (H, W, channels), uint8, of several sizes: blurred blots of colour in all sizes, and hard edges."""
    return [_make_synthetic(np.random.default_rng(number), *sides, channels) for number, sides in enumerate(SIZES)]


def _make_synthetic(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    total = np.zeros((height, width, channels), np.float32)
    for grain in GRAINS:
        blots = rng.integers(0, 256, (grain, grain, channels), np.uint8)
        total += (resize(blots, (width, height), "bicubic").astype(np.float32) - 128) / grain**0.5
    pixels: Pixels = np.clip(total / total.std() * 60 + 128, 0, 255).astype(np.uint8)
    top, left = height // 3, width // 4
    pixels[top : top + height // 4, left : left + width // 3] = rng.integers(0, 256, channels)
    return pixels
