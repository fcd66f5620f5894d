"""Images that can be had, one by one and in collections; whatever they are stored in.

Shape letters: H and W pixels.
"""

import hashlib
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from vggkit.errors import BadData, BadImage, BadInput
from vggkit.images.decoding import Pixels, decode, read_file
from vggkit.images.image_header import read_head
from vggkit.images.label_texts import LabelRemark, remark_combined, remark_spaces, remark_spellings, spell
from vggkit.images.omissions import Omission, Reading
from vggkit.images.pixels import read_pixels


class Storage(Protocol):
    """Something that holds the bytes of many images: an archive, a table, an address.

    It can be sent to other processes; reading is safe from several threads.
    """

    @property
    def quick(self) -> bool:
        """Whether images can be read in any order at the same cost."""

    def read(self, key: Any) -> bytes:
        """An image's file, whole; raises BadImage, without the image's name, where it cannot be had."""

    def weigh(self, key: Any) -> str:
        """What tells an image from another of its name, without reading it."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSample:
    """An image that can be had: a file, a part of a storage, or pixels in memory."""

    path: str
    """Its file; in a storage `photos.tar#ants/1.jpg` or `train.parquet#12`; else a name such as `digits/0012`."""
    label: str | None = None
    """Its class, where known."""
    pixels: Pixels | None = field(default=None, repr=False)
    """RGB (H, W, 3), uint8, for images that are in memory; made of a PIL image, and of arrays and tensors as
    `read_pixels` takes them, which raises BadInput for others, and here for arrays (H, W) too."""
    storage: Storage | None = field(default=None, repr=False)
    """What holds its bytes, where it is no file of its own."""
    key: Any = field(default=None, repr=False)
    """Where the storage has it."""
    group: str | None = None
    """What it shares with others that must not be parted from it: a patient, a place, a burst."""

    def __post_init__(self) -> None:
        if self.pixels is not None:
            pixels = read_pixels(self.pixels, name=self.path)
            if getattr(self.pixels, "ndim", 3) == 2:  # a grey image, or one channel of another
                raise BadInput(
                    f"{self.path}: an ImageSample's pixels are RGB, (H, W, 3), and these are {self.pixels.shape}; "
                    "of a grey image say np.stack([pixels] * 3, axis=-1)"
                )
            object.__setattr__(self, "pixels", pixels)

    def read(self) -> bytes:
        """The bytes of its file; raises BadImage, and for images in memory there are none."""
        assert self.pixels is None, "images in memory have no bytes"
        if self.storage is None:
            return read_file(self.path)
        try:
            return self.storage.read(self.key)
        except BadImage as problem:
            raise BadImage(f"{self.path}: {problem}") from problem

    def decode(self, *, least_side: int | None = None) -> Pixels:
        """RGB pixels (H, W, 3), uint8; raises BadImage.

        Args:
            least_side: As for `decoding.decode`; pixels in memory come as they are.
        """
        if self.pixels is not None:
            return self.pixels
        return decode(self.read(), name=self.path, least_side=least_side)

    def weigh(self) -> str:
        """What tells this image from another of its name, cheaply: bytes of the file, or a digest of pixels."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels.tobytes()).hexdigest()
        if self.storage is not None:
            return self.storage.weigh(self.key)
        try:
            return str(Path(self.path).stat().st_size)
        except OSError:
            return "missing"

    def identity(self) -> Hashable:
        """What is equal for entries of one and the same image: links are followed, other names of a file too."""
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
        """Whether it says of the same image what another does."""
        return (self.label, self.group, self.identity()) == (other.label, other.group, other.identity())

    def short_side(self) -> int | None:
        """Pixels of the shorter side, read from the file's head; None where it cannot be read."""
        if self.pixels is not None:
            return int(min(self.pixels.shape[:2]))
        try:
            head = read_head(self.path if self.storage is None else self.read(), name=self.path)
        except BadImage:  # decoding will say what is wrong
            return None
        return min(head.width, head.height)


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """A storage of one image that is in memory, as it came through a pipe."""

    data: bytes = field(repr=False)
    """Its file."""
    quick: bool = True
    is_named: bool = True
    """Whether the image has a name of its own; one without is told from others by all of its bytes."""

    def read(self, key: object) -> bytes:
        """The bytes."""
        return self.data

    def weigh(self, key: object) -> str:
        """How many they are, or a digest of them."""
        return str(len(self.data)) if self.is_named else hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A storage of one image that could not be read."""

    reason: str
    """Why."""
    quick: bool = True

    def read(self, key: object) -> bytes:
        """Raises BadImage with the reason."""
        raise BadImage(self.reason)

    def weigh(self, key: object) -> str:
        """The reason."""
        return self.reason


@dataclass(frozen=True, slots=True, eq=False)
class ImageDataset:
    """Labelled images in named splits."""

    name: str
    """Where they come from, as it was asked for."""
    labels: tuple[str, ...]
    """Class names, sorted; all splits together."""
    splits: Mapping[str, tuple[ImageSample, ...]]
    """`train`, `val`, `test`, those that there are; one split `all` where the place is not divided."""
    skipped: tuple[Omission, ...] = ()
    """What lies there and is none of its images, counted by reason."""
    remarks: tuple[LabelRemark, ...] = ()
    """Labels that look like several in one, or are written in several ways."""

    @classmethod
    def of(
        cls, name: str, images: Iterable[tuple[str | None, ImageSample]], *, reading: Reading | None = None
    ) -> Self:
        """The set of (split, image); an image whose split is None belongs to `all`.

        Labels are composed (Unicode's NFC). Of several entries of one image with the same label, group and split
        one is kept. A split without any label is left out where another has them.

        Args:
            name: Where they come from.
            images: The images with their splits.
            reading: What was met beside them.

        Raises BadData where there are no images, one has no label, only some have a split, or a label that was
        written into a table consists of others.
        """
        reading = reading or Reading()
        given = set[str]()
        splits: dict[str, list[ImageSample]] = {}
        places: dict[int, tuple[list[ImageSample], int]] = {}
        for split, image in images:
            held = splits.setdefault(split or "all", [])
            if image.label is not None:
                given.add(image.label)
                if (label := spell(image.label)) != image.label:
                    image = replace(image, label=label)  # noqa: PLW2901
            # By a number alone, for there may be millions.
            entry = hash((split, image.label, image.group, image.identity()))
            among, place = places.setdefault(entry, (held, len(held)))
            if among is held and place == len(held):
                held.append(image)
            elif among is held and image.repeats(among[place]):
                # Whatever the order of the entries, the same one stays.
                stays, goes = sorted((image, among[place]), key=lambda each: each.path)
                among[place] = stays
                reading.omit("listed-twice", goes.path)
            else:
                held.append(image)
        for split, held in list(splits.items()):
            bare = [image for image in held if image.label is None]
            if len(bare) == len(held) and len(splits) > 1:
                del splits[split]  # as the test splits of public sets, whose labels are kept secret
            elif bare:
                raise BadData(f"{bare[0].path}: has no label, and labelled images are asked for")
        if not splits:
            raise BadData(f"{name}: holds no images")
        if "all" in splits and len(splits) > 1:
            others = ", ".join(sorted(splits.keys() - {"all"}))
            raise BadData(
                f"{name}: some of it belongs to {others}, and some to no split (the first: "
                f"{splits['all'][0].path}); give every image a split, or none"
            )
        remarks = [
            *remark_combined(name, reading.written_labels),
            *remark_spaces(given),
            *remark_spellings(given),
        ]
        labels = sort_labels(p.label for split in splits.values() for p in split)
        return cls(name, labels, _in_order(splits), reading.list_omissions(), tuple(remarks))

    def split(self, *names: str) -> tuple[ImageSample, ...]:
        """Images of the first of these splits that there is; raises BadData."""
        for name in names:
            if name in self.splits:
                return self.splits[name]
        raise BadData(f"{self.name}: has no split {' or '.join(map(str, names))}, but {', '.join(self.splits)}")

    def count(self, name: str) -> dict[str, int]:
        """Number of images of each class in a split, classes without any included."""
        counts = dict.fromkeys(self.labels, 0)
        for image in self.splits[name]:
            counts[str(image.label)] += 1
        return counts

    def keep(self, splits: Mapping[str, Sequence[ImageSample]]) -> Self:
        """The same set with other images in its splits."""
        return replace(self, splits={name: tuple(split) for name, split in splits.items()})

    def spelled_as(self, labels: Iterable[str]) -> Self:
        """The same set with its labels in the spelling of others, where these differ in Unicode's forms alone."""
        ways = {spell(label): label for label in labels}
        new = {label: ways[label] for label in self.labels if ways.get(label, label) != label}
        if not new:
            return self
        splits = {
            name: tuple(replace(p, label=new.get(str(p.label), p.label)) for p in split)
            for name, split in self.splits.items()
        }
        return replace(self, labels=sort_labels(new.get(label, label) for label in self.labels), splits=splits)

    def list_sources(self) -> Iterator[str]:
        """Where its images are read from: the place itself, their files, and the archives that hold them."""
        yield self.name
        for image in (image for split in self.splits.values() for image in split):
            yield image.path if image.storage is None else image.path.partition("#")[0]

    def fingerprint(self) -> str:
        """What tells this collection from another: a digest of classes, file names and file sizes.

        It is the same wherever the folder lies, and changes when an image comes, goes or is another.
        """
        return identify_images(image for split in self.splits.values() for image in split)


def identify_images(images: Iterable[ImageSample]) -> str:
    """What tells these images, in whatever order and place, from others: 16 hexadecimal digits."""
    names = sorted(f"{image.label}/{Path(image.path).name}/{image.weigh()}" for image in images)
    # Names need not be text: a file's may be any bytes.
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def sort_labels(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Each class once, by name; where all are whole numbers, by value."""
    names = {str(label) for label in labels}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def typical_side(images: Sequence[ImageSample], *, most: int = 100) -> int:
    """Median short side in pixels of up to `most` of the images, evenly taken; 224 where none can be read."""
    step = max(1, len(images) // most)
    sides = [side for image in images[::step] if (side := image.short_side())]
    return int(np.median(sides)) if sides else 224


def _in_order(splits: Mapping[str, list[ImageSample]]) -> dict[str, tuple[ImageSample, ...]]:
    """The usual splits first."""
    usual = [name for name in ("train", "val", "test") if name in splits]
    return {name: tuple(splits[name]) for name in (*usual, *sorted(splits.keys() - set(usual)))}
