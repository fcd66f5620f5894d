"""Opening images and datasets, wherever and however they are stored."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

from vggkit.errors import BadData, UnknownName
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.file_kinds import SUFFIXES
from vggkit.images.given import ImageSources, lack_images, take_sources
from vggkit.images.labelled import LabelledImages, name_given, take_labelled
from vggkit.images.lazy_images import stream_images
from vggkit.images.omissions import Reading
from vggkit.images.sources import hub_sets, parquet, public_sets, tables, tar_shards
from vggkit.images.sources.folders import is_image, iterate_files, walk
from vggkit.images.sources.layouts import read_folder
from vggkit.images.sources.locations import Place, Whole, expand, is_address, is_pattern
from vggkit.images.sources.shards.dataset import open_sharded
from vggkit.images.sources.shards.manifest import find_manifest, read_manifest
from vggkit.images.sources.tables import Columns
from vggkit.images.storages import HeldBytes

LIST_ENDINGS: Final = (".txt", ".lst")
STANDARD_INPUT: Final = "-"
FILE_ENDINGS: Final = (*SUFFIXES, *LIST_ENDINGS, *tables.ENDINGS, *parquet.ENDINGS, *tar_shards.ENDINGS)
"""Of addresses that are files; others are folders."""

Labelled = Iterator[tuple[str | None, ImageSample]]
"""(Split, image) of each."""


def open_dataset(
    place: LabelledImages,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> ImageDataset:
    """The dataset of labelled images at a place or in memory; its images can be read in any order.

    Args:
        place: One of these:

            - a folder with a subfolder for each class, or with `train`, `val` (`valid`,
              `validation`, `dev`) and `test` that hold them; links are followed, and a file whose name
              leaves open whether it is an image is recognised by its first bytes;
            - a table, `.csv` or `.tsv`: path and label, a split where wanted, relative to the table's folder;
            - Parquet: such a table, or images in it as Hugging Face's data sets have them; a
              file, a folder or a pattern of files;
            - tar shards as WebDataset writes them: a file, a folder, or a pattern such as
              `train-{000..009}.tar`; at any address that fsspec reaches too (`https://…`, `s3://…`);
            - shards with a manifest, as `vggkit shard` writes them: a folder, here or at an address, or its
              `shards.json`; their images are not held in memory, whatever their number;
            - a data set of the Hugging Face hub: `hf://datasets/owner/name`;
            - a name: `digits`, scikit-learn's 1,797 real handwritten digits, or one of torchvision's
              data sets (`cifar10`, `flowers102`, `food101`, `imagenette` …), downloaded once;
            - `-`: a table on standard input;
            - from Python, pairs of an image and its label, a torch or torchvision Dataset of such pairs, arrays
              `(images, labels)`, or a mapping of these by split; see `labelled.take_labelled`.
        columns: The names of a table's columns, where they are not the usual ones, and whether images have several
            labels.

    A table whose cells hold lists of labels, or several by `columns.label_separator`, is multi-label, as is one
    with a column of 0 and 1 for each class where some row has not exactly one 1: each image has its labels, perhaps
    none, in `ImageSample.labels`. A folder is always single-label.

    Files that are not images of the dataset are counted in `skipped`.

    Raises BadData where no labelled images are found or a table gives several labels to an image, UnknownName
    for a name that is none of these, BadInput for ambiguous images or labels in memory,
    BadDownload, BadOutput and MissingExtra.

    >>> import numpy as np
    >>> black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    >>> open_dataset([(black, "night"), (white, "day")]).labels
    ('day', 'night')
    """
    if isinstance(place, ImageDataset):
        return place
    reading = Reading()
    if not isinstance(place, str | Path):
        return ImageDataset.of(name_given(place), take_labelled(place), reading=reading, task=columns.task)
    if (manifest := _find_manifest(str(place), columns)) is not None:
        return open_sharded(manifest, name=str(place))
    return ImageDataset.of(str(place), _read(str(place), columns, reading), reading=reading, task=columns.task)


def iterate_images(
    places: Iterable[str | Path],
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    reading: Reading | None = None,
) -> Iterator[ImageSample]:
    """Images, labelled or not, one by one in the order of the places.

    Archives that are remote or compressed are read once, front to back, each image with its bytes.

    Args:
        places: Any place that `open_dataset` takes, and also single images, folders without classes (every
            image below them), lists of files (`.txt`, a path a line), and `-`: an image, a
            table or a list of files on standard input.
        columns: As for `open_dataset`.
        reading: Counts the files that are skipped.

    A file that does not exist counts as an image; decoding it reports that. Raises BadData for a place
    without images.
    """
    for place in map(str, places):
        met, empty = Reading(is_own=reading.is_own) if reading is not None else Reading(), True
        for image in _iterate(place, columns, met):
            empty = False
            yield image
        if empty:
            omitted = "; ".join(omission.describe() for omission in met.list_omissions())
            raise BadData(f"{place}: holds no images ({omitted or ', '.join(sorted(SUFFIXES))})")
        if reading is not None:
            reading.take(met)


def is_streamed(place: str | Path) -> bool:
    """Whether the images of a place come with their bytes, so that a list of them would hold all of these."""
    name = str(place)
    return _is_shards(name) and (is_address(name) or not name.lower().endswith(".tar"))


def gather_images(
    images: ImageSources,
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    reading: Reading | None = None,
) -> Iterator[ImageSample]:
    """Images, and those of places as `iterate_images` finds them, in the order given; raises BadInput too."""
    for image in take_sources(images):
        if isinstance(image, ImageSample):
            yield image
        else:
            yield from iterate_images([image], columns=columns, reading=reading)


def iterate_samples(images: ImageSources, reading: Reading) -> Iterator[ImageSample]:
    """As `gather_images`, but the first image is found at once: raises BadInput and BadData if there is none."""
    found = gather_images(images, reading=reading)
    first = next(found, None)
    if first is None:
        raise lack_images(images)
    return chain([first], found)


def find_images(paths: Iterable[str]) -> Iterator[ImageSample]:
    """Images by the names that they were given, members of archives and rows of Parquet too; raises BadData."""
    for path in paths:
        yield from _without_split(_find_inside(iter([(None, ImageSample(path))]), Columns()))


def count_images(
    images: Iterable[str | Path | ImageSample],
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
) -> int | None:
    """The number of images that `gather_images` gives, for estimates of the time left; they are not held in memory.

    None where counting would fetch or read all of them, or where they can be read only once.
    """
    images = list(images)
    places = [str(place) for place in images if isinstance(place, str | Path)]
    if len(places) == len(images) and all(manifests := [_find_manifest(place, columns) for place in places]):
        return sum(read_manifest(str(manifest))[0].images for manifest in manifests)
    if any(is_streamed(place) or is_address(place) or place == STANDARD_INPUT for place in places):
        return None
    return sum(1 for _ in gather_images(images, columns=columns))


def list_images(places: Iterable[str | Path], *, columns: Columns = Columns()) -> list[ImageSample]:  # noqa: B008
    """The images of `iterate_images` as a list."""
    return list(iterate_images(places, columns=columns))


def _iterate(place: str, columns: Columns, reading: Reading) -> Iterator[ImageSample]:
    path, lower = Path(place), place.lower()
    if (manifest := _find_manifest(place, columns)) is not None:
        splits = open_sharded(manifest, name=place).splits.values()
        return chain.from_iterable(stream_images(split) for split in splits)
    if is_streamed(place):
        return _without_split(tar_shards.stream_shards(expand(place), reading))
    if path.is_dir() and not _containers(path, Reading()):
        return (ImageSample(str(file)) for file in iterate_files(path, reading))
    if lower.endswith(LIST_ENDINGS) and path.is_file():
        return _read_list(path)
    if path.suffix.lower() in SUFFIXES and is_pattern(place) and not is_address(place):
        return (ImageSample(str(file)) for file in expand(place))
    if is_address(place) and path.suffix.lower() in SUFFIXES:
        return iter([ImageSample(place, storage=Whole(Place(place)))])
    together = (*tables.ENDINGS, *parquet.ENDINGS, *tar_shards.ENDINGS)
    if not lower.endswith(together) and (path.is_file() or path.suffix.lower() in SUFFIXES):
        return iter([ImageSample(place)])
    return _without_split(_read(place, columns, reading))


def _find_manifest(place: str, columns: Columns) -> str | None:
    """The manifest of shards at a place, None where it is another kind of place; raises BadData for columns."""
    if place == STANDARD_INPUT or (place.lower().startswith("hf:") and not hub_sets.INSIDE.fullmatch(place)):
        return None
    found = find_manifest(place, file_endings=FILE_ENDINGS)
    if found is not None:
        _demand_no_columns(place, columns)
    return found


def _read(place: str, columns: Columns, reading: Reading) -> Labelled:
    """The images of a place with their splits, in the order in which they are stored."""
    path, lower = Path(place), place.lower()
    if not place:
        raise BadData("a place of images must be named: a folder, a table, an archive, an address, or a name")
    tabular = lower.endswith((*tables.ENDINGS, *parquet.ENDINGS)) or path.is_dir() or lower.startswith("hf:")
    if not tabular and place != STANDARD_INPUT:
        _demand_no_columns(place, columns)
    if place in public_sets.NAMES and not path.exists():
        return public_sets.read_named(place)
    if place == STANDARD_INPUT:
        return _read_standard_input(columns, reading)
    if lower.startswith("hf:") and not hub_sets.INSIDE.fullmatch(place):
        return hub_sets.read_hub_set(place, columns, reading)
    if path.is_dir():
        held = _containers(path, reading)
        if not any(str(file).lower().endswith(parquet.ENDINGS) for file in held):
            _demand_no_columns(place, columns)
        return _read_files(held, columns, reading) if held else read_folder(path, reading)
    if _is_shards(place) or lower.endswith(parquet.ENDINGS):
        return _read_files(expand(place), columns, reading)
    if lower.endswith(tables.ENDINGS) and not is_address(place):
        if not path.is_file():
            raise BadData(f"{place}: no such file")
        return _find_inside(tables.read_csv(path, columns, reading), columns)
    raise _refuse(place, path)


def _demand_no_columns(place: str, columns: Columns) -> None:
    """Raise BadData where columns are named of what has none, or several labels are requested of it."""
    if columns.task == "multi-label" or columns.label_separator is not None:
        raise BadData(
            f"{place}: gives each image one label, and several are listed in a table: a row an image, with a "
            "column label such as sun;sea and --label-separator ';', or with a column of 0 and 1 for each class"
        )
    if replace(columns, task=None) != Columns():
        raise BadData(f"{place}: has no columns to be named; they are those of a table or of Parquet")


def _read_files(places: list[Place], columns: Columns, reading: Reading) -> Labelled:
    """Archives or Parquet files; one that has several names, by a link, is read once."""
    once: dict[str, Place] = {}
    for place in places:
        if once.setdefault(os.path.realpath(str(place)) if place.is_local else str(place), place) is not place:
            reading.omit("seen-again", place)
    places = list(once.values())
    tars = [place for place in places if _is_shards(str(place))]
    if tars and len(tars) < len(places):
        raise BadData(
            f"{tars[0]}: lies beside Parquet files; give one kind, such as {Path(str(tars[0])).parent}/*.tar"
        )
    return tar_shards.read_shards(tars, reading) if tars else parquet.read_parquet(places, columns, reading)


def _find_inside(rows: Labelled, columns: Columns) -> Labelled:
    """Rows of a table, those that name a part of an archive or of Parquet (`photos.tar#a.jpg`) found there."""
    inside: dict[str, dict[str, ImageSample]] = {}
    for split, image in rows:
        container = _container(image.path)
        if container is None or Path(image.path).exists():
            yield split, image
            continue
        if container not in inside:
            inside[container] = {found.path: found for _, found in _read(container, columns, Reading())}
        found = inside[container].get(image.path)
        if found is None:
            raise BadData(f"{image.path}: there is no such image in {container}")
        yield (
            split,
            replace(found, label=image.label, labels=image.labels, group=image.group, written=image.written),
        )


def _container(path: str) -> str | None:
    """The archive or table that contains an image, if it is not a file."""
    place, mark, _ = path.partition("#")
    if mark and place.lower().startswith("hf:"):
        return place.rpartition("/")[0]
    return place if mark and place.lower().endswith((*tar_shards.ENDINGS, *parquet.ENDINGS)) else None


def _containers(folder: Path, reading: Reading) -> list[Place]:
    """The archives or Parquet files below a folder that holds no images as files; else none."""
    endings = (*tar_shards.ENDINGS, *parquet.ENDINGS)
    found, met = [], Reading(is_own=reading.is_own)
    for file in walk(folder, met, wanted=endings):
        if file.name.lower().endswith(endings):
            found.append(file)
        elif is_image(file, Reading()):
            return []
    if found:
        reading.take(met)
    return [Place(str(file)) for file in sorted(found)]


def _is_shards(place: str) -> bool:
    return place.lower().partition("?")[0].endswith(tar_shards.ENDINGS)


def _read_standard_input(columns: Columns, reading: Reading) -> Labelled:
    """One image's bytes, or a table, or a list of files."""
    if sys.stdin is None:
        raise BadData("standard input: is closed; pipe an image, a table or a list of files into it")
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise BadData("standard input: is empty; pipe an image, a table or a list of files into it")
    if b"\0" in data[:4096] or data.startswith(b"\xff\xd8"):
        return iter([(None, ImageSample("standard input", storage=HeldBytes(data)))])
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", errors="replace").read()
    header = [cell.strip(' "').lower() for cell in text.lstrip().partition("\n")[0].replace(";", ",").split(",")]
    if any(name in tables.USUAL["path"] or name == columns.path_column for name in header):
        rows = tables.read_rows(io.StringIO(text, newline=""), "standard input", columns, reading)
        return tables.locate_rows(rows, Path(), "standard input", columns)
    lines = io.StringIO(text, newline="")
    return ((None, image) for image in tables.locate_lines(lines, Path(), "standard input"))


def _read_list(path: Path) -> Iterator[ImageSample]:
    with tables.open_text(path) as text:
        yield from tables.locate_lines(text, path.parent, str(path))


def _without_split(labelled: Labelled) -> Iterator[ImageSample]:
    return (image for _, image in labelled)


def _refuse(place: str, path: Path) -> BadData | UnknownName:
    if path.is_file() or is_address(place):
        return BadData(
            f"{place}: is not of a kind that holds labelled images; give a folder with a subfolder for each "
            "class, a table (.csv), Parquet, tar shards, a set of the hub (hf://datasets/owner/name), or a name"
        )
    if path.exists():
        return BadData(f"{place}: is neither a folder nor a file")
    if len(path.parts) == 1 and not path.suffix and not is_pattern(place):
        return UnknownName.of("folder here or a named set of images", place, public_sets.NAMES)
    return BadData(f"{place}: no such folder")
