"""The header of an image file: format, size and mode. Pillow reads only the first bytes, and decodes nothing."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile

from vggkit.errors import BadImage
from vggkit.images.decoding import FORMATS, SIGNATURE_JPEG, is_heic, open_heic
from vggkit.images.pillow_warnings import without_warnings


@dataclass(frozen=True, slots=True)
class Head:
    """The header of an image file."""

    format: str
    """As Pillow names it: JPEG, PNG, WEBP …"""
    width: int
    """Pixels, as a person sees the image: EXIF's orientation is applied."""
    height: int
    """Likewise."""
    mode: str
    """As Pillow names it: RGB, L, CMYK, I;16 …"""
    orientation: int
    """EXIF's, 1 where there is none."""
    animated: bool
    """Whether there is more than one frame."""


def read_head(source: str | Path | bytes, *, name: str | None = None) -> Head:
    """The header of an image file, or of a file's bytes.

    Args:
        source: The file, or its bytes.
        name: The name in errors; None: the file's path.

    Raises BadImage where Pillow does not know the format; the data after the header may still be broken.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    try:
        with without_warnings(), io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            start = file.read(256)
            file.seek(0)
            if is_heic(start):
                image = open_heic(file.read())
                width, height = image.size
                return Head("HEIC", width, height, image.mode, 1, animated=False)
            if start.startswith(SIGNATURE_JPEG):
                with JpegImageFile(file) as jpeg:
                    return _describe(jpeg)
            with Image.open(file, formats=FORMATS) as other:
                return _describe(other)
    except BadImage as problem:
        raise BadImage(f"{name}: {problem}") from None
    except Exception as problem:  # plugins raise whatever they meet
        raise BadImage(f"{name}: is not an image of a known format") from problem


def _describe(image: Image.Image) -> Head:
    try:
        orientation = int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # metadata that cannot be read leaves an image as it is
        orientation = 1
    swapped = orientation in (5, 6, 7, 8) and image.format != "TIFF"  # of a TIFF Pillow reports the upright size
    width, height = image.size[::-1] if swapped else image.size
    return Head(
        format=str(image.format),
        width=width,
        height=height,
        mode=image.mode,
        orientation=orientation if orientation in range(1, 9) else 1,
        animated=bool(getattr(image, "is_animated", False)),
    )
