"""The files and folders below a folder: links are followed, and skipped files are counted."""

import errno
import os
from collections import deque
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Literal

from vggkit.errors import BadData
from vggkit.images.file_kinds import FIRST_BYTES, is_image_start, is_junk, tell_by_name
from vggkit.images.omissions import Reading

Kind = Literal["folder", "linked folder", "file", "broken", "loop", "other"]


def walk(folder: Path, reading: Reading, *, wanted: tuple[str, ...] = ()) -> Iterator[Path]:
    """Every file below a folder and in linked folders, each folder once; raises BadData where one cannot be read.

    In memory are the names of one folder and of those it lies in, and a number for each folder that was entered.
    Hidden files and folders are skipped. Linked folders come last: a folder that also lies here itself goes by
    its own name. A link that leads nowhere is a file where its name says image, or ends in one of `wanted`: reading
    it reports what is wrong.
    """
    entered = {_number(folder)}
    linked: deque[Path] = deque()
    stack = [iter(_list(folder, reading, wanted))]
    while stack or linked:
        if not stack:
            following = linked.popleft()
            if _enter(following, entered, reading):
                stack.append(iter(_list(following, reading, wanted)))
            continue
        path, kind = next(stack[-1], (None, "other"))
        if path is None:
            stack.pop()
        elif kind == "linked folder":
            linked.append(path)
        elif kind != "folder":
            yield path
        elif _enter(path, entered, reading):
            stack.append(iter(_list(path, reading, wanted)))


def iterate_files(folder: Path, reading: Reading) -> Iterator[Path]:
    """Every image file below a folder, in the order of `walk`; broken links too, which decoding reports."""
    return (path for path in walk(folder, reading) if is_image(path, reading))


def is_image(path: Path, reading: Reading) -> bool:
    """Whether a file is an image, by its extension, or by its first bytes if that is unknown; else counted."""
    kind = tell_by_name(path.name)
    if kind == "unknown":
        try:
            with path.open("rb") as file:
                kind = "image" if is_image_start(file.read(FIRST_BYTES)) else "other"
        except OSError:
            reading.omit("unreadable", path)
            return False
    if kind == "other":
        reading.omit("not-an-image", path)
    return kind == "image"


def _list(folder: Path, reading: Reading, wanted: tuple[str, ...] = ()) -> list[tuple[Path, Kind]]:
    """The entries of a folder, sorted; hidden and special files, circular and broken links are only counted."""
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, _tell_kind(entry)) for entry in entries if not is_junk(entry.name))
    except OSError as problem:
        raise BadData(f"{problem.filename}: cannot be read ({problem.strerror})") from problem
    found: list[tuple[Path, Kind]] = []
    for name, kind in names:
        path = folder / name
        if name.startswith("."):
            reading.omit("hidden", path)
        elif kind == "linked folder" and _leads_back(path):
            reading.omit("link-loop", _describe_link(path))
        elif (
            kind in ("folder", "linked folder", "file")
            or tell_by_name(name) == "image"
            or (name.lower().endswith(wanted))
        ):
            found.append((path, kind))
        elif kind == "other":
            reading.omit("not-a-file", path)
        else:
            reading.omit("broken-link" if kind == "broken" else "link-loop", _describe_link(path))
    return found


def _tell_kind(entry: os.DirEntry[str]) -> Kind:
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        if entry.is_dir():
            return "linked folder"
        if entry.is_file():
            return "file"
        return "broken" if entry.is_symlink() else "other"
    except OSError as problem:
        return "loop" if problem.errno == errno.ELOOP else "broken"


def _leads_back(link: Path) -> bool:
    """Whether a linked folder is one that the link itself lies in."""
    return Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))


def _describe_link(link: Path) -> str:
    try:
        return f"{link} -> {link.readlink()}"
    except OSError:
        return str(link)


def _enter(folder: Path, entered: set[Hashable], reading: Reading) -> bool:
    """Whether a folder was not entered before, under any name."""
    number = _number(folder)
    if number in entered:
        reading.omit("seen-again", folder)
        return False
    entered.add(number)
    return True


def _number(folder: Path) -> Hashable:
    try:
        found = folder.stat()
    except OSError as problem:
        raise BadData(f"{folder}: cannot be read ({problem.strerror})") from problem
    return (found.st_dev, found.st_ino) if found.st_ino else os.path.realpath(folder)


def list_subfolders(folder: Path, reading: Reading) -> list[Path]:
    """The folders in a folder, linked ones too; files beside them are in no class, and counted."""
    inside = []
    for path, kind in _list(folder, reading):
        if kind in ("folder", "linked folder"):
            inside.append(path)
        elif is_image(path, reading):
            reading.omit("beside-classes", path)
    return inside
