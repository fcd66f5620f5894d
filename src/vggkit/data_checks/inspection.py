"""The inspection of a dataset: each image is read, decoded and described once.

Shape letters: D values of a description.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadImage
from vggkit.hardware import count_threads
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.decoding import Pixels, decode
from vggkit.images.image_header import Head, read_head
from vggkit.images.near_duplicates import compute_descriptor

LEAST_SIDE: Final = 128
"""Pixels of the short side that suffice to describe an image; its whole file is decoded all the same."""

MOST_QUICK: Final = 2**26
"""Pixels above which a JPEG may be too large for decoding at its full size; this is found out by doing so."""

LEAST_SHOWN: Final = 64
"""Pixels of the short side from which on an image may show text; smaller ones have few colours in any case."""

ENDINGS: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "HEIC": (".heic", ".heif"),
}
"""File name endings by format, the usual one first."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """The properties of an image."""

    split: str
    """`train`, `val`, `test` or `all`."""
    image: ImageSample
    """The image."""
    head: Head | None = None
    """Its format, size and mode; None where it cannot be read."""
    digest: bytes = b""
    """Digest of the file's bytes, or of the pixels of an image in memory."""
    description: NDArray[Any] | None = field(default=None, repr=False)
    """(D,) descriptor for the search of near duplicates; None where the image cannot be read."""
    plain_share: float = 0.0
    """Share of its pixels that have its most frequent colour exactly, in [0, 1]."""
    palette_share: float = 0.0
    """The same of its 32 most frequent colours."""
    problem: str | None = None
    """The reason why it cannot be read."""

    @property
    def looks_drawn(self) -> bool:
        """Whether it is nearly all of one colour and has few others, as text or a drawing on a plain ground.

        Photos of something on white have hundreds of colours beside the white.
        """
        return self.plain_share >= 0.6 and self.palette_share >= 0.97

    @property
    def label(self) -> str:
        """Its class; several labels joined."""
        return str(self.image.label)

    @property
    def wrong_ending(self) -> bool:
        """Whether the format of its file differs from the file name ending."""
        ending = PurePath(self.image.path).suffix.lower()
        named = next((kind for kind, endings in ENDINGS.items() if ending in endings), None)
        actual = self.head.format if self.head is not None else None
        return named is not None and actual in ENDINGS and named != actual


def inspect_images(
    images: ImageDataset,
    *,
    channels: int = 3,
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[ImageRecord]:
    """The ImageRecord of each image, split by split in order; several are decoded at once.

    Args:
        images: The dataset.
        channels: 3, or 4 for a network that takes so many: images without a fourth are then unreadable.
        reduced_decoding: Whether JPEGs that can only be decoded at a smaller scale are readable.
        on_progress: Called with the number of images done and of all.
    """
    every = [(name, image) for name, split in images.splits.items() for image in split]
    threads = count_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        waiting, ahead = iter(every), deque[Future[ImageRecord]]()
        try:
            for done in range(1, len(every) + 1):
                ahead.extend(
                    pool.submit(inspect_image, *item, channels=channels, reduced_decoding=reduced_decoding)
                    for item in islice(waiting, 16 * threads - len(ahead))
                )
                yield ahead.popleft().result()
                if on_progress:
                    on_progress(done, len(every))
        finally:
            for future in ahead:
                future.cancel()


def inspect_image(
    split: str, image: ImageSample, *, channels: int = 3, reduced_decoding: bool = False
) -> ImageRecord:
    """The ImageRecord of one image; that of an unreadable image has a `problem`."""
    try:
        if image.pixels is not None:
            pixels = image.decode(channels=channels)
            height, width, held = image.pixels.shape
            head = Head("in memory", width, height, "RGB" if held == 3 else "RGBA", 1, animated=False)
            digest = _digest(repr(image.pixels.shape).encode() + np.ascontiguousarray(image.pixels).tobytes())
            return ImageRecord(split, image, head, digest, *_describe(pixels))
        data = image.read()
        pixels = decode(data, name=image.path, least_side=LEAST_SIDE, channels=channels)
        head = read_head(data, name=image.path)
        if not reduced_decoding and head.width * head.height > MOST_QUICK:
            decode(data, name=image.path, channels=channels)
        return ImageRecord(split, image, head, _digest(data), *_describe(pixels))
    except BadImage as problem:
        return ImageRecord(split, image, problem=str(problem))


def group_exact(records: Sequence[ImageRecord]) -> dict[bytes, list[int]]:
    """Numbers of the readable records by their digest."""
    exact: dict[bytes, list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        if record.problem is None:
            exact[record.digest].append(number)
    return exact


def _describe(pixels: Pixels) -> tuple[Pixels, float, float]:
    """The descriptor, and the shares of the most frequent colour and of the 32 most frequent ones."""
    if min(pixels.shape[:2]) < LEAST_SHOWN:
        return compute_descriptor(pixels[..., :3]), 0.0, 0.0
    colours = pixels[..., :3].reshape(-1, 3)
    colours = colours[:: max(1, len(colours) // 16_384)].astype(np.uint32)
    # Compression changes the last bits of a plain ground.
    packed = (colours >> 2) @ np.array([1 << 12, 1 << 6, 1], np.uint32)
    _, counts = np.unique(packed, return_counts=True)
    shares = np.sort(counts)[::-1] / counts.sum()
    return compute_descriptor(pixels[..., :3]), float(shares[0]), float(shares[:32].sum())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
