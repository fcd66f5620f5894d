"""Datasets in shards with a manifest: listed, split and shuffled by arrays, in constant memory.

**An epoch** reads every image of the training split once. Its order is a function of the seed, the epoch and the
number of readers alone: the shards in random order, and within that sequence each image moved back by a random
number of places below `BUFFER`, as a shuffle buffer of that size would do. So an image can be found by its place
in the epoch, and a training that was interrupted continues at the very image, without reading those before.
**Readers**, such as the processes of a training on several GPUs, get contiguous parts of the sequence of shards:
no image is read twice, none is left out, and a shard is read by one of them, but for those that a boundary lies in.
The threads of a reader share its order.
**The validation split** is the shards' own, or where the dataset is not divided a share of each class, drawn by the
contents of the images: equal files are on one side. It is read from front to back after each epoch.

Shape letters: N images, K classes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Self, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData
from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.lazy_images import Advance, LazyImages
from vggkit.images.sources.locations import is_address
from vggkit.images.sources.shards.files import ShardFiles
from vggkit.images.sources.shards.manifest import (
    Manifest,
    ShardIndex,
    check_sizes,
    locate_shard,
    read_manifest,
)

BUFFER: Final = 8192
"""Places within which an image moves when an epoch is shuffled."""
SPARSE: Final = 0.5
"""Share of a shard's images below which they are read one by one, and the shard is not copied for them."""


@dataclass(frozen=True, slots=True, eq=False)
class Sharded:
    """The manifest of a dataset with its index and files."""

    place: str
    """The manifest."""
    manifest: Manifest
    """Its contents."""
    index: ShardIndex
    """The entry of each image."""
    files: ShardFiles
    """Reads them."""


def open_sharded(place: str, *, name: str | None = None) -> ImageDataset:
    """The dataset of a manifest; only the manifest and its index are read, and the lengths of the shards.

    Args:
        place: The manifest, `shards.json`.
        name: The dataset's name; None: `place`.

    Raises BadData for a manifest that is broken or contradicts the files, BadDownload and MissingExtra.
    """
    manifest, index = read_manifest(place)
    check_sizes(place, manifest)
    places = [locate_shard(place, shard.file) for shard in manifest.shards]
    lasting = place if is_address(place) else str(Path(place).resolve())
    reopen = (_reopen, lasting, manifest.index_sha256)
    files = ShardFiles(places, manifest.shards, manifest.form, index.offsets, index.sizes, reopen=reopen)
    held = Sharded(place, manifest, index, files)
    splits: dict[str, list[NDArray[np.int64]]] = {}
    for shard, first in zip(manifest.shards, files.firsts.tolist(), strict=False):
        splits.setdefault(shard.split, []).append(np.arange(first, first + shard.images))
    if not len(index):
        raise BadData(f"{place}: holds no images")
    images = {split: ShardedImages(held, np.concatenate(parts)) for split, parts in splits.items()}
    return ImageDataset(name or place, manifest.labels, images)


@cache
def _reopen(place: str, index_sha256: str) -> ShardFiles:
    """The files of a manifest in another process, once for all images that are sent there; raises BadData."""
    split = next(iter(open_sharded(place).splits.values()))
    assert isinstance(split, ShardedImages), "it has a manifest"
    if split.held.manifest.index_sha256 != index_sha256:
        raise BadData(f"{place}: was written again while it was used; start again")
    return split.held.files


