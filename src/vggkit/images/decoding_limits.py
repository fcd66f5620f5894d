"""Limits on declared image sizes: decoding takes at most 5 s and 1 GB (docs/decisions/decoding.md)."""

from dataclasses import dataclass
from typing import Final

from vggkit.errors import BadImage

MOST_BYTES: Final = 900_000_000
"""Memory for an image's file, its decoder and its pixels; with Python, NumPy and Pillow it makes 1 GB."""

PILLOW_BYTES: Final = 7.5
"""Memory for each pixel at the peak of decoding: four bytes in Pillow, three of the result, and a strip."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The limits of a format, measured on noise, which takes longest (docs/decisions/decoding.md)."""

    pixel_bytes: float = PILLOW_BYTES
    """Memory for each pixel at the peak of decoding."""
    most_pixels: int | None = None
    """Megapixels that are decoded within 5 s, where memory allows more."""
    most_file_bytes: int | None = None
    """The same of the file."""


COSTS: Final = {
    "JPEG": Cost(3.1),
    "progressive JPEG": Cost(9.1, most_pixels=90_000_000),
    "WEBP": Cost(16.2, most_file_bytes=70_000_000),
    "AVIF": Cost(13.0, most_file_bytes=70_000_000),
    "HEIC": Cost(13.0, most_file_bytes=60_000_000),
    "JPEG2000": Cost(25.0, most_file_bytes=35_000_000),
    "slow": Cost(most_pixels=4_000_000, most_file_bytes=24_000_000),
}

REDUCED_DECODING: Final = (
    "--reduced-decoding (reduced_decoding=True) of predict, embed, search, explain, evaluate, check and train"
)
"""The option by which large JPEGs are decoded all the same, and the verbs that have it."""

SLOW_DECODERS: Final = frozenset({"ppm", "ppm_plain", "bmp_rle"})
"""Those that Pillow has in Python."""

TURNED_BYTES: Final = 3.0
"""An image that is rotated by its EXIF is copied."""


def demand_room(kind: str, size: tuple[int, int], file_bytes: int, *, scale: int = 1, extra: float = 0) -> None:
    """Raise BadImage for an image whose decoding would take more than 5 s or 1 GB, which a small file can declare.

    Args:
        kind: A key of COSTS; any other is a format without limits of its own.
        size: Width and height that the file claims.
        file_bytes: The file's length.
        scale: 2, 4 or 8 where a JPEG is decoded at that part of its size.
        extra: Further memory for each pixel.
    """
    cost = COSTS.get(kind, Cost())
    pixels = size[0] * size[1]
    claim = f"claims {size[0]}×{size[1]} pixels in {file_bytes:,} bytes"
    for found, most, unit in ((pixels, cost.most_pixels, "pixels"), (file_bytes, cost.most_file_bytes, "bytes")):
        if most is not None and found > most:
            raise BadImage(
                f"{claim}, whose decoding could take more than 5 s; scale it down first, to {most:,} {unit} at most"
            )
    # At whatever scale a progressive JPEG is decoded, its coefficients are all held.
    decoded = pixels if kind == "progressive JPEG" else pixels / scale**2
    pixel_bytes, left = cost.pixel_bytes + extra, MOST_BYTES - 2 * file_bytes  # some decoders copy the file
    if pixel_bytes * decoded > left:
        most = max(1, round(left / pixel_bytes / 1e6))
        way = f"scale it down first, to {most} million pixels at most"
        if kind == "JPEG" and scale == 1 and pixel_bytes * pixels / 64 <= left:
            way += f", or read it at a smaller scale: {REDUCED_DECODING}"
        raise BadImage(f"{claim}, whose decoding would take more than 1 GB; {way}")
