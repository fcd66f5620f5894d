"""Where pictures come from: a folder with a subfolder for each class, a list of files, or `digits`.

Shape letters: H and W pixels.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from vggkit.errors import BadData, MissingExtra, UnknownName
from vggkit.images.decoding import Pixels, decode

SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names that are parts of a data set and not classes, and what each is called here."""

SUFFIXES: Final = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png webp avif bmp gif tif tiff ppm pgm pbm heic heif".split()  # noqa: SIM905
)
"""File endings that are taken for pictures; what is inside is found out by decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture that can be had: a file, or pixels in memory."""

    path: str
    """Its file; for pictures without a file a name such as `digits/0012`."""
    label: str | None = None
    """Its class, where known."""
    pixels: Pixels | None = field(default=None, repr=False)
    """RGB (H, W, 3), uint8, for pictures without a file."""

    def decode(self) -> Pixels:
        """RGB pixels (H, W, 3), uint8; raises BadImage."""
        return decode(self.path) if self.pixels is None else self.pixels

    def weigh(self) -> str:
        """What tells this picture from another of its name, cheaply: bytes of the file, or a digest of pixels."""
        if self.pixels is not None:
            return hashlib.sha256(self.pixels.tobytes()).hexdigest()
        try:
            return str(Path(self.path).stat().st_size)
        except OSError:
            return "missing"

    def short_side(self) -> int | None:
        """Pixels of the shorter side, read from the file's head; None where it cannot be read."""
        if self.pixels is not None:
            return int(min(self.pixels.shape[:2]))
        try:
            with Image.open(self.path) as image:
                return min(image.size)
        except Exception:  # decoding will say what is wrong
            return None


@dataclass(frozen=True, slots=True, eq=False)
class PictureSet:
    """Labelled pictures in named parts."""

    name: str
    """Where they come from, as it was asked for."""
    labels: tuple[str, ...]
    """Class names, sorted; all parts together."""
    splits: Mapping[str, tuple[Picture, ...]]
    """`train`, `val`, `test`, those that there are; one part `all` where the place is not divided."""

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

    def fingerprint(self) -> str:
        """What tells this collection from another: a digest of classes, file names and file sizes.

        It is the same wherever the folder lies, and changes when a picture comes, goes or is another.
        """
        names = sorted(f"{p.label}/{Path(p.path).name}/{p.weigh()}" for part in self.splits.values() for p in part)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def open_pictures(place: str | Path) -> PictureSet:
    """The labelled pictures of a place.

    Args:
        place: A folder holding a subfolder for each class, or holding `train` and `val` (or
            `valid`, `validation`, `test`), each with a subfolder for each class; or `digits`, scikit-learn's
            1,797 real handwritten digits, 8×8, in fixed parts of 70, 10 and 20 %.

    Raises BadData where no labelled pictures are found, UnknownName for a name that is neither.
    """
    folder = Path(place)
    if str(place) == "digits" and not folder.is_dir():
        return _open_digits()
    if not folder.exists():
        if len(folder.parts) == 1 and not folder.suffix:
            raise UnknownName(f"{str(place)!r} is neither a folder here nor a named set of pictures (digits)")
        raise BadData(f"{folder}: no such folder")
    if not folder.is_dir():
        raise BadData(f"{folder}: is a file; give a folder with a subfolder of pictures for each class")
    return _open_folder(folder)


def divide(pictures: PictureSet, *, validation_share: float, seed: int) -> PictureSet:
    """The same pictures with parts `train` and `val`, where there is no part for validation yet.

    Stratified: each class gives its share, at least one picture. A picture's place depends on
    the seed and its name alone, so it is the same on every machine and in every order.

    Raises BadData where a class has only one picture, or there is nothing to learn from.
    """
    if "val" in pictures.splits and "train" in pictures.splits:
        return pictures
    kept = {name: part for name, part in pictures.splits.items() if name == "test"}
    whole = pictures.part("train", "all")
    groups: dict[str, list[Picture]] = defaultdict(list)
    for picture in whole:
        groups[str(picture.label)].append(picture)
    chosen: set[str] = set()
    for label, group in groups.items():
        if len(group) < 2:
            raise BadData(
                f"{pictures.name}: class {label!r} has one picture; it takes two, "
                "one to learn from and one to check on"
            )
        count = min(len(group) - 1, max(1, round(validation_share * len(group))))
        ranked = sorted(group, key=lambda picture: _rank(picture, seed))
        chosen.update(picture.path for picture in ranked[:count])
    train = tuple(picture for picture in whole if picture.path not in chosen)
    val = tuple(picture for picture in whole if picture.path in chosen)
    return replace(pictures, splits={"train": train, "val": val, **kept})


