"""Any image file or bytes -> RGB pixels, or BadImage with the path and the reason.

Shape letters: H and W pixels.
"""

import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile

from vggkit.errors import BadImage, MissingExtra

Pixels = NDArray[np.uint8]

FORMATS: Final = ("PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "PSD")
"""What Pillow may open besides JPEG. Left out is what starts programs (EPS), draws (WMF), holds no photographs
(ICO, FLI) or is decoded in Python, where a small file can take minutes (QOI, MSP)."""

MOST_BYTES: Final = 900_000_000
"""Memory for an image's file, its decoder and its pixels; with Python, NumPy and Pillow it makes 1 GB."""

PILLOW_BYTES: Final = 7.5
"""Memory for each pixel at the peak of decoding: four bytes in Pillow, three of the result, and a strip."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What bounds a format, measured on noise, which takes longest (docs/decisions/decoding.md)."""

    pixel_bytes: float = PILLOW_BYTES
    """Memory for each pixel at the peak of decoding."""
    most_pixels: int | None = None
    """What is decoded within 5 s, where memory allows more."""
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
FOUR_CHANNELS: Final = frozenset({"RGBA", "RGBX", "RGBa", "CMYK"})
"""Pillow's modes of four channels; files of more are not read."""

SLOW_DECODERS: Final = frozenset({"ppm", "ppm_plain", "bmp_rle"})
"""Those that Pillow has in Python."""

TURNED_BYTES: Final = 3.0
"""An image that EXIF turns is copied."""

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

    Raises BadImage for whatever is not a readable image: missing, empty, truncated, of no
    image format, so large that it would not be decoded within 5 s and 1 GB, or without the
    fourth channel that is asked for.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_file(source, name=name)
    if not data:
        raise BadImage(f"{name}: is empty (0 bytes)")
    with _explained(name), without_warnings():
        if channels == 4:
            return _decode_other(data, to_four_channels)
        if data.startswith(SIGNATURE_JPEG):
            return _decode_jpeg(data, least_side)
        if is_heic(data):
            return _decode_heic(data)
        return _decode_other(data)


def see(image: Image.Image, *, name: str, keep_fourth: bool = False) -> Pixels:
    """RGB pixels (H, W, 3), uint8, of Pillow's image, whose file may be read only now, as `decode` has a file's.

    With `keep_fourth` an RGBA image keeps all of its channels, (H, W, 4). Raises BadImage, which calls it so.
    """
    with _explained(name), without_warnings():
        image.load()
        return _turn_upright(image, to_four_channels if keep_fourth and image.mode == "RGBA" else to_rgb)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What decoders raise, as BadImage with the image's name."""
    try:
        yield
    except BadImage as problem:
        raise BadImage(f"{name}: {problem}") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name}: is not an image of a known format") from None
    except Image.DecompressionBombError:
        raise BadImage(f"{name}: claims far more pixels than 1 GB could hold") from None
    except Exception as problem:  # decoders raise whatever they meet, struct.error to SyntaxError
        reason = str(problem) or type(problem).__name__
        if reason.startswith("decoder error"):
            reason = f"its data are broken, or packed in a way not known here; {reason}"
        raise BadImage(f"{name}: cannot be decoded ({reason})") from problem


def to_rgb(image: Image.Image) -> Pixels:
    """Pixels of an image of any of Pillow's modes: transparency over white, 16 bits scaled, never clipped."""
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
    """The image in strips from the top: what is made of them at a time stays small."""
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
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
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
        raise BadImage(f"{name!r}: is no name of a file") from problem


