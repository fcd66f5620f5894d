"""A folder with a subfolder of pictures for each class, or with parts that hold them."""

import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from vggkit.errors import BadData
from vggkit.images.pictures import SUFFIXES, Picture
from vggkit.images.splits import SPLITS


def read_folder(folder: Path) -> Iterator[tuple[str | None, Picture]]:
    """(Part, picture) of a folder that holds a subfolder for each class, or `train`, `val` … that do.

    Raises BadData where classes are missing or empty, or parts stand beside classes.
    """
    inside = _folders(folder)
    if inside and all(child.name.lower() in SPLITS for child in inside):
        parts: list[tuple[str | None, Path]] = [(SPLITS[child.name.lower()], child) for child in inside]
        for (part, child), (other, first) in combinations(parts, 2):
            if part == other:
                raise BadData(
                    f"{folder}: holds the part {part} twice, as {child.name} and as {first.name}; keep one"
                )
    else:
        _refuse_mixture(folder, inside)
        parts = [(None, folder)]
    filled, empty = set(), {}
    for part, place in parts:
        for child in _classes(place):
            files = list_files(child)
            if files:
                filled.add(child.name)
            else:
                empty[child.name] = child
            for file in files:
                yield part, Picture(str(file), child.name)
    # A class that is missing from one part alone is for those who use the parts to judge.
    for name, child in empty.items():
        if name not in filled:
            raise BadData(f"{child}: holds no pictures; remove the folder or fill it")


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, hidden ones aside; raises BadData for a folder that cannot be read."""

    def refuse(problem: OSError) -> None:
        raise BadData(f"{problem.filename}: cannot be read ({problem.strerror})") from problem

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def list_files(folder: Path) -> list[Path]:
    """Every picture's file below a folder, sorted; links that lead nowhere too, and decoding says so."""
    return list(iterate_files(folder))


def iterate_files(folder: Path) -> Iterator[Path]:
    """As `list_files`, one by one: in memory are the names of one folder, and of those it lies in."""
    try:
        with os.scandir(folder) as entries:
            # Folders that are linked are not entered, as `walk` does not.
            names = sorted((entry.name, entry.is_dir(), entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as problem:
        raise BadData(f"{problem.filename}: cannot be read ({problem.strerror})") from problem
    for name, is_folder, entered in names:
        if name.startswith("."):
            continue
        if entered:
            yield from iterate_files(folder / name)
        elif not is_folder and Path(name).suffix.lower() in SUFFIXES:
            yield folder / name


def _refuse_mixture(folder: Path, inside: list[Path]) -> None:
    mixed = [child.name for child in inside if child.name.lower() in ("train", "val", "valid", "validation")]
    if mixed:
        others = [child.name for child in inside if child.name.lower() not in SPLITS]
        raise BadData(
            f"{folder}: holds {', '.join(mixed)} beside {', '.join(others[:3])}; "
            "are these parts or classes? Keep only parts, or only classes, at this level"
        )


def _classes(folder: Path) -> list[Path]:
    classes = _folders(folder)
    if not classes:
        loose = len(list_files(folder))
        raise BadData(
            f"{folder}: has no subfolders, and each class needs one with its pictures"
            + (f" ({loose} pictures lie loose here)" if loose else "")
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(
            child for child in folder.iterdir() if child.is_dir() and not child.name.startswith((".", "__"))
        )
    except OSError as problem:
        raise BadData(f"{folder}: cannot be read ({problem.strerror})") from problem