def list_pictures(paths: Iterable[str | Path]) -> list[Picture]:
    """Pictures without labels: files as they are named, folders with every picture below them, sorted.

    A file that does not exist stays in the list: decoding it says so. Raises BadData for a folder
    without pictures.
    """
    found: list[Picture] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _files(path)
            if not inside:
                raise BadData(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
            found += [Picture(str(file)) for file in inside]
        else:
            found.append(Picture(str(path)))
    return found


def _rank(picture: Picture, seed: int) -> bytes:
    # Class and file name, and not the whole path, so that a folder may move.
    name = f"{seed}/{picture.label}/{Path(picture.path).name}"
    return hashlib.sha256(name.encode()).digest() + picture.path.encode()


def _open_folder(folder: Path) -> PictureSet:
    inside = _folders(folder)
    parts: dict[str, tuple[Picture, ...]] = {}
    if inside and all(child.name.lower() in SPLITS for child in inside):
        for child in inside:
            name = SPLITS[child.name.lower()]
            if name in parts:
                raise BadData(f"{folder}: holds the part {name} twice, the second time as {child.name}; keep one")
            parts[name] = _labelled(child)
    else:
        mixed = [child.name for child in inside if child.name.lower() in ("train", "val", "valid", "validation")]
        if mixed:
            others = [child.name for child in inside if child.name.lower() not in SPLITS]
            raise BadData(
                f"{folder}: holds {', '.join(mixed)} beside {', '.join(others[:3])}; "
                "are these parts or classes? Keep only parts, or only classes, at this level"
            )
        parts["all"] = _labelled(folder)
    labels = sorted({str(picture.label) for part in parts.values() for picture in part})
    return PictureSet(str(folder), tuple(labels), parts)


def _labelled(folder: Path) -> tuple[Picture, ...]:
    """Pictures of each subfolder under that folder's name."""
    classes = _folders(folder)
    if not classes:
        loose = len(_files(folder))
        raise BadData(
            f"{folder}: has no subfolders, and each class needs one with its pictures"
            + (f" ({loose} pictures lie loose here)" if loose else "")
        )
    pictures = []
    for child in classes:
        files = _files(child)
        if not files:
            raise BadData(f"{child}: holds no pictures; remove the folder or fill it")
        pictures += [Picture(str(file), child.name) for file in files]
    return tuple(pictures)


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith((".", "__")))


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _open_digits() -> PictureSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "the digits", "train") from problem
    bunch = load_digits()
    # 17 levels of ink, 0 to 16, black on white turned to white on black as scikit-learn has them.
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    pictures = [
        Picture(f"digits/{index:04d}", str(label), np.repeat(image[:, :, None], 3, axis=2))
        for index, (image, label) in enumerate(zip(grey, bunch.target, strict=True))
    ]
    labels = tuple(str(digit) for digit in range(10))
    whole = PictureSet("digits", labels, {"all": tuple(pictures)})
    # The test part is set apart first and never depends on a run's seed.
    held_out = divide(whole, validation_share=0.2, seed=0)
    rest = PictureSet("digits", labels, {"all": held_out.splits["train"]})
    parts = divide(rest, validation_share=0.125, seed=1).splits
    return replace(whole, splits={**parts, "test": held_out.splits["val"]})


def typical_side(pictures: Sequence[Picture], *, most: int = 100) -> int:
    """Median short side in pixels of up to `most` of the pictures, evenly taken; 224 where none can be read."""
    step = max(1, len(pictures) // most)
    sides = [side for picture in pictures[::step] if (side := picture.short_side())]
    return int(np.median(sides)) if sides else 224
