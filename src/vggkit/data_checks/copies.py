"""Copies among the images of a dataset: the same file, or nearly the same image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vggkit.data_checks.inspection import ImageRecord, group_exact, inspect_images
from vggkit.images.dataset import ImageDataset
from vggkit.images.near_duplicates import NearDuplicate, find_near_duplicates

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much it is in all."""


@dataclass(frozen=True, slots=True)
class Copies:
    """The records of a dataset's images, and its near duplicates."""

    records: tuple[ImageRecord, ...]
    """The record of every image, in order."""
    pairs: tuple[NearDuplicate, ...]
    """Near duplicates by indices among the records, of exact copies the first. Empty where they were
    not searched for."""

    def list_groups(self) -> list[list[int]]:
        """Indices of the records that are copies of each other, exact or near, or linked by such; two or more."""
        firsts = list(range(len(self.records)))

        def find(number: int) -> int:
            while firsts[number] != number:
                firsts[number] = number = firsts[firsts[number]]
            return number

        exact = [(group[0], other) for group in group_exact(self.records).values() for other in group[1:]]
        for one, other in (*exact, *((pair.first, pair.second) for pair in self.pairs)):
            low, high = sorted((find(one), find(other)))
            firsts[high] = low
        groups: dict[int, list[int]] = {}
        for number in range(len(firsts)):
            groups.setdefault(find(number), []).append(number)
        return [group for group in groups.values() if len(group) > 1]

    def place(self, split_of: Mapping[int, str]) -> "Copies":
        """The same in other splits, by the `id` of each image."""
        moved = (replace(each, split=split_of[id(each.image)]) for each in self.records)
        return replace(self, records=tuple(moved))


def find_copies(
    images: ImageDataset,
    *,
    most: int | None = None,
    channels: int = 3,
    reduced_decoding: bool = False,
    on_progress: OnProgress | None = None,
) -> Copies:
    """Inspect the images of a dataset, and search for near duplicates.

    Args:
        images: The dataset.
        most: Number of images above which near duplicates are not searched for; None: they are always.
        channels: As for `inspect_images`.
        reduced_decoding: As for `inspect_images`.
        on_progress: Called with the name of a step, how much of it is done, and how much it is in all.
    """

    def about(what: str) -> Callable[[int, int], None] | None:
        return None if on_progress is None else lambda done, total: on_progress(what, done, total)

    reading = about("reading images")
    records = tuple(
        inspect_images(images, channels=channels, reduced_decoding=reduced_decoding, on_progress=reading)
    )
    if most is not None and len(records) > most:
        return Copies(records, ())
    return Copies(records, tuple(_compare(records, about("comparing images"))))


def _compare(records: Sequence[ImageRecord], on_progress: Callable[[int, int], None] | None) -> list[NearDuplicate]:
    """Near duplicates by their indices among the records."""
    numbers = sorted(copies[0] for copies in group_exact(records).values())
    if not numbers:
        return []
    descriptions = np.stack([records[number].description for number in numbers])  # type: ignore[misc]
    found = find_near_duplicates(descriptions, on_progress=on_progress)
    return [NearDuplicate(numbers[pair.first], numbers[pair.second], pair.similarity) for pair in found]