class ShardedImages(LazyImages):
    """Images of a manifest; each is made when it is requested.

    Args:
        held: The manifest with its index and files.
        numbers: (N,), places of the images in the index, sorted.
        labels: Another spelling of the manifest's labels.
    """

    def __init__(self, held: Sharded, numbers: NDArray[np.int64], *, labels: Sequence[str] | None = None) -> None:
        self.held, self.numbers = held, numbers
        self.labels = tuple(labels or held.manifest.labels)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: SupportsIndex) -> ImageSample: ...
    @overload
    def __getitem__(self, place: slice) -> Self: ...
    def __getitem__(self, place: SupportsIndex | slice) -> "ImageSample | Self":
        if isinstance(place, slice):
            return type(self)(self.held, self.numbers[place], labels=self.labels)
        return self._describe(int(self.numbers[place]))

    def __iter__(self) -> Iterator[ImageSample]:
        return map(self._describe, self.numbers.tolist())

    def _describe(self, number: int) -> ImageSample:
        index, files = self.held.index, self.held.files
        shard = files.places[files.find_shard(number)]
        label = self.labels[index.classes[number]]
        return ImageSample(f"{shard}#{index.name(number)}", label, storage=files, key=number)

    def stream(self) -> Iterator[ImageSample]:
        with self.follow(np.arange(len(self))) as advance:
            for place, image in enumerate(self):
                # Readers are a few batches ahead of what they have read.
                advance(place - BUFFER, place + 1)
                yield image

    def number_classes(self, labels: Sequence[str]) -> NDArray[np.int64]:
        numbers = {label: number for number, label in enumerate(labels)}
        own = self.held.index.classes[self.numbers]
        used = np.flatnonzero(np.bincount(own))
        table = np.zeros(len(self.labels), np.int64)
        table[used] = [numbers[self.labels[each]] for each in used]
        found: NDArray[np.int64] = table[own]
        return found

    @cached_property
    def _entries(self) -> NDArray[np.uint64]:
        """(N, 2), content and class of each image."""
        index = self.held.index
        return np.stack([index.contents[self.numbers], index.classes[self.numbers].astype(np.uint64)], axis=1)

    def fingerprint(self) -> str:
        rows = self._entries
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        return self._digest(rows)[:16]

    def digest_order(self) -> str:
        shards = [shard.images for shard in self.held.manifest.shards]
        return self._digest(self._entries, json.dumps(shards).encode(), self.numbers.tobytes())[:32]

    def _digest(self, rows: NDArray[np.uint64], *more: bytes) -> str:
        found = hashlib.sha256(json.dumps(self.held.manifest.labels).encode())
        for each in (np.ascontiguousarray(rows, "<u8").tobytes(), *more):
            found.update(each)
        return found.hexdigest()

    def typical_side(self) -> int:
        return int(np.median(self.held.index.sides[self.numbers]))

    def list_contents(self) -> NDArray[np.uint64]:
        return self.held.index.contents[self.numbers]

    def select(self, places: NDArray[np.int64]) -> Self:
        return type(self)(self.held, self.numbers[places], labels=self.labels)

    def join(self, others: Sequence[Self]) -> Self:
        numbers = np.sort(np.concatenate([self.numbers, *(other.numbers for other in others)]))
        return type(self)(self.held, numbers, labels=self.labels)

    def spelled_as(self, spellings: Mapping[str, str]) -> Self:
        labels = [spellings.get(label, label) for label in self.labels]
        return type(self)(self.held, self.numbers, labels=labels)

    def draw_parts(self, *, seed: int, epoch: int, counts: Sequence[int]) -> list[NDArray[np.int64]]:
        assert sum(counts) == len(self), "each image has one reader"
        draws = np.random.default_rng(derive_seed(seed, "order", epoch))
        shards = self.held.files.find_shards(self.numbers)
        firsts = np.flatnonzero(np.diff(shards, prepend=-1))
        parts = np.split(np.arange(len(self)), firsts[1:])
        sequence = np.concatenate([parts[each] for each in draws.permutation(len(parts))])
        found = []
        for part in np.split(sequence, np.cumsum(counts)[:-1]):
            moved = np.arange(len(part)) + draws.uniform(0, BUFFER, len(part))
            found.append(part[np.argsort(moved, kind="stable")])
        return found

    @contextmanager
    def follow(self, order: NDArray[np.int64]) -> Iterator[Advance]:
        files = self.held.files
        shards = files.find_shards(self.numbers[order])
        wanted = np.bincount(files.find_shards(self.numbers), minlength=len(files.shards))
        used, first_uses = np.unique(shards, return_index=True)
        _, from_behind = np.unique(shards[::-1], return_index=True)
        last_uses = len(shards) - 1 - from_behind
        dense = wanted[used] >= SPARSE * np.array([files.shards[each].images for each in used])
        coming = sorted(zip(first_uses[dense].tolist(), used[dense].tolist(), strict=True), reverse=True)
        going = sorted(zip(last_uses[dense].tolist(), used[dense].tolist(), strict=True), reverse=True)
        ahead = max((shard.images for shard in files.shards), default=0)

        def advance(done: int, reading: int) -> None:
            while going and going[-1][0] < done:
                files.release(going.pop()[1])
            # One shard more than those whose images are read.
            while coming and coming[-1][0] < reading + ahead:
                files.bring(coming.pop()[1])

        try:
            yield advance
        finally:
            for _, shard in going:
                files.release(shard)


def verify_shards(images: ImageDataset, *, on_progress: Callable[[int, int], None] | None = None) -> None:
    """Read every shard of a dataset with a manifest to its end; raises BadData for one that was changed."""
    for split in images.splits.values():
        if isinstance(split, ShardedImages):
            files = split.held.files
            for shard in range(len(files.shards)):
                files.verify(shard)
                if on_progress is not None:
                    on_progress(shard + 1, len(files.shards))
            return
