"""Finds the files that a table or a list names: beside it, or where the table was moved or copied to.

A way of finding them is chosen once, by the first rows, and holds for all: a way that changed from row to row could
pair an image with the label of another one.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Final

from vggkit.errors import BadData
from vggkit.images.file_kinds import tell_by_name
from vggkit.images.omissions import Reading
from vggkit.images.sources.folders import walk
from vggkit.images.sources.locations import is_address

Find = Callable[[str], str]
"""The file of a path as it is written; a path where it would be, where there is none."""

MOST_FILES: Final = 2_000_000
"""Files below a folder that are looked through for names without a folder."""


def find_base(folder: Path, root: str | None, *, name: str) -> Path:
    """The folder that a table's paths are relative to: `root` as it is, or beside the table; raises BadData."""
    if root is None:
        return folder
    for place in (Path(root), folder / root):
        if place.is_dir():
            return place
    raise BadData(f"{name}: there is no folder {root}, here or beside the table, for --root")


def choose_way(
    written: Sequence[str], base: Path, *, name: str, suffix: str | None = None, needed: bool = True
) -> Find:
    """How the paths of a table are found, by its first paths.

    They are tried as they are written, relative to `base`; then without the folders that they begin with, which may
    be those of another machine; then by their last names, with or without an ending, anywhere below `base`, in the
    folder that is written last. Of absolute paths of another machine no folder need be there if all files are.

    Args:
        written: The first paths.
        base: The folder that they are relative to.
        name: What errors call the table.
        suffix: An ending that the paths lack, such as `.jpg` or `jpg`.
        needed: Whether one of the files must exist.

    Raises BadData where a name is that of several files, or none of the files exists and one is needed.
    """
    if suffix and "." not in suffix and tell_by_name(f"x.{suffix}") == "image":
        suffix = f".{suffix}"

    def plain(path: str) -> str:
        return locate(path + (suffix or ""), base)

    if not written or any(is_there(plain(path)) for path in written):
        return plain
    for left_out in range(1, max(len(_split(path)) for path in written)):

        def shorten(path: str, left_out: int = left_out) -> str:
            parts = _split(path + (suffix or ""))
            return str(base.joinpath(*parts[left_out:])) if len(parts) > left_out else plain(path)

        if any(is_there(shorten(path)) for path in written):
            _demand_distinct(written, shorten, name)
            return _keep_unfound(shorten, plain)
    if found := _look_below(written, base, suffix, name):
        return found
    if needed:
        raise BadData(
            f"{name}: none of its images exists, the first is {plain(written[0])}; paths are read from "
            f"{base}. Name the folder that they are relative to with --root, and an ending that they lack with "
            "--suffix .jpg"
        )
    return plain


def locate(written: str, folder: Path) -> str:
    """The file that a table or list means, relative to a folder; or an address.

    Where there is none of just this name, one with Windows' backslashes, without outer spaces, or in the other form
    of Unicode is taken: macOS writes names decomposed. A Windows path with a drive is given back as it is.
    """
    if is_address(written):
        return written
    path = folder / written
    if path.exists():
        return str(path)
    for other in (written.strip(), *(unicodedata.normalize(form, written) for form in ("NFC", "NFD"))):
        for name in (other, "/".join(PureWindowsPath(other).parts) if "\\" in other else other):
            if name != written and (folder / name).exists():
                return str(folder / name)
    if PureWindowsPath(written).drive:
        return written
    return str(folder / Path(*PureWindowsPath(written).parts)) if "\\" in written else str(path)


def keep_written(written: str, path: str) -> str | None:
    """A path of another machine as a table has it, where the file was found by another path; else None."""
    written = written.strip()
    return written if path != written and _is_absolute(written) else None


def is_there(path: str) -> bool:
    """Whether there is such a file, or an archive that holds it; addresses are not checked."""
    # The part after "#" is inside an archive.
    return is_address(path) or any(Path(place).exists() for place in (path, path.partition("#")[0]))


def _split(written: str) -> tuple[str, ...]:
    """Its folders and its name, without a drive and without `.`."""
    kind = PureWindowsPath if "\\" in written or PureWindowsPath(written).drive else PurePath
    path = kind(written.strip())
    return tuple(part for part in path.parts if part not in (path.anchor, ".."))


def _is_absolute(written: str) -> bool:
    """Whether a path begins at a root or with a drive, of this or of another system."""
    return bool(PureWindowsPath(written.strip()).anchor)


def _keep_unfound(find: Find, plain: Find) -> Find:
    """As `find`; a path that leads to no file is shown as it was written."""

    def found(path: str) -> str:
        place = find(path)
        return place if is_there(place) else plain(path)

    return found


def _demand_distinct(written: Iterable[str], find: Find, name: str) -> None:
    firsts: dict[str, str] = {}
    for path in written:
        other = firsts.setdefault(find(path), path)
        if other != path and is_there(find(path)):
            raise BadData(
                f"{name}: {other} and {path} are not there, and {find(path)} could be either. Name the folder that "
                "the paths are relative to with --root"
            )


def _look_below(written: Sequence[str], base: Path, suffix: str | None, name: str) -> Find | None:
    """Files anywhere below `base` by their last names, which may lack the ending."""
    index: dict[str, list[Path]] = {}
    for number, file in enumerate(walk(base, Reading())):
        if number == MOST_FILES:
            return None
        if tell_by_name(file.name) == "image":
            for key in {file.name, file.stem}:
                index.setdefault(key, []).append(file)

    def match(path: str, *, anywhere: bool = False) -> list[Path]:
        parts = _split(path + (suffix or ""))
        found = index.get(parts[-1], []) if parts else []
        # Of the folders that are written at least the nearest must be there, as it may be the class.
        return [file for file in found if anywhere or len(parts) == 1 or file.parent.name == parts[-2]]

    anywhere = False
    if not any(match(path) for path in written):
        anywhere = all(_is_absolute(path) and match(path, anywhere=True) for path in written)
        if not anywhere:
            return None

    def find(path: str) -> str:
        found = match(path, anywhere=anywhere)
        if len(found) > 1:
            raise BadData(
                f"{name}: {path} could be {found[0]} or {found[1]}. Name the folder that the paths are relative to "
                "with --root, and the ending with --suffix"
            )
        return str(found[0]) if found else locate(path + (suffix or ""), base)

    _demand_distinct(written, find, name)
    return find
