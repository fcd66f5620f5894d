"""A collection divided into parts: by names that people use, by share, by folds.

A picture's place depends on the seed, its class and its name alone (of grouped pictures, its group's
name): it is the same on every machine and in every order.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vggkit.errors import BadData, BadInput
from vggkit.images.pictures import Picture, PictureSet

SPLITS: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names that are parts of a collection and not classes, and what each is called here."""


def find_split(path: str) -> str | None:
    """The part that a file's name tells, or else its folder's: `data/train-00001.tar`, `val/00001.tar`.

    Folders above are not asked: people keep data in folders called test.
    """
    place = Path(path)
    words = [SPLITS[word] for word in re.split(r"[^a-z]+", place.name.lower()) if word in SPLITS]
    return words[0] if words else SPLITS.get(place.parent.name.lower())


def divide(pictures: PictureSet, *, validation_share: float, seed: int) -> PictureSet:
    """The same pictures with parts `train` and `val`, where there is no part for validation yet.

    Stratified: each class gives its share, at least one picture. Pictures of one group stay
    together, and the shares come as near as the groups allow.

    Raises BadData where a class has only one picture or one group, or there is nothing to learn from.
    """
    if "val" in pictures.splits and "train" in pictures.splits:
        return pictures
    whole = pictures.part("train", "all")
    if any(picture.group is not None for picture in whole):
        held_out = _choose_groups(pictures.name, whole, validation_share, seed)
    else:
        held_out = _choose_pictures(pictures.name, whole, validation_share, seed)
    return _part(pictures, whole, held_out)


def divide_in_folds(pictures: PictureSet, folds: int, *, seed: int = 0) -> tuple[PictureSet, ...]:
    """The same pictures divided `folds` times into `train` and `val`, each picture in `val` once.

    Stratified, and pictures of one group stay together. A part `test` stays apart in every fold;
    parts `train` and `val` are put together first.

    Raises BadInput for fewer than two folds, BadData where a class has fewer pictures or groups than folds.
    """
    if folds < 2:
        raise BadInput(f"folds must be 2 or more, got {folds}")
    whole = tuple(p for name in ("all", "train", "val") if name in pictures.splits for p in pictures.splits[name])
    if not whole:
        raise BadData(f"{pictures.name}: has only the part {', '.join(pictures.splits)}; there is nothing to fold")
    units = _group(whole)
    for label in sorted({str(picture.label) for picture in whole}):
        having = sum(label in counts for counts in (_count(unit) for unit in units.values()))
        if having < folds:
            kind = "groups" if any(picture.group is not None for picture in whole) else "pictures"
            raise BadData(f"{pictures.name}: class {label!r} has {having} {kind}, too few for {folds} folds")
    return tuple(_part(pictures, whole, chosen) for chosen in _deal(units, folds, seed))


def hold_out(pictures: PictureSet, *, validation_share: float, seed: int, fold: str | None = None) -> PictureSet:
    """Parts `train` and `val`: the fold that is named as `2/5`, or else as `divide` does.

    Raises BadData, and BadInput for a fold that is none.
    """
    if fold is None:
        return divide(pictures, validation_share=validation_share, seed=seed)
    number, folds = read_fold(fold)
    return divide_in_folds(pictures, folds, seed=seed)[number - 1]


def read_fold(text: str) -> tuple[int, int]:
    """Number and count of a fold that is written as `2/5`; raises BadInput."""
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", str(text))
    if found is None or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise BadInput(f"fold is written as 2/5, the second of five; got {text!r}")
    return int(found[1]), int(found[2])


def _part(pictures: PictureSet, whole: Sequence[Picture], held_out: set[str]) -> PictureSet:
    kept = {name: part for name, part in pictures.splits.items() if name not in ("all", "train", "val")}
    train = [picture for picture in whole if picture.path not in held_out]
    val = [picture for picture in whole if picture.path in held_out]
    return pictures.keep({"train": train, "val": val, **kept})


def _choose_pictures(name: str, whole: Sequence[Picture], share: float, seed: int) -> set[str]:
    classes: dict[str, list[Picture]] = defaultdict(list)
    for picture in whole:
        classes[str(picture.label)].append(picture)
    chosen: set[str] = set()
    for label, members in classes.items():
        if len(members) < 2:
            raise BadData(
                f"{name}: class {label!r} has one picture; it takes two, one to learn from and one to check on"
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        ranked = sorted(members, key=lambda picture: _rank(seed, str(picture.label), picture.path))
        chosen.update(picture.path for picture in ranked[:count])
    return chosen


def _choose_groups(name: str, whole: Sequence[Picture], share: float, seed: int) -> set[str]:
    """Groups in a drawn order, each taken where it brings the classes nearer to their shares."""
    units = {unit: _count(members) for unit, members in _group(whole).items()}
    order = sorted(units, key=lambda unit: _rank(seed, "group", unit))
    lacking = {label: share * total for label, total in _count(whole).items()}
    left = Counter(label for counts in units.values() for label in counts)
    chosen: set[str] = set()

    def take(unit: str) -> None:
        chosen.add(unit)
        left.subtract(units[unit].keys())
        for label, count in units[unit].items():
            lacking[label] -= count

    def gain(unit: str) -> float:
        # Squares: one class far off weighs more than many a little off.
        return sum(lacking[label] ** 2 - (lacking[label] - count) ** 2 for label, count in units[unit].items())

    def spare(unit: str) -> bool:
        return unit not in chosen and all(left[label] > 1 for label in units[unit])

    for unit in order:
        if spare(unit) and gain(unit) > 0:
            take(unit)
    for label in list(lacking):
        if any(label in units[unit] for unit in chosen):
            continue
        having = [unit for unit in order if label in units[unit] and spare(unit)]
        if not having:
            raise BadData(
                f"{name}: the pictures of class {label!r} cannot be divided between training and validation "
                "without parting a group; it takes two groups, one to learn from and one to check on"
            )
        take(max(having, key=gain))
    return {picture.path for unit, members in _group(whole).items() if unit in chosen for picture in members}


def _deal(units: Mapping[str, Sequence[Picture]], folds: int, seed: int) -> list[set[str]]:
    """Each unit to the fold that has fewest of its classes; the largest units first."""
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    dealt: list[set[str]] = [set() for _ in range(folds)]
    order = sorted(units, key=lambda unit: (-len(units[unit]), _rank(seed, "fold", unit)))
    for unit in order:
        counts = _count(units[unit])
        load = [
            (sum(counts[label] * held[place][label] for label in counts), held[place].total(), place)
            for place in range(folds)
        ]
        place = min(load)[2]
        held[place].update(counts)
        dealt[place].update(picture.path for picture in units[unit])
    return dealt


def _group(whole: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Pictures that stay together, by what ties them; one without a group stands for itself."""
    units: dict[str, list[Picture]] = defaultdict(list)
    for picture in whole:
        unit = f"/{picture.label}/{picture.path}" if picture.group is None else picture.group
        units[unit].append(picture)
    return units


def _count(pictures: Sequence[Picture]) -> Counter[str]:
    return Counter(str(picture.label) for picture in pictures)


def _rank(seed: int, kind: str, name: str) -> bytes:
    # A file's own name and not the whole path, so that a folder may move.
    drawn = hashlib.sha256(f"{seed}/{kind}/{Path(name).name}".encode(errors="surrogateescape")).digest()
    return drawn + name.encode(errors="surrogateescape")
