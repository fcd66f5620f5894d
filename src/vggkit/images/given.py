"""Images as callers pass them: paths stay paths, and everything else becomes an ImageSample."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Union, cast

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadImage, BadInput
from vggkit.images.dataset import ImageSample
from vggkit.images.pixels import describe_type, holds_pixels, list_batch, read_pixels
from vggkit.images.storages import HeldBytes, Unreadable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

ImageSource = Union["ImageSample", str, os.PathLike[str], bytes, IO[bytes], "Image", NDArray[Any], "Tensor"]
"""One image: a path, a file's bytes, an open file, a PIL image of any mode, pixels as an array or a tensor (see
`pixels.read_pixels`), or an ImageSample. Where several are taken a path may be a folder, a table, an archive …"""
ImageSources = ImageSource | Iterable[ImageSource]
"""One image, or several: a list or another iterable, an array (N, H, W, 3) or a tensor (N, 3, H, W)."""

_RULE = (
    "an image is a path, the bytes of a file, an open file, a PIL image, an array uint8 (H, W, 3), a tensor uint8 "
    "(3, H, W) or an ImageSample"
)


def list_sources(given: ImageSources) -> Iterable[ImageSource]:
    """One by one, as they were given; a list where one alone was. Raises BadInput for what has no images."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "UO" and given.ndim == 1:
        return list_sources(given.tolist())  # of paths, or of images of several sizes
    if holds_pixels(given):
        return list_batch(given) if getattr(given, "ndim", 0) == 4 else [given]
    if isinstance(given, str | os.PathLike | bytes | bytearray | memoryview | ImageSample) or _is_file(given):
        return [cast("ImageSource", given)]
    if hasattr(given, "collate_fn") and hasattr(given, "dataset"):
        raise BadInput("a DataLoader makes batches of tensors; give the images themselves, such as its .dataset")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        parts = "; name a part of it: images.split('val')" if hasattr(given, "splits") else ""
        raise BadInput(f"{_RULE}, or several of them; got {describe_type(given)}{parts}")
    if isinstance(given, Sized) and not len(given):
        raise lack_images(given)
    return given


def lack_images(given: object) -> BadInput:
    """The error for an empty collection of images."""
    return BadInput(f"there are no images: an empty {type(given).__name__} was given")


def count_sources(given: Iterable[ImageSource]) -> int | None:
    """The number of images; None where some are paths, which may hold several, or can be read only once."""
    if not isinstance(given, Sequence) or any(isinstance(each, str | os.PathLike) for each in given):
        return None
    return len(given)


def take_sources(given: ImageSources) -> Iterator[str | Path | ImageSample]:
    """Paths, which may be places of several images, unchanged, and everything else as ImageSamples, in order.

    An image without a name gets its number as its name: `image 0`. Raises BadInput for anything but images.
    """
    for number, source in enumerate(list_sources(given)):
        if isinstance(source, str | os.PathLike):
            yield Path(source) if not isinstance(source, str | Path) else source
        else:
            yield take_one(source, name=f"image {number}")


def take_one(source: ImageSource, *, name: str) -> ImageSample:
    """The ImageSample of one image; raises BadInput for anything else.

    Args:
        source: The image.
        name: Its name if it has none itself.
    """
    match source:
        case ImageSample():
            return source
        case str() | os.PathLike():
            return ImageSample(os.fspath(source))
        case bytes() | bytearray() | memoryview():
            return ImageSample(name, storage=HeldBytes(bytes(source), is_named=False))
    if holds_pixels(source):
        name = os.fsdecode(getattr(source, "filename", "") or name)
        try:
            return ImageSample(name, pixels=read_pixels(source, name=name, keep_fourth=True))
        except BadImage as problem:  # the file that a PIL image is read from only now
            return ImageSample(name, storage=Unreadable(str(problem).removeprefix(f"{name}: ")))
    if _is_file(source):
        return _read_file(source, name)
    raise BadInput(f"{name}: {_RULE}; got {describe_type(source)}")


def _is_file(given: object) -> bool:
    return callable(getattr(given, "read", None))


def _read_file(file: Any, name: str) -> ImageSample:
    """The image in the rest of an open file."""
    own = getattr(file, "name", None)
    name = own if isinstance(own, str) and own else name
    try:
        data = file.read()
    except (OSError, ValueError) as problem:  # closed, or text
        raise BadInput(f"{name}: cannot be read ({problem}); give its path, or open it with mode 'rb'") from problem
    if not isinstance(data, bytes):
        raise BadInput(f"{name}: is open as text; open it with mode 'rb'")
    return ImageSample(name, storage=HeldBytes(data, is_named=False))
