"""Images resized with antialiasing, as Pillow does it, to within one of 255 levels.

Bilinear downscaling, the most frequent case, goes through fast_image_resize where it is installed:
Pillow's own algorithm with the processor's vector instructions, four times as fast. Its passes come
in another order, so that one value in six is rounded to the level beside (docs/decisions/decoding.md).

Shape letters: H and W pixels.
"""

from functools import cache
from math import ceil, floor
from types import ModuleType
from typing import Literal, cast

import numpy as np
from PIL import Image

from vggkit.images.decoding import Pixels

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Span = tuple[int, int]
"""First pixel of a side, and the one after the last."""


def resize(pixels: Pixels, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """RGB pixels (H, W, 3) at another size (width, height)."""
    return resize_part(pixels, size, interpolation, (0, size[0]), (0, size[1]))


def resize_part(
    pixels: Pixels, size: tuple[int, int], interpolation: Interpolation, columns: Span, rows: Span
) -> Pixels:
    """These columns and rows of RGB pixels (H, W, 3), or of (H, W, 4), resized to (width, height)."""
    if pixels.shape[2] == 4:  # separately: Pillow would treat it as the transparency of the others
        colours = resize_part(pixels[..., :3], size, interpolation, columns, rows)
        fourth = resize_part(pixels[..., [3, 3, 3]], size, interpolation, columns, rows)
        return np.dstack([colours, fourth[..., :1]])
    height, width = pixels.shape[:2]
    shrinks = size[0] <= width and size[1] <= height
    quick = _find_quick() if interpolation == "bilinear" and shrinks else None
    if (width, height) == size:
        whole = pixels
    elif quick is not None:
        return _resize_quickly(quick, pixels, size, columns, rows)
    else:
        # Pillow rounds the position of a part to 32 bits, so the whole image is resized.
        image = Image.fromarray(np.ascontiguousarray(pixels))
        whole = np.asarray(image.resize(size, Image.Resampling[interpolation.upper()]))
    return whole[slice(*rows), slice(*columns)]


def _resize_quickly(quick: ModuleType, pixels: Pixels, size: tuple[int, int], columns: Span, rows: Span) -> Pixels:
    """The part alone, by bilinear shrinking; only the pixels that it depends on are read."""
    left, right, across = _see(pixels.shape[1], size[0], columns)
    top, bottom, down = _see(pixels.shape[0], size[1], rows)
    seen = pixels[down, across]
    source = quick.ImageData(seen.shape[1], seen.shape[0], quick.PixelType.U8x3, seen.tobytes())
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    target = quick.ImageData(width, height, quick.PixelType.U8x3)
    options = quick.ResizeOptions(
        resize_alg=quick.ResizeAlg.convolution(quick.FilterType.bilinear),
        crop_box=quick.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    quick.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)


@cache
def _find_quick() -> ModuleType | None:
    """fast_image_resize's package; some machines are without it."""
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return cast(ModuleType, cykooz_resizer)


def _see(side: int, resized: int, wanted: Span) -> tuple[float, float, slice]:
    """Along one side: the source pixels of the wanted part, and where it lies among them."""
    scale = side / resized  # the filter reaches as many pixels to either side
    first, last = max(0, floor((wanted[0] - 1) * scale) - 1), min(side, ceil((wanted[1] + 1) * scale) + 1)
    return wanted[0] * scale - first, min(wanted[1] * scale, side) - first, slice(first, last)
