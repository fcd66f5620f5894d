"""Small images of images, for pages that hold many of them.

Shape letters: H and W pixels.
"""

import io
from typing import Final

from PIL import Image

from vggkit.images.decoding import Pixels

SIDE_PIXELS: Final = 240
"""Long side at most: sharp at 160 on a screen of one and a half dots a pixel, in 6 kB for a photograph."""

TINY_PIXELS: Final = 64
"""Images whose long side has no more are pixel art or digits: kept to the pixel, and shown enlarged unblurred."""

MEDIA_TYPE: Final = "image/webp"
"""What `encode_thumbnail` writes."""

QUALITY: Final = 65


def encode_thumbnail(pixels: Pixels, *, side_pixels: int = SIDE_PIXELS) -> bytes:
    """A WebP file of RGB pixels (H, W, 3), the long side reduced to `side_pixels`; never enlarged."""
    image = Image.fromarray(pixels)
    tiny = is_tiny(pixels)
    image.thumbnail((side_pixels, side_pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, lossless=tiny)
    return file.getvalue()


def is_tiny(pixels: Pixels) -> bool:
    """Whether single pixels are what such an image consists of."""
    return bool(max(pixels.shape[:2]) <= TINY_PIXELS)
