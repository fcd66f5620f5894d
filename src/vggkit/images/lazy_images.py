"""Images that are described and not held: a sequence of any length in constant memory.

Shape letters: N images.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vggkit.images.dataset import ImageSample

Advance = Callable[[int, int], None]
"""Called with two places of an order: images before the first have been read, those before the second are read
now."""


class LazyImages(Sequence["ImageSample"]):
    """Labelled images whose ImageSamples are made when they are requested, such as those of shards.

    What would take a pass over millions of objects is computed from arrays instead.
    """

    @abstractmethod
    def stream(self) -> Iterator["ImageSample"]:
        """The images in the order in which they are stored; files that are read slowly in any order are brought
        beforehand, while their images are read. Plain iteration brings nothing.
        """

    @abstractmethod
    def number_classes(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """(N,), the place of each image's class in `labels`; raises KeyError for a class that is not among them."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of labels and contents, 16 hexadecimal digits; storage and order do not matter."""

    @abstractmethod
    def digest_order(self) -> str:
        """A digest of labels, contents and order, 32 hexadecimal digits."""

    @abstractmethod
    def typical_side(self) -> int:
        """The median of the images' short sides, in pixels."""

    @abstractmethod
    def draw_parts(self, *, seed: int, epoch: int, counts: Sequence[int]) -> list[NDArray[np.int64]]:
        """The places of the images in the order of a training's epoch, for each of its readers a part of its own.

        Together every place is in them once. Neighbours in a part are stored near each other, and readers read
        different files.

        Args:
            seed: With the epoch and the counts it determines the order.
            epoch: Counted from 1.
            counts: Number of images for each reader, such as the processes of a training; the sum is N.
        """

    @abstractmethod
    def follow(self, order: NDArray[np.int64]) -> AbstractContextManager[Advance]:
        """Bring files before they are read, and drop them afterwards, while the images of these places are read.

        Without it images can be read, too, each by itself.
        """

    @abstractmethod
    def select(self, places: NDArray[np.int64]) -> Self:
        """The images at these places, which are sorted."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """These images and those of other splits of the same dataset."""

    @abstractmethod
    def list_contents(self) -> NDArray[np.uint64]:
        """(N,), a number for each image that is equal for equal files."""

    @abstractmethod
    def spelled_as(self, spellings: dict[str, str]) -> Self:
        """The same images, with labels that are keys of `spellings` replaced."""


def stream_images(images: Iterable["ImageSample"]) -> Iterable["ImageSample"]:
    """The images in order, for a caller that reads each of them soon."""
    return images.stream() if isinstance(images, LazyImages) else images
