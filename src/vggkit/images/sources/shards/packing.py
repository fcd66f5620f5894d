"""Packing a dataset into shards: in parallel, shard by shard, and continued where it was interrupted.

Every shard is planned before the first is written: which images, in which order. So a job that was killed, however
it ended, writes the shards that are missing, and the result is that of an undisturbed one.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from vggkit.errors import BadData, BadOutput
from vggkit.hardware import count_threads, derive_seed
from vggkit.images.dataset import ImageDataset, sort_labels
from vggkit.images.sources.shards.manifest import ENDINGS, FILE_NAME, Form, Manifest, Shard, ShardIndex, name_index
from vggkit.images.sources.shards.records import WrittenShard
from vggkit.images.sources.shards.target import PARTS, ShardTarget
from vggkit.images.sources.shards.writing import write_shard

PLAN: Final = f"{PARTS}/plan.json"
CLASSES: Final = "classes.txt"
"""Class names, one a line, by which readers of tar shards know the numbers in `.cls`."""
SHOWN_SECONDS: Final = 0.2
MOST_PLACES: Final = 4096
"""Places by which images of a slow storage move."""

OnProgress = Callable[[str, int, int | None], None]
"""Called with the current task, the number of images that are done, and of all if that is known."""


class Write(Protocol):
    """Writes or reads a shard."""

    def __call__(self, path: Path, *, on_image: Callable[[], None]) -> WrittenShard:
        """Write it to a temporary path; `on_image` is called after each image."""


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """A shard that is to be written."""

    file: str
    """Its name in the manifest."""
    split: str
    """Its split, where none is found in it."""
    write: Write
    """Writes it."""
    is_written: bool = True
    """Whether it is a new file; else it stays where it is, and only its record is made."""


def plan_shards(images: ImageDataset, *, form: Form, images_per_shard: int, seed: int) -> list[PlannedShard]:
    """The shards of a dataset: each split in random order, so that every shard has images of all classes.

    Images whose storage is slow to read in any order, such as Parquet files, move by some thousand places only.
    """
    planned = []
    for split, whole in images.splits.items():
        draws, count = np.random.default_rng(derive_seed(seed, "shards", split)), len(whole)
        is_quick = all(image.storage is None or image.storage.quick for image in whole)
        moved = draws.random(count) if is_quick else np.arange(count) + draws.uniform(0, MOST_PLACES, count)
        order = np.argsort(moved, kind="stable")
        for number, first in enumerate(range(0, len(whole), images_per_shard)):
            chosen = [whole[int(place)] for place in order[first : first + images_per_shard]]
            write = partial(write_shard, images=chosen, labels=images.labels, form=form, first=first)
            name = "images" if split == "all" else split
            planned.append(PlannedShard(f"{name}-{number:05d}{ENDINGS[form]}", split, write))
    return planned


def pack_shards(
    planned: Sequence[PlannedShard],
    target: ShardTarget,
    *,
    form: Form,
    labels: Sequence[str] | None,
    made_with: Mapping[str, Any],
    file_name: str = FILE_NAME,
    total: int | None,
    on_progress: OnProgress,
) -> Manifest:
    """Write the shards that are missing, and then index and manifest.

    Args:
        planned: All shards.
        target: Where they are written.
        form: tar or parquet.
        labels: The class names; None: those that are found in the shards.
        made_with: The images and options, for the manifest.
        file_name: The manifest's.
        total: Number of all images, where that is known.
        on_progress: Called now and then.

    Raises BadOutput, and what reading the images raises.
    """
    sizes, records = target.list_sizes(), target.list_sizes(PARTS)
    found: dict[str, WrittenShard] = {}
    for shard in planned:
        name = _name_record(shard)
        data = target.read(f"{PARTS}/{name}") if name in records else None
        record = None if data is None else WrittenShard.unpack(data)
        if record is not None and (not shard.is_written or sizes.get(shard.file) == record.size_bytes):
            found[shard.file] = record
    counter = _Counter(sum(len(each.index) + len(each.excluded) for each in found.values()))

    def write(shard: PlannedShard, folder: Path) -> tuple[str, WrittenShard]:
        beside = folder / _name_record(shard)
        try:
            written = shard.write(beside, on_image=counter.add)
            if shard.is_written:
                target.take(beside, shard.file)
        except OSError as problem:
            if isinstance(problem, BadOutput | BadData):
                raise
            raise BadOutput(
                f"{target.name(shard.file)}: cannot be written ({problem.strerror or problem})"
            ) from problem
        target.write(f"{PARTS}/{_name_record(shard)}", written.pack())
        return shard.file, written

    with target.make_room() as folder, ThreadPoolExecutor(count_threads(), thread_name_prefix="shard") as pool:
        waiting = {pool.submit(write, shard, Path(folder)) for shard in planned if shard.file not in found}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=SHOWN_SECONDS, return_when=FIRST_COMPLETED)
                found |= dict(each.result() for each in done)
                on_progress("writing shards", counter.count, total)
        except BaseException:
            counter.stops = True
            for each in waiting:
                each.cancel()
            raise
    on_progress("writing the manifest", counter.count, total)
    manifest, index = _join(planned, found, form=form, labels=labels, made_with=made_with)
    if form == "tar" and labels is not None:
        target.write(CLASSES, "".join(f"{label}\n" for label in manifest.labels).encode(errors="surrogateescape"))
    target.write(name_index(file_name), index.pack())
    target.write(file_name, manifest.pack())
    target.remove(PARTS)
    return manifest


def _join(
    planned: Sequence[PlannedShard],
    found: Mapping[str, WrittenShard],
    *,
    form: Form,
    labels: Sequence[str] | None,
    made_with: Mapping[str, Any],
) -> tuple[Manifest, ShardIndex]:
    """The manifest and the index of complete shards; raises BadData where no image can be read."""
    written = [(found[shard.file].split or shard.split, shard.file, found[shard.file]) for shard in planned]
    usual = ("train", "val", "test")
    order = {split: place for place, split in enumerate(usual)}
    written.sort(key=lambda each: (order.get(each[0], len(order)), each[0]))  # in a split as planned
    splits = {split for split, _, _ in written}
    if "all" in splits and len(splits) > 1:
        file = next(file for split, file, _ in written if split == "all")
        others = ", ".join(sorted(splits - {"all"}))
        raise BadData(
            f"some shards belong to {others}, and {file} to no split by its name; rename it, such as train-0.tar"
        )
    names = tuple(labels or sort_labels(label for _, _, each in written for label in each.labels))
    numbers = {label: number for number, label in enumerate(names)}
    parts, shards, counts, excluded = [], [], {split: dict.fromkeys(names, 0) for split in splits}, list[str]()
    for split, file, each in written:
        table = np.array([numbers[label] for label in each.labels] or [0], np.int32)
        part = ShardIndex(
            **{name: getattr(each.index, name) for name in ShardIndex.__slots__ if name != "classes"},
            classes=table[each.index.classes],
        )
        parts.append(part)
        excluded += each.excluded
        shards.append(Shard(file, split, len(part), each.size_bytes, each.sha256))
        for label, count in zip(names, np.bincount(part.classes, minlength=len(names)).tolist(), strict=True):
            counts[split][label] += count
    index = ShardIndex.join(parts)
    if not len(index):
        raise BadData(f"none of {len(excluded):,} images can be read; the first: {excluded[0]}")
    manifest = Manifest(
        form=form,
        labels=names,
        counts={split: counts[split] for split in sorted(counts, key=lambda split: (order.get(split, 3), split))},
        shards=tuple(shards),
        index_sha256=index.digest(),
        excluded=len(excluded),
        examples=tuple(excluded[:3]),
        made_with=made_with,
    )
    return manifest, index


def _name_record(shard: PlannedShard) -> str:
    return f"{shard.file.replace('/', '_').replace(':', '_')}.npz"


class _Counter:
    """The number of images that are done, in several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.stops = False
        self._lock = threading.Lock()

    def add(self) -> None:
        if self.stops:
            raise _StoppedError
        with self._lock:
            self.count += 1


class _StoppedError(Exception):
    """The other shards are not written any more."""
