"""Images and datasets of labelled images, independent of how they are stored.

Shape letters: H and W pixels.
"""

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from vggkit.errors import BadData, BadImage, BadInput
from vggkit.images.class_names import compose, demand_single_labels
from vggkit.images.decoding import Pixels, decode, read_file
from vggkit.images.image_header import read_head
from vggkit.images.lazy_images import LazyImages
from vggkit.images.omissions import Omission, Reading
from vggkit.images.pixels import match_channels, read_pixels
from vggkit.images.several_labels import settle_task
from vggkit.notebook import write_html
from vggkit.task import Task, join_labels


class Storage(Protocol):
    """Holds the bytes of many images: an archive, a table, an address.

    A storage can be pickled for other processes; reading is thread-safe.
    """

    @property
    def quick(self) -> bool:
        """Whether reading images in any order costs the same."""

    def read(self, key: Any) -> bytes:
        """The bytes of an image's file; raises BadImage, without the image's name, where it cannot be read."""

    def weigh(self, key: Any) -> str:
        """A text that distinguishes images of the same name, such as the file's size, without reading the image."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSample:
    """An image with its label: a file, a member of a storage, or pixels in memory.

    >>> sample = ImageSample("red.png", "red", pixels=np.full((4, 6, 3), (255, 0, 0), np.uint8))
    >>> sample.decode().shape, sample.short_side()
    ((4, 6, 3), 4)
    """

    path: str
    """Path of the file; in a storage such as `photos.tar#ants/1.jpg` or `train.parquet#12`; else a name."""
    label: str | None = None
    """The class; None where it is unknown. With several `labels`: these, joined for people."""
    pixels: Pixels | None = field(default=None, repr=False)
    """RGB (H, W, 3), or four channels (H, W, 4), uint8, for images that are in memory; made of a PIL image, and of
    arrays and tensors as `read_pixels` takes them, which raises BadInput for others; so do arrays (H, W) here."""
    storage: Storage | None = field(default=None, repr=False)
    """The storage that holds the bytes; None for an image file and for pixels in memory."""
    key: Any = field(default=None, repr=False)
    """The key of the image in the storage."""
    group: str | None = None
    """Images of one group, such as a patient, a place or a burst, stay in one split; None for no group."""
    written: str | None = field(default=None, repr=False)
    """The path of another machine, such as `C:\\photos\\1.jpg`, that a table has for a file found elsewhere."""
    labels: tuple[str, ...] | None = None
    """The classes of an image of a multi-label dataset, sorted, perhaps none; None: it has one label, or none is
    known."""

    @property
    def name(self) -> str:
        """What results call the image: its path as the table has it, which can be joined to the table."""
        return self.path if self.written is None else self.written

    def __post_init__(self) -> None:
        if self.labels is not None:
            labels = tuple(sorted({compose(label) for label in self.labels}))
            object.__setattr__(self, "labels", labels)
            object.__setattr__(self, "label", join_labels(labels))
        if self.pixels is not None:
            pixels = read_pixels(self.pixels, name=self.path, keep_fourth=True)
            if getattr(self.pixels, "ndim", 3) == 2:  # a grey image, or one channel of another
                raise BadInput(
                    f"{self.path}: an ImageSample's pixels are RGB, (H, W, 3), and these are {self.pixels.shape}; "
                    "for a grey image use np.stack([pixels] * 3, axis=-1)"
                )
            object.__setattr__(self, "pixels", pixels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class of the image: its label, or its labels; none where they are unknown."""
        if self.labels is not None:
            return self.labels
        return () if self.label is None else (self.label,)

    def read(self) -> bytes:
        """The bytes of the file, for images that are not in memory; raises BadImage where it cannot be read."""
        assert self.pixels is None, "images in memory have no bytes"
        if self.storage is None:
            return read_file(self.path)
        try:
            return self.storage.read(self.key)
        except BadImage as problem:
            raise BadImage(f"{self.path}: {problem}") from problem

    def decode(self, *, least_side: int | None = None, channels: int = 3) -> Pixels:
        """RGB pixels (H, W, 3), uint8; EXIF orientation is applied and transparency composited over white.

        Args:
            least_side: A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size while its shorter side keeps this many
                pixels, which is faster; None: at full size. Images in memory keep their size.
            channels: 3; or 4 for (H, W, 4), whose fourth channel is not treated as transparency.

        Raises BadImage where it cannot be decoded.
        """
        if self.pixels is not None:
            return match_channels(self.pixels, channels, name=self.path)
        return decode(self.read(), name=self.path, least_side=least_side, channels=channels)

    def weigh(self) -> str:
        """A text that distinguishes images of the same name: the file size, or a digest of the pixels."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels.tobytes()).hexdigest()
        if self.storage is not None:
            return self.storage.weigh(self.key)
        try:
            return str(Path(self.path).stat().st_size)
        except OSError:
            return "missing"

    def identity(self) -> Hashable:
        """A value that is equal for entries of the same image; links and other names of a file are followed."""
        if self.pixels is not None:
            return self.path, id(self.pixels)
        if self.storage is not None:
            return id(self.storage), self.key
        try:
            found = os.stat(self.path)  # noqa: PTH116 (a Path would take three times as long)
        except (OSError, ValueError):
            return os.path.normpath(self.path)
        if not found.st_ino:
            return os.path.realpath(self.path)
        # Size and time beside the number, for not every file system keeps its numbers apart.
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def repeats(self, other: "ImageSample") -> bool:
        """Whether another entry is of the same image, with the same label and group."""
        mine, others = ((each.label, each.labels, each.group, each.identity()) for each in (self, other))
        return mine == others

    def short_side(self) -> int | None:
        """Pixels of the shorter side, from the header of the file; None where it cannot be read."""
        if self.pixels is not None:
            return int(min(self.pixels.shape[:2]))
        try:
            head = read_head(self.path if self.storage is None else self.read(), name=self.path)
        except BadImage:  # decoding will report what is wrong
            return None
        return min(head.width, head.height)


@dataclass(frozen=True, slots=True, eq=False)
class ImageDataset:
    """Labelled images in named splits.

    >>> white = np.full((2, 2, 3), 255, np.uint8)
    >>> samples = [("train", ImageSample("a", "cat", white)), ("val", ImageSample("b", "dog", white))]
    >>> dataset = ImageDataset.of("pets", samples)
    >>> dataset.labels, list(dataset.splits), dataset.count("train")
    (('cat', 'dog'), ['train', 'val'], {'cat': 1, 'dog': 0})
    """

    name: str
    """The place or name that the dataset was opened by."""
    labels: tuple[str, ...]
    """The class names of all splits, sorted."""
    splits: Mapping[str, Sequence[ImageSample]]
    """The images of `train`, `val` and `test`, where they exist; `all` for an undivided dataset. Each is a tuple,
    or a sequence that makes its images when they are requested."""
    skipped: tuple[Omission, ...] = ()
    """Files that were found and not used as images, counted by reason."""
    task: Task = "single-label"
    """Whether every image has exactly one class, or any number of them, which are then in `ImageSample.labels`."""
    notes: tuple[str, ...] = ()
    """What was decided when it was read, in sentences: such as that its rows have several labels each."""

    @classmethod
    def of(
        cls,
        name: str,
        images: Iterable[tuple[str | None, ImageSample]],
        *,
        reading: Reading | None = None,
        task: Task | None = None,
    ) -> Self:
        """The dataset of pairs (split, image); an image whose split is None belongs to `all`.

        Labels are brought to Unicode's composed form (NFC). Repeated entries of an image with the same label, group
        and split are counted once. A split without labels is dropped where another split has them.

        Args:
            name: The place or name of the dataset.
            images: Pairs of a split's name, or None, and an image.
            reading: The files that were skipped, and the labels that were read from tables.
            task: None: multi-label where images have several labels or none, by a list of labels, a separator or
                columns of zeros and ones; columns of which exactly one is 1 in each row are single-label.

        Raises BadData where there are no images, an image has no label, only some images have a split, or a label
        of a table consists of other labels.
        """
        reading = reading or Reading()
        splits: dict[str, list[ImageSample]] = {}
        places: dict[int, tuple[list[ImageSample], int]] = {}
        for split, image in images:
            held = splits.setdefault(split or "all", [])
            if task == "multi-label" and image.labels is None and image.label is not None:
                image = replace(image, labels=(image.label,))  # noqa: PLW2901
            if image.labels is None and image.label is not None and (label := compose(image.label)) != image.label:
                image = replace(image, label=label)  # noqa: PLW2901
            # By the inode alone, because there may be millions.
            entry = hash((split, image.label, image.group, image.identity()))
            among, place = places.setdefault(entry, (held, len(held)))
            if among is held and place == len(held):
                held.append(image)
            elif among is held and image.repeats(among[place]):
                # The same entry is kept in any order of the entries.
                stays, goes = sorted((image, among[place]), key=lambda each: each.path)
                among[place] = stays
                reading.omit("listed-twice", goes.path)
            else:
                held.append(image)
        for split, held in list(splits.items()):
            bare = [image for image in held if image.label is None]
            if len(bare) == len(held) and len(splits) > 1:
                del splits[split]  # as the test splits of public sets, whose labels are secret
            elif bare and reading.unlabelled_table is not None:
                raise BadData(reading.unlabelled_table.describe())
            elif bare:
                raise BadData(f"{bare[0].path}: has no label, and labelled images are required")
        if not splits:
            raise BadData(f"{name}: holds no images")
        if "all" in splits and len(splits) > 1:
            others = ", ".join(sorted(splits.keys() - {"all"}))
            raise BadData(
                f"{name}: some images belong to {others}, and some to no split (the first: "
                f"{splits['all'][0].path}); give every image a split, or none"
            )
        found, notes = settle_task(name, splits, task, columns=reading.classes)
        if found == "single-label":
            demand_single_labels(name, reading.written_labels)
        labels = sort_labels(
            chain(reading.classes, (label for split in splits.values() for p in split for label in p.classes))
        )
        return cls(name, labels, _in_order(splits), reading.list_omissions(), found, notes)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(split):,}" for name, split in self.splits.items())
        task = "" if self.task == "single-label" else f"{self.task}, "
        return f"ImageDataset({self.name!r}, {task}{len(self.labels):,} classes, {counts})"

    def _repr_html_(self) -> str:
        counts = {name: self.count(name) for name in self.splits}
        rows = [(label, *(f"{count[label]:,}" for count in counts.values())) for label in self.labels]
        header = ("class", *(f"{name} ({len(split):,})" for name, split in self.splits.items()))
        return write_html(f"{self.name}: {len(self.labels):,} classes", rows, header=header)

    @property
    def is_lazy(self) -> bool:
        """Whether its images are described and not held, as those of shards with a manifest."""
        return any(isinstance(split, LazyImages) for split in self.splits.values())

    def split(self, *names: str) -> Sequence[ImageSample]:
        """The images of the first of these splits that exists; raises BadData where none does."""
        for name in names:
            if name in self.splits:
                return self.splits[name]
        raise BadData(f"{self.name}: has no split {' or '.join(map(str, names))}, but {', '.join(self.splits)}")

    def count(self, name: str) -> dict[str, int]:
        """The number of images of each class in a split, including classes without images."""
        images = self.splits[name]
        if isinstance(images, LazyImages):
            counted = np.bincount(images.number_classes(self.labels), minlength=len(self.labels))
            return dict(zip(self.labels, counted.tolist(), strict=True))
        counts = dict.fromkeys(self.labels, 0)
        for image in images:
            for label in image.classes:
                counts[label] += 1
        return counts

    def keep(self, splits: Mapping[str, Sequence[ImageSample]]) -> Self:
        """The same dataset with other images in its splits."""
        held = {name: s if isinstance(s, LazyImages) else tuple(s) for name, s in splits.items()}
        return replace(self, splits=held)

    def spelled_as(self, labels: Iterable[str]) -> Self:
        """The same dataset with its labels spelled as given labels that differ from them only in Unicode form."""
        ways = {compose(label): label for label in labels}
        new = {label: ways[label] for label in self.labels if ways.get(label, label) != label}
        if not new:
            return self
        splits = {
            name: split.spelled_as(new)
            if isinstance(split, LazyImages)
            else tuple(
                replace(p, label=new.get(str(p.label), p.label))
                if p.labels is None
                else replace(p, labels=tuple(new.get(label, label) for label in p.labels))
                for p in split
            )
            for name, split in self.splits.items()
        }
        return replace(self, labels=sort_labels(new.get(label, label) for label in self.labels), splits=splits)

    def list_sources(self) -> Iterator[str]:
        """The places that the images are read from: the dataset, its files, and the archives that hold them."""
        yield self.name
        for image in (image for split in self.splits.values() for image in split):
            yield image.path if image.storage is None else image.path.partition("#")[0]

    def fingerprint(self) -> str:
        """A digest of the classes, file names and file sizes of all images, 16 hexadecimal digits.

        It does not depend on where the dataset is stored, and changes when an image is added, removed or replaced.
        """
        if self.is_lazy:
            return _digest("\n".join(sorted(map(identify_images, self.splits.values()))))[:16]
        return identify_images(image for split in self.splits.values() for image in split)


def identify_images(images: Iterable[ImageSample]) -> str:
    """A digest of the classes, file names and file sizes of images in any order: 16 hexadecimal digits.

    Of images in shards with a manifest it is one of the classes and contents.
    """
    if isinstance(images, LazyImages):
        return images.fingerprint()
    return _digest("\n".join(sorted(map(_describe, images))))[:16]


def identify_image(image: ImageSample) -> str:
    """A digest of the class, file name and file size of one image: 12 hexadecimal digits."""
    return _digest(_describe(image))[:12]


def _describe(image: ImageSample) -> str:
    label = image.label if image.labels is None else list(image.labels)
    return f"{label}/{Path(image.path).name}/{image.weigh()}"


def _digest(text: str) -> str:
    # Names need not be text: a file's may be any bytes.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def sort_labels(labels: Iterable[str | None]) -> tuple[str, ...]:
    """The distinct class names, sorted; by value where all are whole numbers.

    >>> sort_labels(["10", "9", "10"]), sort_labels(["b", "a", "10"])
    (('9', '10'), ('10', 'a', 'b'))
    """
    names = {str(label) for label in labels}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def typical_side(images: Sequence[ImageSample], *, most: int = 100) -> int:
    """Median short side in pixels of up to `most` evenly spaced images; 224 where none can be read."""
    if isinstance(images, LazyImages):
        return images.typical_side()
    step = max(1, len(images) // most)
    sides = [side for image in images[::step] if (side := image.short_side())]
    return int(np.median(sides)) if sides else 224


def _in_order(splits: Mapping[str, list[ImageSample]]) -> dict[str, tuple[ImageSample, ...]]:
    """The usual splits first."""
    usual = [name for name in ("train", "val", "test") if name in splits]
    return {name: tuple(splits[name]) for name in (*usual, *sorted(splits.keys() - set(usual)))}
