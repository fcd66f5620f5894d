"""Renders handwritten digits as they look in photos and drawings: many sizes, pens, inks, papers and lights.

The originals are the 1,797 digits of scikit-learn, 8×8 pixels with 17 levels of ink. An image that a person
gives to a classifier has sharp strokes of any width, dark on light or light on dark, on paper that is lit unevenly,
with a margin of any size. Each rendering draws such a digit from an original: its own blurred strokes made sharp,
or its centre line drawn with a pen of random width, then turned, sheared, bent, moved and lit at random.

Shape letters: N images, H height, W width in pixels.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

SIDE: Final = 32
"""Height and width of a rendered image, the network's input."""
CANVAS: Final = 64
"""Height and width at which strokes are drawn, before they are made smaller with antialiasing."""


def enlarge(originals: NDArray[np.uint8]) -> Tensor:
    """Ink in [0, 1] at the size of the canvas, float32 (N, CANVAS, CANVAS), of images (N, 8, 8) of 0 to 255."""
    ink = torch.from_numpy(originals.astype(np.float32) / 255)[:, None]
    return F.interpolate(ink, size=(CANVAS, CANVAS), mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)


def measure_distances(ink: Tensor) -> Tensor:
    """Distance in canvas pixels from each pixel to the digit's centre line, float32 (N, CANVAS, CANVAS)."""
    lines = [thin(digit.numpy() > 0.45) for digit in ink]
    return torch.from_numpy(np.stack([ndimage.distance_transform_edt(~line) for line in lines]).astype(np.float32))


