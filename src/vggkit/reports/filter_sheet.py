"""The contact sheet of the channels of a layer."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np

from vggkit.images.decoding import Pixels
from vggkit.reports.plots import PALE_INK, draw_to

TILE_INCHES: Final = 0.85
"""Side of an image on the sheet."""
GAP_SHARE: Final = 0.06
"""Space between images, as a share of their side."""
MOST_COLUMNS: Final = 8
"""Images in a row, where each channel has one."""


def plot_filters(
    images: Pixels, channels: Sequence[int], path: str | Path, *, title: str, subtitle: str, smooth: bool
) -> None:
    """A grid of images: a row for each channel with several, or one image for each channel, with its number.

    Args:
        images: (N, images of each, H, W, 3), uint8.
        channels: (N,) numbers of the channels.
        path: The file, .png, .pdf or .svg.
        title: The sheet's.
        subtitle: A description of the images, in a sentence.
        smooth: Whether pixels are interpolated; filters of a few pixels are not.

    Raises BadOutput and MissingExtra, see `draw_to`.
    """
    count, each, height, width = images.shape[:4]
    columns = each if each > 1 else min(MOST_COLUMNS, count)
    rows = ceil(count * each / columns)
    across, down = columns * TILE_INCHES + 0.5, rows * TILE_INCHES * height / width * (1.0 if each > 1 else 1.18)
    with draw_to(path, width_inches=max(across, 4.2), height_inches=down + 0.75) as figure:
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(subtitle, x=0.012, ha="left", fontsize=7.5, color=PALE_INK)
        axes = figure.subplots()
        axes.axis("off")
        axes.set_aspect("equal", anchor="NW")
        step = 1 + GAP_SHARE
        for number, image in enumerate(images.reshape(-1, height, width, 3)):
            row, column = divmod(number, columns)
            left, top = column * step, row * (step if each > 1 else step + 0.18)
            axes.imshow(
                image,
                extent=(left, left + 1, top + height / width, top),
                interpolation="lanczos" if smooth else "nearest",
                zorder=1,
            )
            if each == 1 or column == 0:
                place = {"x": left - 0.06, "y": top + 0.5, "ha": "right", "va": "center"}
                if each == 1:
                    place = {"x": left, "y": top - 0.02, "ha": "left", "va": "bottom"}
                axes.text(s=str(channels[number // each]), fontsize=7, color=PALE_INK, **place)
        axes.set_xlim(-0.3 if each > 1 else 0, columns * step - GAP_SHARE)
        below = rows * step - GAP_SHARE if each > 1 else rows * (step + 0.18) - GAP_SHARE - 0.18
        axes.set_ylim(below, -0.2 if each == 1 else 0)


def join_images(images: Sequence[Sequence[Pixels]], side: int) -> Pixels:
    """(N, images of each, side, side, 3): rows that are shorter are filled with white."""
    longest = max(map(len, images))
    joined = np.full((len(images), longest, side, side, 3), 255, np.uint8)
    for row, several in zip(joined, images, strict=True):
        for place, image in zip(row, several, strict=False):
            place[...] = image
    return joined
