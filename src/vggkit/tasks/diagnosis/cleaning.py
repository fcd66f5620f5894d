"""A cleaned table of a collection: what is wrong is left out, and no picture is touched."""

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Final

from vggkit.errors import BadOutput
from vggkit.images.pictures import Picture, PictureSet
from vggkit.images.sources.places import is_address
from vggkit.tasks.diagnosis.findings import Case, Diagnosis
from vggkit.writing import whole_file

HELD_OUT_FIRST: Final = ("test", "val")
"""Of a picture that is in several parts, the copy in the first of these stays: figures stay comparable."""


def choose_removals(diagnosis: Diagnosis) -> dict[int, str]:
    """The pictures to leave out, by their `id`, each with the reason.

    - unreadable ones;
    - every copy of one that is in more than one class;
    - of one that is in more than one part, the copies outside the part that is measured on;
    - of exact copies inside a part, all but the first.

    Near duplicates inside a part stay, and so do likely wrong labels: people decide on those.
    """
    removed: dict[int, str] = {}

    def remove(case: Case, reason: str) -> None:
        for member in case.members:
            removed.setdefault(id(member.picture), reason)

    cases = {finding.kind: finding.cases for finding in diagnosis.findings}
    for case in cases.get("unreadable", ()):
        remove(case, "unreadable")
    for case in cases.get("contradiction", ()):
        remove(case, "in more than one class")
    for case in cases.get("leakage", ()):
        parts = {member.part for member in case.members}
        stays = next((part for part in HELD_OUT_FIRST if part in parts), min(parts))
        for member in case.members:
            if member.part != stays:
                removed.setdefault(id(member.picture), f"also in {stays}")
    for case in cases.get("duplicate", ()):
        seen: set[str] = set()
        for member in case.members:
            if id(member.picture) in removed:
                continue
            if member.part in seen:
                removed[id(member.picture)] = "a copy"
            seen.add(member.part)
    return removed


def write_clean_table(pictures: PictureSet, diagnosis: Diagnosis, table: str | Path) -> dict[str, int]:
    """Write a table of the pictures that stay: path, label, split and group where there are such, and a note.

    Paths are relative to the table's folder where they can be. The note names the likelier class
    of a picture whose label may be wrong. `open_pictures` reads the table.

    Returns how many pictures were left out, by reason. Raises BadOutput where it cannot be
    written, or pictures have no files that it could name.
    """
    table = Path(table)
    removed = choose_removals(diagnosis)
    for picture in (picture for part in pictures.splits.values() for picture in part):
        if picture.pixels is not None:
            raise BadOutput(
                f"{picture.path}: has no file, and a table names files; --fix is for pictures with files"
            )
        if not picture.path.isprintable() and not _is_text(picture.path):
            removed.setdefault(id(picture), "a name that is not text")
    mislabelled = diagnosis.find("mislabelled")
    notes = {
        id(case.members[0].picture): f"looks like {case.suggestion}"
        for case in (mislabelled.cases if mislabelled else ())
    }
    divided = "all" not in pictures.splits
    grouped = any(picture.group is not None for part in pictures.splits.values() for picture in part)
    with whole_file(table) as beside, open(beside, "w", encoding="utf-8", newline="") as file:
        plain = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(["path", "label", *["split"] * divided, *["group"] * grouped, "note"])
        for name, part in pictures.splits.items():
            for picture in part:
                if id(picture) not in removed:
                    where = [*[name] * divided, *[picture.group or ""] * grouped]
                    cells = [_name(picture, table), str(picture.label), *where, notes.get(id(picture), "")]
                    # Readers may take spaces around a cell for none of it, and \r for the end of a line.
                    exact = all(cell == cell.strip() and "\r" not in cell for cell in cells)
                    (plain if exact else quoted).writerow(cells)
    return dict(Counter(removed.values()))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(picture: Picture, table: Path) -> str:
    if is_address(picture.path):
        return picture.path
    file, mark, inside = (picture.path, "", "") if picture.storage is None else picture.path.partition("#")
    try:
        file = Path(os.path.relpath(Path(file).absolute(), table.parent.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        file = str(Path(file).absolute())
    return file + mark + inside
