"""Pages in one file: a template of this folder is filled with values and thumbnails; the HTML loads nothing.

Every value is text to the template, never markup. `layout.html` forbids the browser scripts and addresses, so that
a page could not reach out even if something slipped through.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vggkit.errors import VggkitError
from vggkit.escaping import is_unseen
from vggkit.explanations.explanation import Explanation
from vggkit.explanations.overlay import draw_heat, show_pixels
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing

SIDE_PIXELS: Final = 240
"""Long side at most: sharp at 160 on a screen of one and a half dots a pixel, in 6 kB for a photograph."""

TINY_PIXELS: Final = 64
"""Images whose long side is at most this are not resized, and are shown enlarged without smoothing."""

MEDIA_TYPE: Final = "image/webp"
"""The format that `encode_thumbnail` writes."""

QUALITY: Final = 65


class Thumb(NamedTuple):
    """A thumbnail of an image."""

    source: str | None
    """A `data:` address; None where the image is no longer readable."""
    tiny: bool
    """Whether it is enlarged without smoothing."""


def make_thumb(image: ImageSample, *, preprocessing: Preprocessing | None = None) -> Thumb:
    """The thumbnail of an image, decoded again; with `preprocessing`, its centre as the network sees it."""
    try:
        if preprocessing is None:
            pixels = image.decode(least_side=SIDE_PIXELS)
        else:
            pixels = np.ascontiguousarray(preprocessing.fit(image.decode(least_side=preprocessing.resize_pixels)))
    except VggkitError:  # the file may have changed since
        return Thumb(None, False)
    encoded = base64.b64encode(encode_thumbnail(pixels)).decode("ascii")
    return Thumb(f"data:{MEDIA_TYPE};base64,{encoded}", is_tiny(pixels))


def make_heat(explanation: Explanation) -> str | None:
    """A `data:` address of an image under the map of its explanation; None where there is no map or no image."""
    try:
        pixels = explanation.image.decode(least_side=SIDE_PIXELS)
    except VggkitError:
        return None
    if explanation.map is None:
        return None
    drawn = draw_heat(show_pixels(pixels, SIDE_PIXELS), explanation)
    return f"data:{MEDIA_TYPE};base64,{base64.b64encode(encode_thumbnail(drawn)).decode('ascii')}"


def split_name(name: str) -> list[str]:
    """A name, cut where a line may break: after folders and words, and before the ending."""
    return re.split(r"(?<=[/_-])(?=.)|(?<=.)(?=\.\w+$)", name)


class Place(NamedTuple):
    """The name of a dataset and the folder before it."""

    folder: str
    name: str


def split_place(data: str) -> Place:
    """`/photos/` and `bees` of `/photos/bees`."""
    name = data.rstrip("/").rpartition("/")[2] or data
    return Place(data[: data.rfind(name)], data[data.rfind(name) :])


def find_folder(data: str, paths: Iterable[str]) -> str:
    """The beginning that all paths share: the place of the dataset, or their common folder.

    It ends with its separator, as in `photos/`, `photos.tar#`; it is empty where there is none.
    """
    names = list(paths)
    place = data.rstrip("/\\")
    for separator in ("/", "\\", "#"):
        if place and any(name.startswith(place + separator) for name in names):
            return place + separator
    shared = os.path.commonprefix(names)  # noqa: RUF071 (cut to whole folders below; commonpath refuses mixtures)
    folder = shared[: max(shared.rfind("/"), shared.rfind(os.sep)) + 1]
    return folder if folder.strip("/\\") else ""


def encode_thumbnail(pixels: Pixels, *, side_pixels: int = SIDE_PIXELS) -> bytes:
    """A WebP file of RGB pixels (H, W, 3), the long side reduced to `side_pixels`; never enlarged."""
    image = Image.fromarray(pixels)
    tiny = is_tiny(pixels)
    image.thumbnail((side_pixels, side_pixels), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY, lossless=tiny)
    return file.getvalue()


def is_tiny(pixels: Pixels) -> bool:
    """Whether an image is so small that its pixels are shown as squares."""
    return bool(max(pixels.shape[:2]) <= TINY_PIXELS)


def render_page(template: str, values: Mapping[str, object]) -> str:
    """The page that a template makes of the values."""
    return _open_templates().get_template(template).render(values)


def thousands(count: int) -> str:
    """`1,281,167`."""
    return f"{count:,}"


def percent(share: float) -> str:
    """`98.4 %`; a share below 1 is never rounded to 100 %, nor one above 0 to 0 %."""
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "100 %" if share == 1 else f"{share:.1%}".replace("%", " %")


def say_count(count: int, one: str, many: str | None = None) -> str:
    """`1 class`, `1,000 classes`; the plural is made with an s where it is not given."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _show_unseen(value: object) -> object:
    r"""Text with each unseen character spelled out; what the templates made of such text is left alone.

    `cat\u202egpj.exe` would be read as `catexe.jpg`, and no page can hold bytes of a name that are no text.
    """
    if type(value) is not str or value.isprintable():
        return value
    return "".join(f"\\u{ord(each):04x}" if each not in "\t\n" and is_unseen(each) else each for each in value)


@cache
def _open_templates() -> Environment:
    templates = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        finalize=_show_unseen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"thousands": thousands, "percent": percent, "say_count": say_count}
    return templates
