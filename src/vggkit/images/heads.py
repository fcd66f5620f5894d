"""What a picture's file says before it is decoded: format, size, mode. Pillow reads the first bytes alone."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from vggkit.errors import BadImage

ORIENTATION_TAG: Final = 0x0112
"""EXIF's orientation: 1 to 8; from 5 on the sides are swapped."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a picture's file."""

    format: str
    """As Pillow names it: JPEG, PNG, WEBP …"""
    width: int
    """Pixels, as a person sees the picture: EXIF's orientation is applied."""
    height: int
    """Likewise."""
    mode: str
    """As Pillow names it: RGB, L, CMYK, I;16 …"""
    orientation: int
    """EXIF's, 1 where there is none."""
    animated: bool
    """Whether there is more than one frame."""


def read_head(source: str | Path | bytes, *, name: str | None = None) -> Head:
    """The head of a picture's file, or of a file's bytes.

    Args:
        source: The file, or its bytes.
        name: What errors call it; None: the file's path.

    Raises BadImage where Pillow does not know the format; what lies behind the head may still be broken.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            exif = image.getexif() if image.format in ("JPEG", "MPO", "TIFF", "PNG", "WEBP", "AVIF") else {}
            orientation = exif.get(ORIENTATION_TAG, 1)
            swapped = orientation in (5, 6, 7, 8)
            width, height = image.size[::-1] if swapped else image.size
            return Head(
                format="JPEG" if image.format == "MPO" else str(image.format),
                width=width,
                height=height,
                mode=image.mode,
                orientation=orientation if orientation in range(1, 9) else 1,
                animated=image.format != "MPO" and bool(getattr(image, "is_animated", False)),
            )
    except Exception as problem:  # plugins raise whatever they meet
        raise BadImage(f"{name}: is not a picture of a known format") from problem
