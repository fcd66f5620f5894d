"""A cleaned table of a dataset: wrong entries are left out, and no image is changed."""

import os
from collections import Counter
from pathlib import Path
from typing import Final

from vggkit.data_checks.findings import Case, Diagnosis
from vggkit.errors import BadOutput
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.sources.locations import is_address
from vggkit.images.sources.tables import USUAL
from vggkit.table_files import Kind, stream_columns

HELD_OUT_FIRST: Final = ("test", "val")
"""Of an image that is in several splits, the copy in the first of these stays: figures stay comparable."""


def choose_removals(diagnosis: Diagnosis) -> dict[int, str]:
    """The images to leave out, by their `id`, each with the reason.

    - unreadable ones;
    - every copy of one that is in more than one class;
    - of one that is in more than one split, the copies outside test, else outside val;
    - of exact copies inside a split, all but the first.

    Near duplicates inside a split stay, and so do likely wrong labels, which need a human decision. Where the
    dataset is not divided yet, near duplicates get a group (`tie_copies`), which keeps them in one split.
    """
    removed: dict[int, str] = {}

    def remove(case: Case, reason: str) -> None:
        for member in case.members:
            removed.setdefault(id(member.image), reason)

    cases = {finding.kind: finding.cases for finding in diagnosis.findings}
    for case in cases.get("unreadable", ()):
        remove(case, "unreadable")
    for case in cases.get("contradiction", ()):
        remove(case, "in more than one class")
    for case in cases.get("leakage", ()):
        splits = {member.split for member in case.members}
        stays = next((split for split in HELD_OUT_FIRST if split in splits), min(splits))
        for member in case.members:
            if member.split != stays:
                removed.setdefault(id(member.image), f"also in {stays}")
    for case in cases.get("duplicate", ()):
        seen: set[str] = set()
        for member in case.members:
            if id(member.image) in removed:
                continue
            if member.split in seen:
                removed[id(member.image)] = "a copy"
            seen.add(member.split)
    return removed


def tie_copies(images: ImageDataset, diagnosis: Diagnosis) -> dict[int, str]:
    """The group of each image, by its `id`, that has one or is a near duplicate of another image.

    Groups whose images are nearly the same become one.
    """
    every = [image for split in images.splits.values() for image in split]
    names = {image.group for image in every if image.group is not None}
    joined: dict[str, str] = {}

    def find(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    groups = {id(image): image.group for image in every if image.group is not None}
    finding = diagnosis.find("near-duplicate")
    for number, case in enumerate(finding.cases if finding else (), start=1):
        new = next(name for name in (f"copies {number}", f"near copies {number}") if name not in names)
        tied = sorted({find(groups[id(m.image)]) for m in case.members if id(m.image) in groups}) or [new]
        joined.update(dict.fromkeys(tied[1:], tied[0]))
        for member in case.members:
            groups.setdefault(id(member.image), tied[0])
    return {image: find(name) for image, name in groups.items()}


def write_clean_table(images: ImageDataset, diagnosis: Diagnosis, table: str | Path) -> dict[str, int]:
    """Write a table of the images that stay: path, label, split and group where there are such, and a note.

    Of images with several labels it has a column of 0 and 1 for each class in place of the label.

    Paths are relative to the table's folder where they can be. The note names the likelier class
    of an image whose label may be wrong. `open_dataset` reads the table.

    Returns how many images were left out, by reason. Raises BadOutput where it cannot be
    written, or images have no files that it could name.
    """
    table = Path(table)
    removed = choose_removals(diagnosis)
    for image in (image for split in images.splits.values() for image in split):
        if image.pixels is not None:
            raise BadOutput(f"{image.path}: has no file, and a table names files; --fix is for images with files")
        if not image.path.isprintable() and not _is_text(image.path):
            removed.setdefault(id(image), "a name that is not text")
    mislabelled = diagnosis.find("mislabelled")
    notes = {
        id(case.members[0].image): f"looks like {case.suggestion}"
        for case in (mislabelled.cases if mislabelled else ())
    }
    divided = "all" not in images.splits
    groups = tie_copies(images, diagnosis)
    grouped = bool(groups)
    several = images.task == "multi-label"
    kinds: dict[str, Kind] = {"path": "path"}
    kinds |= dict.fromkeys(_list_columns(images), "count") if several else {"label": "text"}
    kinds |= {name: "text" for name, is_there in (("split", divided), ("group", grouped)) if is_there}
    kinds["note"] = "text"
    with stream_columns(table, kinds) as append:
        for name, split in images.splits.items():
            remaining = [image for image in split if id(image) not in removed]
            append(
                {
                    "path": [_name(image, table) for image in remaining],
                    **(
                        {each: [int(each in image.classes) for image in remaining] for each in images.labels}
                        if several
                        else {"label": [image.label for image in remaining]}
                    ),
                    "split": [name] * len(remaining),
                    "group": [groups.get(id(image), "") for image in remaining],
                    "note": [notes.get(id(image), "") for image in remaining],
                }
            )
    return dict(Counter(removed.values()))


def _list_columns(images: ImageDataset) -> tuple[str, ...]:
    """The classes, as names of columns; raises BadOutput where one is the name of a column that means another."""
    taken = {"note", *(name for names in USUAL.values() for name in names)}
    caught = [label for label in images.labels if label.lower() in taken]
    if caught:
        raise BadOutput(
            f"the class {caught[0]!r} is the name of a column that means another, and a table of several labels "
            "has a column for each class; rename the class"
        )
    return images.labels


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(image: ImageSample, table: Path) -> str:
    if is_address(image.path):
        return image.path
    file, mark, inside = (image.path, "", "") if image.storage is None else image.path.partition("#")
    try:
        file = Path(os.path.relpath(Path(file).absolute(), table.parent.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        file = str(Path(file).absolute())
    return file + mark + inside
