"""Pictures that can be had, one by one and in collections; whatever they are stored in.

Shape letters: H and W pixels.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np

from vggkit.errors import BadData, BadImage
from vggkit.images.decoding import Pixels, decode, read_file
from vggkit.images.heads import read_head

SUFFIXES: Final = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png webp avif bmp gif tif tiff ppm pgm pbm heic heif".split()  # noqa: SIM905
)
"""File endings that are taken for pictures; what is inside is found out by decoding."""


class Storage(Protocol):
    """Something that holds the bytes of many pictures: an archive, a table, an address.

    It can be sent to other processes; reading is safe from several threads.
    """

    @property
    def quick(self) -> bool:
        """Whether pictures can be read in any order at the same cost."""

    def read(self, key: Any) -> bytes:
        """A picture's file, whole; raises BadImage, without the picture's name, where it cannot be had."""

    def weigh(self, key: Any) -> str:
        """What tells a picture from another of its name, without reading it."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture that can be had: a file, a part of a storage, or pixels in memory."""

    path: str
    """Its file; in a storage `photos.tar#ants/1.jpg` or `train.parquet#12`; else a name such as `digits/0012`."""
    label: str | None = None
    """Its class, where known."""
    pixels: Pixels | None = field(default=None, repr=False)
    """RGB (H, W, 3), uint8, for pictures that are in memory."""
    storage: Storage | None = field(default=None, repr=False)
    """What holds its bytes, where it is no file of its own."""
    key: Any = field(default=None, repr=False)
    """Where the storage has it."""
    group: str | None = None
    """What it shares with others that must not be parted from it: a patient, a place, a burst."""

    def read(self) -> bytes:
        """The bytes of its file; raises BadImage, and for pictures in memory there are none."""
        assert self.pixels is None, "pictures in memory have no bytes"
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
        """What tells this picture from another of its name, cheaply: bytes of the file, or a digest of pixels."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels.tobytes()).hexdigest()
        if self.storage is not None:
            return self.storage.weigh(self.key)
        try:
            return str(Path(self.path).stat().st_size)
        except OSError:
            return "missing"

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
    """A storage of one picture that is in memory, as it came through a pipe."""

    data: bytes = field(repr=False)
    """Its file."""
    quick: bool = True

    def read(self, key: object) -> bytes:
        """The bytes."""
        return self.data

    def weigh(self, key: object) -> str:
        """How many they are."""
        return str(len(self.data))


@dataclass(frozen=True, slots=True, eq=False)
class PictureSet:
    """Labelled pictures in named parts."""

    name: str
    """Where they come from, as it was asked for."""
    labels: tuple[str, ...]
    """Class names, sorted; all parts together."""
    splits: Mapping[str, tuple[Picture, ...]]
    """`train`, `val`, `test`, those that there are; one part `all` where the place is not divided."""

    @classmethod
    def of(cls, name: str, pictures: Iterable[tuple[str | None, Picture]]) -> Self:
        """The set of (part, picture); a picture whose part is None belongs to `all`.

        A part without any label is left out where another has them. Raises BadData where there are no
        pictures, one has no label, or only some have a part.
        """
        parts: dict[str, list[Picture]] = {}
        for part, picture in pictures:
            parts.setdefault(part or "all", []).append(picture)
        for part, held in list(parts.items()):
            bare = [picture for picture in held if picture.label is None]
            if len(bare) == len(held) and len(parts) > 1:
                del parts[part]  # as the test parts of public sets, whose labels are kept secret
            elif bare:
                raise BadData(f"{bare[0].path}: has no label, and labelled pictures are asked for")
        if not parts:
            raise BadData(f"{name}: holds no pictures")
        if "all" in parts and len(parts) > 1:
            others = ", ".join(sorted(parts.keys() - {"all"}))
            raise BadData(
                f"{name}: some of it belongs to {others}, and some to no part (the first: "
                f"{parts['all'][0].path}); give every picture a part, or none"
            )
        return cls(name, sort_labels(p.label for part in parts.values() for p in part), _in_order(parts))

    def part(self, *names: str) -> tuple[Picture, ...]:
        """Pictures of the first of these parts that there is; raises BadData."""
        for name in names:
            if name in self.splits:
                return self.splits[name]
        raise BadData(f"{self.name}: has no part {' or '.join(names)}, but {', '.join(self.splits)}")

    def count(self, name: str) -> dict[str, int]:
        """Number of pictures of each class in a part, classes without any included."""
        counts = dict.fromkeys(self.labels, 0)
        for picture in self.splits[name]:
            counts[str(picture.label)] += 1
        return counts

    def keep(self, parts: Mapping[str, Sequence[Picture]]) -> Self:
        """The same set with other pictures in its parts."""
        return replace(self, splits={name: tuple(part) for name, part in parts.items()})

    def list_sources(self) -> Iterator[str]:
        """Where its pictures are read from: the place itself, their files, and the archives that hold them."""
        yield self.name
        for picture in (picture for part in self.splits.values() for picture in part):
            yield picture.path if picture.storage is None else picture.path.partition("#")[0]

    def fingerprint(self) -> str:
        """What tells this collection from another: a digest of classes, file names and file sizes.

        It is the same wherever the folder lies, and changes when a picture comes, goes or is another.
        """
        return identify_pictures(picture for part in self.splits.values() for picture in part)


def identify_pictures(pictures: Iterable[Picture]) -> str:
    """What tells these pictures, in whatever order and place, from others: 16 hexadecimal digits."""
    names = sorted(f"{picture.label}/{Path(picture.path).name}/{picture.weigh()}" for picture in pictures)
    # Names need not be text: a file's may be any bytes.
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def sort_labels(labels: Iterable[str | None]) -> tuple[str, ...]:
    """Each class once, by name; where all are whole numbers, by value."""
    names = {str(label) for label in labels}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def typical_side(pictures: Sequence[Picture], *, most: int = 100) -> int:
    """Median short side in pixels of up to `most` of the pictures, evenly taken; 224 where none can be read."""
    step = max(1, len(pictures) // most)
    sides = [side for picture in pictures[::step] if (side := picture.short_side())]
    return int(np.median(sides)) if sides else 224


def _in_order(parts: Mapping[str, list[Picture]]) -> dict[str, tuple[Picture, ...]]:
    """The usual parts first."""
    usual = [name for name in ("train", "val", "test") if name in parts]
    return {name: tuple(parts[name]) for name in (*usual, *sorted(parts.keys() - set(usual)))}