def _decode_jpeg(data: bytes, least_side: int | None) -> Pixels:
    """A JPEG's pixels, through simplejpeg where it gives Pillow's; Pillow has the last word on what is broken."""
    # The class and not Image.open: that would take a file of several images for more than its first.
    with JpegImageFile(io.BytesIO(data)) as image:
        kind = "progressive JPEG" if image.info.get("progressive") else "JPEG"
        full = image.size
        scale = _choose_scale(min(full), least_side)
        turn = _find_turn(image) if "exif" in image.info or "xmp" in image.info else None
        quick = _find_simplejpeg() if image.mode in ("RGB", "L") else None
        width, height = (-(-side // scale) for side in full)
        turned = TURNED_BYTES if turn else 0
        _demand_room(kind, full, len(data), scale=scale, extra=turned + (0 if quick else PILLOW_BYTES - 3))
        pixels = None
        if quick is not None:
            try:
                pixels = quick(data, min_height=height, min_width=width) if scale > 1 else quick(data)
            except ValueError:  # Pillow forgives some of what it refuses
                _demand_room(kind, full, len(data), scale=scale, extra=turned + PILLOW_BYTES - 3)
        if pixels is None:
            if scale > 1:
                image.draft(None, (full[0] // scale, full[1] // scale))
            pixels = to_rgb(image)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def open_heic(data: bytes) -> Any:
    """pillow_heif's image, its head alone; raises BadImage without the package."""
    try:
        import pillow_heif
    except ImportError as problem:
        raise BadImage(str(MissingExtra.of("pillow-heif", "a HEIC image", "heic"))) from problem
    return pillow_heif.open_heif(data)


def _decode_heic(data: bytes) -> Pixels:
    image = open_heic(data)
    _demand_room("HEIC", image.size, len(data))
    return to_rgb(image.to_pillow())  # libheif has turned it already


def _decode_other(data: bytes, convert: Callable[[Image.Image], Pixels] = to_rgb) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        slow = any(tile[0] in SLOW_DECODERS for tile in getattr(image, "tile", ()))
        kind = "slow" if slow else str(image.format)
        _demand_room(kind, image.size, len(data))
        image.load()
        if _find_turn(image):
            _demand_room(kind, image.size, len(data), extra=TURNED_BYTES)
        return _turn_upright(image, convert)


def _turn_upright(image: Image.Image, convert: Callable[[Image.Image], Pixels]) -> Pixels:
    turn, pixels = _find_turn(image), convert(image)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _demand_room(kind: str, size: tuple[int, int], file_bytes: int, *, scale: int = 1, extra: float = 0) -> None:
    """Refuses an image that would take more than 5 s or 1 GB; a small file can claim far more."""
    cost = COSTS.get(kind, Cost())
    pixels = size[0] * size[1]
    claim = f"claims {size[0]}×{size[1]} pixels in {file_bytes:,} bytes"
    for found, most in ((pixels, cost.most_pixels), (file_bytes, cost.most_file_bytes)):
        if most is not None and found > most:
            raise BadImage(f"{claim}, whose decoding could take more than 5 s")
    # At whatever scale a progressive JPEG is decoded, its coefficients are all held.
    decoded = pixels if kind == "progressive JPEG" else pixels / scale**2
    if 2 * file_bytes + (cost.pixel_bytes + extra) * decoded > MOST_BYTES:  # some decoders copy the file
        smaller = 2 * file_bytes + (cost.pixel_bytes + extra) * pixels / 64 <= MOST_BYTES
        way = ""
        if kind == "JPEG" and scale == 1 and smaller:
            way = "; --reduced-decoding (reduced_decoding=True) reads a JPEG at a smaller scale"
        raise BadImage(f"{claim}, whose decoding would take more than 1 GB{way}")


def _choose_scale(short_side: int, least_side: int | None) -> int:
    """The largest of 8, 4, 2 and 1 that leaves so many pixels; the decoder's sides are rounded up."""
    return next((s for s in (8, 4, 2) if least_side is not None and -(-short_side // s) >= least_side), 1)


@cache
def _find_simplejpeg() -> Callable[..., Pixels] | None:
    """Its decoder; some machines are without it, and get the same pixels from Pillow."""
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
"""What makes pixels upright that were stored with each EXIF orientation; 1 is upright."""


def _find_turn(image: Image.Image) -> Callable[[Pixels], Pixels] | None:
    try:
        return TURNS.get(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # metadata that cannot be read leaves an image as it is
        return None


def _choose_conversion(image: Image.Image) -> Callable[[Image.Image], Any]:
    """What makes RGB of a part of this image."""
    if image.mode.startswith("I") or image.mode == "F":
        return _choose_scaling(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _lay_over_white
    return lambda part: part.convert("RGB")


def _lay_over_white(part: Image.Image) -> Image.Image:
    if part.mode == "La":
        part = part.convert("LA")
    part = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")


def _choose_scaling(image: Image.Image) -> Callable[[Image.Image], Pixels]:
    """From lowest to highest: 0 to what the file's bits can say, or wider where values lie outside of that.

    Floats are taken for [0, 1] where none is above 1, and else for [0, 255].
    """
    bounds = [_find_bounds(np.asarray(part)) for part in _cut(image)]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    usual = (1 if high <= 1 else 255) if image.mode == "F" else _largest_value(image)
    low, high = min(low, 0), max(high, usual)
    clear = image.info.get("transparency")

    def scale(part: Image.Image) -> Pixels:
        values = np.asarray(part)
        grey = values.astype(np.float32)
        if values.dtype.kind == "f":
            np.nan_to_num(grey, copy=False, nan=low, posinf=high, neginf=low)
        grey -= low
        grey *= 255 / (high - low)
        grey += 0.5
        if isinstance(clear, int):
            grey[values == clear] = 255
        np.minimum(grey, 255, out=grey)  # what 32 bits round up
        return grey.astype(np.uint8)[..., None]

    return scale


def _find_bounds(values: NDArray[Any]) -> tuple[float, float]:
    """Lowest and highest of the finite values; 0 where there are none."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _largest_value(image: Image.Image) -> int:
    """What whole numbers reach at most: a TIFF says with how many bits it was written."""
    tags = getattr(image, "tag_v2", {})
    bits = (tags.get(258) or (16,))[0]
    signed = (tags.get(339) or (1,))[0] == 2
    return int(2 ** (bits - signed) - 1) if 8 < bits <= 16 else 65535


class _WhileDecoding(threading.local):
    """In a warnings filter the pattern of modules: those of Pillow, and only in threads that decode."""

    active = False
    pattern = r"PIL\."
    """What a compiled one has: scikit-learn reads it, to hand filters to its own processes."""

    def match(self, module: str) -> bool:
        return self.active and module.startswith("PIL.")


_HERE: Final = _WhileDecoding()
_FILTER: Final[Any] = ("ignore", None, Warning, _HERE, 0)
_FILTERING: Final = threading.Lock()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Pillow's warnings neither show nor raise here; other threads, and Pillow elsewhere, keep theirs.

    `warnings.catch_warnings` swaps filters for all threads, and two that overlap leave wrong ones behind.
    """
    with _FILTERING:
        filters = cast("list[Any]", warnings.filters)
        if not filters or filters[0] is not _FILTER:  # whoever sets filters anew must not lose it
            if _FILTER in filters:
                filters.remove(_FILTER)
            filters.insert(0, _FILTER)
    _HERE.active = True
    try:
        yield
    finally:
        _HERE.active = False
