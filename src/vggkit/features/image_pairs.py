"""Which images are compared with which, and what comes of it. No torch here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vggkit.errors import BadData, BadInput
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, list_sources, take_one
from vggkit.images.omissions import Reading
from vggkit.images.sources.folders import iterate_files
from vggkit.table_files import Kind, stream_columns


@dataclass(frozen=True, slots=True)
class ImageDistance:
    """The distance of two images."""

    first: str
    """The first image's file, or its name."""
    second: str
    """The second's."""
    distance: float | None
    """0 for equal images; None where there is a problem."""
    problem: str | None = None
    """Why the two could not be compared."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `problem` only where there is one."""
        values = {"first": self.first, "second": self.second, "distance": self.distance}
        return values | ({"problem": self.problem} if self.problem else {})


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances of pairs of images."""

    metric: str
    """`lpips`, `dists`, `gram` or `content`."""
    pairs: tuple[ImageDistance, ...]
    """Every pair, in the order of the first images."""
    only_first: tuple[str, ...] = ()
    """Images of the first folder whose name no image of the second has."""
    only_second: tuple[str, ...] = ()
    """The reverse."""

    @property
    def mean(self) -> float | None:
        """The mean distance of the pairs that were compared; None where there are none."""
        found = [each.distance for each in self.pairs if each.distance is not None]
        return sum(found) / len(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "metric": self.metric,
            "mean": self.mean,
            "pairs": [each.to_dict() for each in self.pairs],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }

    def write(self, path: str | Path) -> None:
        """Write the pairs to a table, with the columns first, second, distance and problem.

        Args:
            path: .csv, .parquet, .jsonl or .json.

        Raises BadOutput, and MissingExtra for Parquet without pyarrow.
        """
        kinds: dict[str, Kind] = {"first": "path", "second": "path", "distance": "number", "problem": "text"}
        with stream_columns(path, kinds) as append:
            append({name: [getattr(each, name) for each in self.pairs] for name in kinds})


class ImagePairs(NamedTuple):
    """The pairs, and the names that have no partner."""

    pairs: Sequence[tuple[ImageSample, ImageSample]]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()


def pair_images(first: ImageSources, second: ImageSources) -> ImagePairs:
    """Images of two folders with the same name, without its ending and relative to the folder; else one by one.

    Raises BadData for folders that have no name in common, and for two images of one name in a folder, and BadInput
    for a folder and an image, and for as many images as are not on the other side.
    """
    folders = [_find_folder(each) for each in (first, second)]
    if folders[0] is not None and folders[1] is not None:
        return _pair_by_name(folders[0], folders[1])
    for folder, other in (folders, folders[::-1]):
        if folder is not None and other is None:
            raise BadInput(f"two images or two folders are compared; {folder} is a folder, and the other is not")
    ours, theirs = (
        [take_one(each, name=f"image {number}") for number, each in enumerate(list_sources(given))]
        for given in (first, second)
    )
    if len(ours) != len(theirs):
        raise BadInput(f"as many images as images are compared; there are {len(ours)} and {len(theirs)}")
    return ImagePairs(list(zip(ours, theirs, strict=True)))


def _find_folder(given: ImageSources) -> Path | None:
    return Path(given) if isinstance(given, str | os.PathLike) and Path(given).is_dir() else None


def _pair_by_name(first: Path, second: Path) -> ImagePairs:
    ours, theirs = _name_images(first), _name_images(second)
    common = [name for name in ours if name in theirs]
    if not common:
        raise BadData(f"{first} and {second} have no images of the same name, their endings aside")
    return ImagePairs(
        [(ImageSample(str(ours[name])), ImageSample(str(theirs[name]))) for name in common],
        tuple(str(path) for name, path in ours.items() if name not in theirs),
        tuple(str(path) for name, path in theirs.items() if name not in ours),
    )


def _name_images(folder: Path) -> dict[str, Path]:
    """The images below a folder, sorted by the name that pairs them."""
    found: dict[str, Path] = {}
    for path in sorted(iterate_files(folder, Reading())):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise BadData(f"{found[name]} and {path} have one name; which is compared is not clear")
        found[name] = path
    return found
