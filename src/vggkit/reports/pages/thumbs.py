"""Images inside a page, and how their paths are shown."""

import base64
import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from vggkit.errors import VggkitError
from vggkit.images.dataset import ImageSample
from vggkit.images.thumbnails import MEDIA_TYPE, SIDE_PIXELS, encode_thumbnail, is_tiny


class Thumb(NamedTuple):
    """A thumbnail of an image."""

    source: str | None
    """A `data:` address; None where the image is no longer readable."""
    tiny: bool
    """Whether it is enlarged without smoothing."""


def make_thumb(image: ImageSample) -> Thumb:
    """The thumbnail of an image, which is decoded again."""
    try:
        pixels = image.decode(least_side=SIDE_PIXELS)
    except VggkitError:  # the file may have changed since
        return Thumb(None, False)
    encoded = base64.b64encode(encode_thumbnail(pixels)).decode("ascii")
    return Thumb(f"data:{MEDIA_TYPE};base64,{encoded}", is_tiny(pixels))


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