def thin(filled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The centre line, one pixel wide, of filled strokes (H, W): Zhang and Suen 1984, CACM 27(3)."""
    current = np.pad(filled, 1)
    while True:
        before = current.copy()
        for first in (True, False):
            ring = [np.roll(current, shift, axis=(0, 1)) for shift in _RING]
            count = np.sum(ring, axis=0)
            rises = sum((~ring[i] & ring[(i + 1) % 8]).astype(int) for i in range(8))
            north, east, south, west = ring[0], ring[2], ring[4], ring[6]
            if first:
                corner = ~(north & east & south) & ~(east & south & west)
            else:
                corner = ~(north & east & west) & ~(north & south & west)
            current = current & ~((count >= 2) & (count <= 6) & (rises == 1) & corner)
        if np.array_equal(before, current):
            return current[1:-1, 1:-1]


_RING: Final = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
"""Shifts that bring each of a pixel's eight neighbours to it, clockwise from the one above."""


def render(ink: Tensor, distances: Tensor, *, draws: torch.Generator) -> NDArray[np.uint8]:
    """A random image of each digit, grey (N, SIDE, SIDE).

    Args:
        ink: What `enlarge` gave.
        distances: What `measure_distances` gave for it.
        draws: Every random number comes from it.
    """
    count = len(ink)

    def uniform(least: float, most: float) -> Tensor:
        return torch.rand(count, generator=draws) * (most - least) + least

    def chance(probability: float) -> Tensor:
        return torch.rand(count, generator=draws) < probability

    def wide(values: Tensor) -> Tensor:
        return values[:, None, None]

    # The pen: the original's own strokes, made sharper, or a line of random width along their centre.
    softness = torch.exp(uniform(np.log(0.02), np.log(0.2)))
    sharpened = torch.sigmoid((ink - wide(uniform(0.3, 0.55))) / wide(softness))
    radius = torch.exp(uniform(np.log(1.2), np.log(6.0)))
    drawn = torch.sigmoid((wide(radius) - distances) / wide(torch.exp(uniform(np.log(0.3), np.log(1.5)))))
    strokes = torch.where(wide(chance(0.6)), drawn, sharpened)

    bars = uniform(1, 9) * chance(0.2)
    places = _place(count, 1 - 2 * bars / SIDE, uniform, draws)
    bent = F.grid_sample(strokes[:, None], places, mode="bilinear", padding_mode="zeros", align_corners=False)
    strokes = F.avg_pool2d(bent, CANVAS // SIDE)[:, 0]

    # Light and paper: dark on light or light on dark, uneven light, noise, ruled lines.
    contrast = uniform(0.3, 1.0)
    lightest = contrast + uniform(0, 1) * (1 - contrast)
    dark, light = lightest - contrast, lightest
    on_dark = chance(0.5)
    paper, pen = torch.where(on_dark, dark, light), torch.where(on_dark, light, dark)
    ruled = _rule(count, uniform, chance) * wide(chance(0.15) * uniform(0.1, 0.5))
    covered = torch.maximum(strokes, ruled)
    image = wide(paper) + covered * wide(pen - paper)
    image = image * (1 + _light(count, draws) * wide(uniform(0, 0.3) * chance(0.6)))
    image = image + torch.randn(image.shape, generator=draws) * wide(uniform(0, 0.08) * chance(0.6))
    image = _frame(image, bars.int(), chance(0.5))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _place(count: int, free: Tensor, uniform: Callable[[float, float], Tensor], draws: torch.Generator) -> Tensor:
    """Where each pixel of a rendered canvas reads the digit: (N, CANVAS, CANVAS, 2) in [-1, 1].

    Args:
        count: N.
        free: Share of the frame's sides that the digit may lie in, around the middle, (N,).
        uniform: Gives numbers (N,) between two.
        draws: For the bends.
    """
    angle, shear = uniform(-0.26, 0.26), uniform(-0.25, 0.25)
    size = free * torch.exp(uniform(np.log(0.35), np.log(1.05)))  # share of the frame that the 8×8 pixels fill
    aspect = torch.exp(uniform(np.log(0.75), np.log(1.3)))
    room = (free - size).clamp(min=0.05) * 0.8
    right, down = uniform(-1, 1) * room, uniform(-1, 1) * room
    cosine, sine = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    lean = torch.eye(2).repeat(count, 1, 1)
    lean[:, 0, 1] = shear
    scale = torch.diag_embed(torch.stack([1 / (size * aspect), 1 / size], 1))
    matrix = turn @ lean @ scale
    offset = -(matrix @ torch.stack([right, down], 1)[..., None])
    grid = F.affine_grid(torch.cat([matrix, offset], 2), [count, 1, CANVAS, CANVAS], align_corners=False)
    bends = torch.randn(count, 2, 4, 4, generator=draws) * uniform(0, 0.09)[:, None, None, None]
    bends = F.interpolate(bends, size=(CANVAS, CANVAS), mode="bicubic", align_corners=True)
    return grid + bends.permute(0, 2, 3, 1) / size[:, None, None, None]


def _rule(count: int, uniform: Callable[[float, float], Tensor], chance: Callable[[float], Tensor]) -> Tensor:
    """Ruled paper: lines at even distances across, and on some down as well, in [0, 1]."""
    places = torch.arange(SIDE, dtype=torch.float32)
    across, down = ((((places + uniform(0, 20)[:, None]) % uniform(5, 16)[:, None]) < 1).float() for _ in range(2))
    return torch.maximum(across[:, :, None], down[:, None, :] * chance(0.5)[:, None, None])


def _light(count: int, draws: torch.Generator) -> Tensor:
    """Light that changes slowly over the image, about -2 to 2."""
    coarse = torch.randn(count, 1, 3, 3, generator=draws)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)[:, 0]


def _frame(image: Tensor, bars: Tensor, upright: Tensor) -> Tensor:
    """Grey bars of this width beside each image, or above and below, as where one that is not square is padded."""
    places = torch.arange(SIDE)
    inside = (places < bars[:, None]) | (places >= SIDE - bars[:, None])
    covered = torch.where(upright[:, None, None], inside[:, None, :], inside[:, :, None])
    return torch.where(covered, torch.tensor(0.5), image)
