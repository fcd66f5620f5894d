"""A contact sheet: the overlays of many images on one, each with its class.

Shape letters: H and W pixels.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from vggkit.explanations.overlay import BAND_PIXELS, GAP_PIXELS, draw_heat, show_pixels, write_caption
from vggkit.images.decoding import Pixels

if TYPE_CHECKING:
    from vggkit.explanations.explanation import Explanation

CELL_PIXELS: Final = 224
"""Side of the square that an overlay has."""
MOST_CELLS: Final = 60
"""Images on a sheet: the first ones of a folder."""
MOST_COLUMNS: Final = 6


def draw_cell(pixels: Pixels, explanation: "Explanation") -> Pixels:
    """One overlay in its square, and its class below."""
    small = draw_heat(show_pixels(pixels, CELL_PIXELS), explanation)
    height, width = small.shape[:2]
    cell = Image.new("RGB", (CELL_PIXELS, CELL_PIXELS + BAND_PIXELS), "white")
    cell.paste(Image.fromarray(small), ((CELL_PIXELS - width) // 2, CELL_PIXELS - height))
    write_caption(cell, explanation.title)
    return np.asarray(cell)


def draw_sheet(cells: Sequence[Pixels]) -> Pixels:
    """The cells in rows, about as wide as high, at most six beside each other."""
    columns = min(MOST_COLUMNS, max(2, math.ceil(math.sqrt(len(cells)))))
    rows = math.ceil(len(cells) / columns)
    height, width = cells[0].shape[0] + GAP_PIXELS, cells[0].shape[1] + GAP_PIXELS
    sheet = np.full((rows * height + GAP_PIXELS, columns * width + GAP_PIXELS, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // columns * height + GAP_PIXELS, number % columns * width + GAP_PIXELS
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet
