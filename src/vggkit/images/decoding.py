"""Any picture file or bytes -> RGB pixels, or BadImage with the path and the reason.

Shape letters: H and W pixels.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vggkit.errors import BadImage

Pixels = NDArray[np.uint8]

MOST_PIXELS: Final = 150_000_000
"""Largest picture that is decoded: 450 MB as RGB. A small file can claim far more."""


def decode(source: str | Path | bytes) -> Pixels:
    """RGB pixels (H, W, 3), uint8, of a picture file or of a file's bytes, as a person sees it.

    EXIF orientation is applied, transparency laid over white, 16-bit values scaled to 8 bits,
    and of an animation the first frame is taken.

    Raises BadImage for whatever is not a readable picture: missing, empty, truncated, of no
    picture format, or larger than MOST_PIXELS.
    """
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except IsADirectoryError:
        raise BadImage(f"{name}: is a folder, not a picture") from None
    except FileNotFoundError:
        raise BadImage(f"{name}: no such file") from None
    except OSError as problem:
        raise BadImage(f"{name}: cannot be read ({problem.strerror or problem})") from problem
    if not data:
        raise BadImage(f"{name}: is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadImage(f"{name}: claims {width}×{height} pixels, more than {MOST_PIXELS:,}")
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"{name}: is not a picture of a known format") from None
    except Image.DecompressionBombError as problem:
        raise BadImage(f"{name}: {problem}") from None
    except Exception as problem:  # decoders raise whatever they meet, struct.error to SyntaxError
        raise BadImage(f"{name}: cannot be decoded ({problem or type(problem).__name__})") from problem


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as RGB: transparency over white, 16 bits scaled, never clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_scale_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(values: NDArray[np.generic]) -> Pixels:
    """Integers are taken for 16 bits, floats for [0, 1] where none is above 1 and else for [0, 255]."""
    if values.dtype.kind in "iu":
        shorts: Pixels = (np.clip(values, 0, 65535) / 257 + 0.5).astype(np.uint8)
        return shorts
    full = np.nan_to_num(values.astype(np.float32))
    scaled: Pixels = (np.clip(full * (255 if full.max() <= 1 else 1), 0, 255) + 0.5).astype(np.uint8)
    return scaled
