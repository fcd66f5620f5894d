"""Any image file or bytes -> RGB pixels, or BadImage with the path and the reason.

Shape letters: H and W pixels.
"""

import io
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile

from vggkit.errors import BadImage, MissingExtra
from vggkit.images.decoding_limits import (
    MOST_BYTES,
    PILLOW_BYTES,
    SLOW_DECODERS,
    TURNED_BYTES,
    demand_room,
)
from vggkit.images.pillow_warnings import without_warnings

Pixels = NDArray[np.uint8]

FORMATS: Final = ("PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "PSD")
"""Formats that Pillow may open besides JPEG. Excluded are those that start programs (EPS), draw (WMF), hold no
photographs (ICO, FLI) or are decoded in Python, where a small file can take minutes (QOI, MSP)."""

FOUR_CHANNELS: Final = frozenset({"RGBA", "RGBX", "RGBa", "CMYK"})
"""Pillow's modes of four channels; files of more are not read."""

_UNKNOWN_WHITE: Final = "whose range is unknown; save it with 8 or 16 bits, from 0 to 255 or to 65535"

STRIP_PIXELS: Final = 2**20
"""Pixels that are converted at a time."""

SIGNATURE_JPEG: Final = b"\xff\xd8\xff"
HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def decode(
    source: str | Path | bytes, *, name: str | None = None, least_side: int | None = None, channels: int = 3
) -> Pixels:
    """RGB pixels (H, W, 3), uint8, of an image file or of a file's bytes, as a person sees it.

    EXIF orientation is applied, transparency laid over white, 16-bit values scaled to 8 bits,
    and of an animation, or a phone's file of several images, the first is taken.

    Args:
        source: The file, or its bytes.
        name: What errors call it; None: the file's path.
        least_side: A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size whose shorter
            side still has this many pixels: faster, and slightly other pixels. None: at its full size.
        channels: 3; or 4 for (H, W, 4), the values as the file holds them, its fourth channel no transparency.

    Raises BadImage for anything that is not a readable image: missing, empty, truncated, of no
    image format, so large that it would not be decoded within 5 s and 1 GB, or without the
    fourth channel that is requested.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_file(source, name=name)
    if not data:
        raise BadImage(f"{name}: is empty (0 bytes)")
    with _explained(name), without_warnings():
        convert = to_four_channels if channels == 4 else to_rgb
        if data.startswith(SIGNATURE_JPEG):
            return _decode_jpeg(data, least_side, convert)
        if is_heic(data):
            return _decode_heic(data, convert)
        return _decode_other(data, convert)


def read_pil_image(image: Image.Image, *, name: str, keep_fourth: bool = False) -> Pixels:
    """RGB pixels (H, W, 3), uint8, of Pillow's image, whose file may be read only now, as `decode` has a file's.

    With `keep_fourth` an RGBA image keeps all of its channels, (H, W, 4). Raises BadImage with that name.
    """
    with _explained(name), without_warnings():
        image.load()
        return _turn_upright(image, to_four_channels if keep_fourth and image.mode == "RGBA" else to_rgb)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Converts exceptions of decoders to BadImage with the image's name."""
    try:
        yield
    except BadImage as problem:
        raise BadImage(f"{name}: {problem}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name}: is not an image of a known format") from None
    except Image.DecompressionBombError:  # of a format whose header cannot be read by itself
        raise BadImage(f"{name}: claims more pixels than 1 GB can hold; scale it down first") from None
    except Exception as problem:  # decoders raise whatever they meet, struct.error to SyntaxError
        reason = str(problem) or type(problem).__name__
        if reason.startswith("decoder error"):
            reason = f"its data are damaged, or encoded in an unsupported way; {reason}"
        raise BadImage(f"{name}: cannot be decoded ({reason})") from problem


def to_rgb(image: Image.Image) -> Pixels:
    """Pixels of an image of any of Pillow's modes: transparency over white, 16 bits scaled."""
    convert = _choose_conversion(image)
    result = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for part in _cut(image):
        result[top : top + part.height] = convert(part)
        top += part.height
    return result


def to_four_channels(image: Image.Image) -> Pixels:
    """All four channels of an image that has so many, (H, W, 4), as they are stored; raises BadImage for others."""
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode not in FOUR_CHANNELS:
        count = len(image.getbands())
        raise BadImage(f"has {count} channel{'s' * (count > 1)} ({image.mode}), and the network takes 4")
    return np.array(image)


def _cut(image: Image.Image) -> Iterator[Image.Image]:
    """The image in strips from the top, so that intermediate results stay small."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def read_file(path: str | Path, *, name: str | None = None) -> bytes:
    """The bytes of an image's file; raises BadImage with its path, or `name`, where it cannot be read."""
    path, name = Path(path), name or str(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise BadImage(f"{name}: is a folder, not an image")
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would block
            raise BadImage(f"{name}: is not a file")
        if found.st_size > MOST_BYTES:
            raise BadImage(f"{name}: has {found.st_size:,} bytes; images of up to {MOST_BYTES:,} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadImage(f"{name}: no such file") from None
    except OSError as problem:
        raise BadImage(f"{name}: cannot be read ({problem.strerror or problem})") from problem
    except BadImage:
        raise
    except ValueError as problem:  # there is a NUL in it
        raise BadImage(f"{name!r}: is not a valid file name") from problem


def _decode_jpeg(data: bytes, least_side: int | None, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    """A JPEG's pixels, through simplejpeg where it gives the same as Pillow, which decides about broken files."""
    # The class and not Image.open, which would open a file of several images as such.
    with JpegImageFile(io.BytesIO(data)) as image:
        kind = "progressive JPEG" if image.info.get("progressive") else "JPEG"
        full = image.size
        scale = _choose_scale(min(full), least_side)
        turn = _find_turn(image) if "exif" in image.info or "xmp" in image.info else None
        quick = _find_simplejpeg() if image.mode in ("RGB", "L") and convert is to_rgb else None
        width, height = (-(-side // scale) for side in full)
        turned = TURNED_BYTES if turn else 0
        demand_room(kind, full, len(data), scale=scale, extra=turned + (0 if quick else PILLOW_BYTES - 3))
        pixels = None
        if quick is not None:
            try:
                pixels = quick(data, min_height=height, min_width=width) if scale > 1 else quick(data)
            except ValueError:  # Pillow forgives some of what it refuses
                demand_room(kind, full, len(data), scale=scale, extra=turned + PILLOW_BYTES - 3)
        if pixels is None:
            if scale > 1:
                image.draft(None, (full[0] // scale, full[1] // scale))
            pixels = convert(image)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def open_heic(data: bytes) -> Any:
    """pillow_heif's image, its head alone; raises BadImage without the package."""
    try:
        import pillow_heif
    except ImportError as problem:
        raise BadImage(str(MissingExtra.of("pillow-heif", "a HEIC image", "heic"))) from problem
    return pillow_heif.open_heif(data)


def _decode_heic(data: bytes, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    image = open_heic(data)
    demand_room("HEIC", image.size, len(data))
    return convert(image.to_pillow())  # libheif has rotated it already


def _decode_other(data: bytes, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        kind, size = _find_claim(data)
        demand_room(kind, size, len(data))
        raise
    with opened as image:
        slow = any(tile[0] in SLOW_DECODERS for tile in getattr(image, "tile", ()))
        kind = "slow" if slow else str(image.format)
        demand_room(kind, image.size, len(data))
        image.load()
        if _find_turn(image):
            demand_room(kind, image.size, len(data), extra=TURNED_BYTES)
        return _turn_upright(image, convert)


def _find_claim(data: bytes) -> tuple[str, tuple[int, int]]:
    """The format, and the width and height that a file claims, which Pillow's error about large ones leaves out."""
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is True:
            return name, factory(io.BytesIO(data), "").size
    raise UnidentifiedImageError


def _turn_upright(image: Image.Image, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    turn, pixels = _find_turn(image), convert(image)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _choose_scale(short_side: int, least_side: int | None) -> int:
    """The largest of 8, 4, 2 and 1 that leaves so many pixels; the decoder's sides are rounded up."""
    return next((s for s in (8, 4, 2) if least_side is not None and -(-short_side // s) >= least_side), 1)


@cache
def _find_simplejpeg() -> Callable[..., Pixels] | None:
    """Its decoder; machines without it get the same pixels from Pillow."""
    try:
        import simplejpeg  # type: ignore[import-untyped]
    except ImportError:
        return None
    return cast("Callable[..., Pixels]", simplejpeg.decode_jpeg)


def is_heic(data: bytes) -> bool:
    """Whether its brands are HEIC's and not AVIF's, which is the same container."""
    if data[4:8] != b"ftyp":
        return False
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    brands = {box[start : start + 4] for start in range(0, len(box), 4) if start != 4}
    return bool(brands & HEIC_BRANDS) and not brands & {b"avif", b"avis"}


TURNS: Final[dict[int, Callable[[Pixels], Pixels]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
"""The operation that makes pixels upright for each EXIF orientation; 1 is upright."""


def _find_turn(image: Image.Image) -> Callable[[Pixels], Pixels] | None:
    try:
        return TURNS.get(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # metadata that cannot be read leaves an image as it is
        return None


def _choose_conversion(image: Image.Image) -> Callable[[Image.Image], Any]:
    """The function that converts a strip of this image to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        return _choose_scaling(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return _lay_over_white
    return lambda part: part.convert("RGB")


def _lay_over_white(part: Image.Image) -> Image.Image:
    part = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")


def _choose_scaling(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    """The range from 0 to the largest value of the file's bit depth; raises BadImage where that is unknown."""
    most = _largest_value(image)
    clear = image.info.get("transparency")
    if image.mode == "F":
        raise BadImage(f"holds floating-point values, {_UNKNOWN_WHITE}")

    def scale(part: Image.Image) -> Pixels:
        values = np.asarray(part)
        if values.min() < 0 or values.max() > most:
            raise BadImage(f"holds values from {values.min()} to {values.max()}, {_UNKNOWN_WHITE}")
        grey = values.astype(np.float32) * np.float32(255 / most) + np.float32(0.5)
        if isinstance(clear, int):
            grey[values == clear] = 255
        return grey.astype(np.uint8)[..., None]

    return scale


def _largest_value(image: Image.Image) -> int:
    """The largest value of integers: a TIFF declares its number of bits."""
    tags = getattr(image, "tag_v2", {})
    bits = (tags.get(258) or (16,))[0]
    signed = (tags.get(339) or (1,))[0] == 2
    return int(2 ** (bits - signed) - 1) if 8 < bits <= 16 else 65535
