"""RGB pixels in memory become an image file.

Shape letters: H and W pixels.
"""

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from vggkit.arguments import demand_path
from vggkit.errors import BadOutput
from vggkit.files import demand_writable, whole_file
from vggkit.images.decoding import Pixels

SAVING: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 92}),
}
"""Pillow's name of the format of each ending, and how it is saved."""


def demand_image_path(path: str | Path) -> Path:
    """The path of an image that is to be written; raises BadOutput where it cannot be, before work is spent."""
    path = demand_path(path)
    if path.suffix.lower() not in SAVING:
        raise BadOutput(f"{path}: the name of an image must end in {', '.join(SAVING)}")
    demand_writable(path)
    return path


def write_image(path: str | Path, pixels: Pixels) -> None:
    """Write RGB pixels (H, W, 3), uint8, in the format of the path's ending; whole or not at all.

    Raises BadOutput for another ending, and where the place cannot be written to.
    """
    path = demand_path(path)
    if path.suffix.lower() not in SAVING:
        raise BadOutput(f"{path}: the name of an image must end in {', '.join(SAVING)}")
    kind, options = SAVING[path.suffix.lower()]
    with whole_file(path) as beside:
        Image.fromarray(np.ascontiguousarray(pixels)).save(beside, format=kind, **options)


def pack_png(pixels: Pixels) -> bytes:
    """Pixels (H, W, 3) or (H, W, 4), uint8, as the bytes of a PNG file."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="PNG")
    return out.getvalue()
