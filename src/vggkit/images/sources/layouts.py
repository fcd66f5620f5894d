"""The meaning of a folder's subfolders: classes, splits that hold classes, or classes that hold splits.

Where names and structure do not determine it, the folder is refused with what to do: a split that is read as a
class trains a network to distinguish the splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vggkit.errors import BadData
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Reading
from vggkit.images.sources.folders import iterate_files, list_subfolders
from vggkit.images.split_names import hint_at_split, tell_split

WRAPPERS: Final = frozenset({"images", "image", "imgs", "data", "dataset", "photos", "pictures", "classes"})
"""Names of a folder that is passed through where it is the only one in its folder."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A folder all of whose images are of one class and one split."""

    split: str | None
    """The split; None where the dataset is not divided."""
    label: str
    """The class."""
    folder: Path
    """The folder."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a folder, after descending through folders that only contain another folder."""

    place: Path
    """The folder itself, or the one inside it."""
    folders: tuple[Path, ...]
    """Its subfolders."""
    loose: int
    """Number of images directly in it; what is deeper is not counted."""


def read_folder(folder: Path, reading: Reading) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of a folder that holds a subfolder for each class, or splits that do, or classes with splits.

    Splits are known by the spellings that `tell_split` knows. Images of a split without class folders, such as a
    test set whose labels are secret, are left out where another split has classes, and counted.

    Raises BadData where classes are missing or empty, and where the subfolders could be splits or classes.
    """
    filled, empty = set[str](), dict[str, tuple[Path, Reading]]()
    for branch in _find_branches(folder, reading):
        met, held = Reading(), False
        for file in iterate_files(branch.folder, met):
            held = True
            yield branch.split, ImageSample(str(file), branch.label)
        reading.take(met)
        if held:
            filled.add(branch.label)
        else:
            empty[branch.label] = branch.folder, met
    # A class that is missing from one split alone is checked where the splits are used.
    for name, (child, met) in empty.items():
        if name not in filled:
            omitted = "; ".join(omission.describe() for omission in met.list_omissions())
            raise BadData(
                f"{child}: holds no images; remove the folder or fill it" + (f" ({omitted})" if omitted else "")
            )


def _find_branches(folder: Path, reading: Reading) -> list[Branch]:
    found = _look_into(folder, reading)
    named = {child: split for child in found.folders if (split := tell_split(child.name))}
    others = [child for child in found.folders if child not in named]
    if named and others:
        named_too = others
        others = [child for child in others if _holds_images(child)]
        if others:
            raise BadData(_describe_mixture(found.place, [*named], others))
        for child in named_too:
            reading.omit("without-images", child)
    if named:
        return _read_splits(found.place, named, reading)
    if not found.folders:
        raise _lack_classes(found)
    inside = {child: _look_into(child, Reading()) for child in found.folders}
    if any(tell_split(sub.name) for contents in inside.values() for sub in contents.folders):
        return _read_splits_in_classes(found.place, inside)
    if hinted := _find_hinted_splits(inside):
        for child in found.folders:
            if child not in hinted:
                _leave_out(child, reading)
        return _read_splits(found.place, hinted, reading)
    _refuse_one_class_of_classes(found.place, inside)
    _refuse_same_subfolders(found.place, inside)
    return [Branch(None, child.name, child) for child in found.folders]


def _read_splits(folder: Path, named: Mapping[Path, str], reading: Reading) -> list[Branch]:
    """The classes in each of these folders, which are splits."""
    first: dict[str, Path] = {}
    for child, split in named.items():
        if (other := first.setdefault(split, child)) is not child:
            raise BadData(
                f"{folder}: holds the split {split} twice, as {other.name} and as {child.name}; keep one, call "
                "one of them test, or put the images of both together"
            )
    met = {child: Reading(is_own=reading.is_own) for child in named}
    inside = {child: _look_into(child, met[child]) for child in named}
    divided = [child for child, contents in inside.items() if contents.folders]
    if not divided:
        raise _lack_classes(next(iter(inside.values())))
    known = {sub.name for child in divided if named[child] == "train" for sub in inside[child].folders}
    branches = []
    for child, split in named.items():
        labels = [sub.name for sub in inside[child].folders]
        # Kaggle's `test/unknown`: one folder that is none of several classes holds what has no label.
        unlabelled = not labels or (len(labels) == 1 and len(known) > 1 and labels[0] not in known)
        if unlabelled and split != "train" and known and _holds_images(child):
            _leave_out(child, reading)
            continue
        if not labels:
            raise _lack_classes(inside[child])
        reading.take(met[child])
        branches += [Branch(split, sub.name, sub) for sub in inside[child].folders]
    return branches


def _read_splits_in_classes(folder: Path, inside: Mapping[Path, Contents]) -> list[Branch]:
    """The splits in each of these folders, which are classes: `cat/train`, `cat/val`, `dog/train` …"""
    branches, odd = [], []
    for child, contents in inside.items():
        splits = [tell_split(sub.name) for sub in contents.folders]
        if contents.loose or not splits or None in splits or len(set(splits)) < len(splits):
            odd.append(child.name)
        else:
            branches += [
                Branch(split, child.name, sub) for split, sub in zip(splits, contents.folders, strict=True)
            ]
    if odd:
        example = next(sub for contents in inside.values() for sub in contents.folders if tell_split(sub.name))
        raise BadData(
            f"{folder}: the class {example.parent.name} holds {example.name}, which names a split, but "
            f"{shorten_names(odd, most=3)} {'is' if len(odd) == 1 else 'are'} not divided into splits alone. "
            f"Divide every class into the same splits, or none; a folder that is no split needs another name than "
            f"{example.name}"
        )
    return branches


def _find_hinted_splits(inside: Mapping[Path, Contents]) -> dict[Path, str]:
    """Folders whose names only hint at splits, such as `seg_train` and `seg_test`, with the same classes."""
    hinted = {child: split for child in inside if (split := hint_at_split(child.name))}
    if "train" not in hinted.values() or any(inside[child].folders and child not in hinted for child in inside):
        return {}
    divided = {child: split for child, split in hinted.items() if inside[child].folders}
    same = _find_shared([inside[child] for child in divided])
    return divided if len(divided) > 1 and len(same) > 1 else {}


def _find_shared(contents: Sequence[Contents]) -> set[str]:
    """Names, in small letters, of subfolders that each of several folders holds which has no images of its own."""
    if not contents or any(each.loose or not each.folders for each in contents):
        return set()
    return set.intersection(*({sub.name.lower() for sub in each.folders} for each in contents))


def _refuse_same_subfolders(folder: Path, inside: Mapping[Path, Contents]) -> None:
    shared = sorted(_find_shared([*inside.values()])) if len(inside) > 1 else []
    if len(shared) > 1:
        outer = shorten_names([child.name for child in inside], most=3)
        inner = shorten_names(shared, most=3)
        raise BadData(
            f"{folder}: {outer} hold the same subfolders ({inner}), so which of the two are the classes? If "
            f"{inner} are, and {outer} are splits, rename these to train, val and test; if {outer} are the "
            "classes, move their images out of the subfolders, or list the images in a table with the columns path "
            "and label"
        )


def _refuse_one_class_of_classes(folder: Path, inside: Mapping[Path, Contents]) -> None:
    if len(inside) == 1:
        child, contents = next(iter(inside.items()))
        if len(contents.folders) > 1 and not contents.loose:
            names = shorten_names([sub.name for sub in contents.folders], most=3)
            raise BadData(
                f"{folder}: holds one folder, {child.name}, and so one class. If the classes are {names}, give the "
                f"folder that holds them: {contents.place}"
            )


def _describe_mixture(folder: Path, named: Sequence[Path], others: Sequence[Path]) -> str:
    splits = shorten_names([child.name for child in named], most=3)
    classes = shorten_names([child.name for child in others], most=3)
    way = ""
    if len(named) == 1:
        way = (
            f" Where {splits} is a class, rename it (such as {named[0].name}_class), or put all class folders into "
            f"one called train: {folder / 'train' / named[0].name}, {folder / 'train' / others[0].name}."
        )
    return (
        f"{folder}: holds {splits} beside {classes}; are these splits or classes? Where {splits} "
        f"{'is a split' if len(named) == 1 else 'are splits'}, move {classes} into "
        f"{'it' if len(named) == 1 else 'them'}, or {splits} elsewhere.{way}"
    )


def _lack_classes(found: Contents) -> BadData:
    loose = f" ({found.loose:,} images lie loose here)" if found.loose else ""
    way = "; or list them in a table (.csv) with the columns path and label" if found.loose else ""
    return BadData(f"{found.place}: has no subfolders, and each class needs one with its images{loose}{way}")


def _leave_out(folder: Path, reading: Reading) -> None:
    for file in iterate_files(folder, Reading()):
        reading.omit("unlabelled", file)


def _holds_images(folder: Path) -> bool:
    return next(iterate_files(folder, Reading()), None) is not None


def _look_into(folder: Path, reading: Reading) -> Contents:
    """The contents of a folder, or of the folder inside it where it holds nothing else and that is no class.

    Archives are often unpacked into a folder of their own name: `training_set/training_set/cats`. A folder of any
    name is passed through where a training split with classes is in it.
    """
    found, met = _list(folder, reading)
    split = tell_split(folder.name) or hint_at_split(folder.name)
    if len(found.folders) == 1 and not found.loose:
        (child,) = found.folders
        name = child.name.lower()
        same = name == folder.name.lower() or (split is not None and split == tell_split(name))
        inside = _list(child, Reading())[0].folders
        if same or (name in WRAPPERS and inside) or any(map(_is_training_split, inside)):
            reading.take(met)
            return _look_into(child, reading)
    reading.take(met)
    return found


def _is_training_split(folder: Path) -> bool:
    return tell_split(folder.name) == "train" and bool(_list(folder, Reading())[0].folders)


def _list(folder: Path, reading: Reading) -> tuple[Contents, Reading]:
    met = Reading(is_own=reading.is_own)
    folders = tuple(list_subfolders(folder, met))
    loose = sum(omission.count for omission in met.list_omissions() if omission.reason == "beside-classes")
    return Contents(folder, folders, loose), met
