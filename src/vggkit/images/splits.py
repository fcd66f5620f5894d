"""A dataset divided into splits: by share, or by folds.

The split of an image depends on the seed, its class and its name alone (for grouped images, its group's
name): it is the same on every machine and in every order. Therefore everything is counted in the order
of names, and never in that of rows.
"""

import hashlib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Final

from vggkit.errors import BadData, BadInput
from vggkit.images.dataset import ImageDataset, ImageSample, identify_image

MOST_MOVES: Final = 20_000
"""Moves of a repair at most. Whether an assignment exists is NP-complete: for two folds it is set splitting."""
LONGEST_BAR: Final = 10
"""Moves during which a unit may not go back, at most, besides half of the needs that are open."""

Units = Mapping[str, Mapping[str, int]]
"""How many images of each class each unit has."""
Ties = Sequence[Sequence[str]]
"""Groups of images, by `identify_image`, that stay in one split besides the groups that the data names, such as
near duplicates. A run records them: with share and seed they decide which images were held out."""


def deal(units: Units, folds: int) -> dict[str, int] | None:
    """The fold of each unit: the one that has fewest of its classes, repaired where a fold lacks a class then.

    None where no assignment was found that gives every fold every class.
    """
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    totals = [0] * folds
    dealt: dict[str, int] = {}
    for unit, counts in units.items():
        loads = [sum(count * held[fold][label] for label, count in counts.items()) for fold in range(folds)]
        fold = dealt[unit] = min(range(folds), key=lambda fold: (loads[fold], totals[fold], fold))
        held[fold].update(counts)
        totals[fold] += sum(counts.values())
    return repair(units, dealt, folds)


def repair(units: Units, dealt: Mapping[str, int], folds: int) -> dict[str, int] | None:
    """The assignment with units moved until every fold has every class; None where that was not reached.

    A tabu search: some fold that lacks a class takes the unit whose move leaves the fewest needs open.
    """
    having: dict[str, list[str]] = {}
    for unit, counts in units.items():
        for label in counts:
            having.setdefault(label, []).append(unit)
    held = Counter((label, dealt[unit]) for unit, counts in units.items() for label in counts)
    open_needs = [(label, fold) for label in having for fold in range(folds) if not held[label, fold]]
    if any(len(members) < folds for members in having.values()):
        return None
    found, barred = dict(dealt), dict[tuple[str, int], int]()
    draw = random.Random(0)  # noqa: S311 (no secret)

    def weigh(unit: str, fold: int, move: int) -> tuple[bool, int, float]:
        opened = sum(held[label, found[unit]] == 1 for label in units[unit])
        closed = sum(held[label, fold] == 0 for label in units[unit])
        return barred.get((unit, fold), 0) > move, opened - closed, draw.random()

    for move in range(min(MOST_MOVES, 100 * folds * len(units))):
        open_needs = [need for need in open_needs if not held[need]]
        if not open_needs:
            return found
        label, fold = open_needs[int(draw.random() * len(open_needs))]
        # The need is open, so none of these is in the fold yet.
        unit = min((weigh(unit, fold, move), unit) for unit in having[label])[1]
        left, found[unit] = found[unit], fold
        for each in units[unit]:
            held[each, left] -= 1
            held[each, fold] += 1
            if not held[each, left]:
                open_needs.append((each, left))
        barred[unit, left] = move + 1 + int(draw.random() * LONGEST_BAR) + len(open_needs) // 2
    return None


def is_divided(images: ImageDataset, fold: str | None = None) -> bool:
    """Whether the dataset's own splits are used as they are: it has `train` and `val`, and no fold is requested."""
    return fold is None and "val" in images.splits and "train" in images.splits


def divide(images: ImageDataset, *, validation_share: float, seed: int, ties: Ties = ()) -> ImageDataset:
    """The same images with splits `train` and `val`, where there is no split for validation yet.

    Stratified: each class gives its share, at least one image. Images of one group stay
    together, as do several entries of one image and tied images, and the shares come as near as the groups allow.

    Raises BadData where a class has only one image, no division of the groups that was found leaves each class
    on both sides, or there are no training images.
    """
    if is_divided(images):
        return images
    whole = images.split("train", "all")
    units = _tie(whole, ties)
    if len(units) < len(whole) or any(image.group is not None for image in whole):
        chosen = _choose_units(images.name, units, validation_share, seed)
        held_out = {image for unit in chosen for image in units[unit]}
    else:
        held_out = _choose_images(images.name, whole, validation_share, seed)
    return _split(images, whole, held_out)


def divide_in_folds(
    images: ImageDataset, folds: int, *, seed: int = 0, ties: Ties = ()
) -> tuple[ImageDataset, ...]:
    """The same images divided `folds` times into `train` and `val`, each image in `val` once.

    Stratified, and images of one group stay together, as do several entries of one image and tied images; each
    `val` has every class. A split `test` stays apart in every fold; splits `train` and `val` are joined first.

    Raises BadInput for fewer than two folds, BadData where a class has fewer images or groups than folds, or no
    assignment of the groups was found in which each fold has every class.
    """
    if folds < 2:
        raise BadInput(f"folds must be 2 or more, got {folds}")
    whole = _list_undivided(images)
    if not whole:
        raise BadData(f"{images.name}: has only the split {', '.join(images.splits)}; there is nothing to fold")
    units = _tie(whole, ties)
    having = _count_units(units)
    kind = "groups" if any(image.group is not None for image in whole) else "images"
    for label in sorted(having):
        if having[label] < folds:
            raise BadData(f"{images.name}: class {label!r} has {having[label]} {kind}, too few for {folds} folds")
    order = sorted(units, key=lambda unit: (-len(units[unit]), _rank(seed, "fold", unit)))
    dealt = deal({unit: _count(units[unit]) for unit in order}, folds)
    if dealt is None:
        raise BadData(
            f"{images.name}: no assignment of its {len(units)} groups to {folds} folds was found in which each "
            "fold has every class; take fewer folds, or divide groups that hold many classes"
        )
    places = {image: dealt[unit] for unit, members in units.items() for image in members}
    held = [{image for image, place in places.items() if place == fold} for fold in range(folds)]
    return tuple(_split(images, whole, held_out) for held_out in held)


def hold_out(
    images: ImageDataset, *, validation_share: float, seed: int, fold: str | None = None, ties: Ties = ()
) -> ImageDataset:
    """Splits `train` and `val`: the fold that is named as `2/5`, or else as `divide` does.

    Raises BadData, and BadInput for a fold that is none.
    """
    if fold is None:
        return divide(images, validation_share=validation_share, seed=seed, ties=ties)
    number, folds = read_fold(fold)
    return divide_in_folds(images, folds, seed=seed, ties=ties)[number - 1]


def hold_out_tied(
    images: ImageDataset, *, validation_share: float, seed: int, fold: str | None = None, ties: Ties
) -> tuple[ImageDataset, Ties]:
    """The result of `hold_out`, and the ties that were respected: not those that leave a class on one side alone.

    Raises what `hold_out` raises without ties.
    """
    divided = hold_out(images, validation_share=validation_share, seed=seed, fold=fold)
    if is_divided(images, fold) or not ties:
        return divided, ()
    least = 2 if fold is None else read_fold(fold)[1]
    whole = _list_undivided(images)
    lacking = {label for label, count in _count_units(_tie(whole, ties)).items() if count < least}
    loose = {identify_image(image) for image in whole if str(image.label) in lacking} if lacking else set()
    ties = [tie for tie in ties if loose.isdisjoint(tie)]
    try:
        tied = hold_out(images, validation_share=validation_share, seed=seed, fold=fold, ties=ties)
    except BadData:
        return divided, ()
    return tied, ties


def read_fold(text: str) -> tuple[int, int]:
    """Number and count of a fold that is written as `2/5`; raises BadInput."""
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", str(text))
    if found is None or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise BadInput(f"fold must be written as 2/5, the second of five; got {text!r}")
    return int(found[1]), int(found[2])


def _split(images: ImageDataset, whole: Sequence[ImageSample], held_out: Collection[ImageSample]) -> ImageDataset:
    others = {name: split for name, split in images.splits.items() if name not in ("all", "train", "val")}
    train = [image for image in whole if image not in held_out]
    val = [image for image in whole if image in held_out]
    return images.keep({"train": train, "val": val, **others})


def _list_undivided(images: ImageDataset) -> tuple[ImageSample, ...]:
    """The images to split: all but those of a split `test`."""
    return tuple(p for name in ("all", "train", "val") if name in images.splits for p in images.splits[name])


def _choose_images(name: str, whole: Sequence[ImageSample], share: float, seed: int) -> set[ImageSample]:
    classes: dict[str, list[ImageSample]] = defaultdict(list)
    for image in whole:
        classes[str(image.label)].append(image)
    chosen: set[ImageSample] = set()
    for label, members in sorted(classes.items()):
        if len(members) < 2:
            raise BadData(
                f"{name}: class {label!r} has one image; it needs two, one for training and one for validation"
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        ranked = sorted(members, key=lambda image: _rank(seed, str(image.label), image.path))
        chosen.update(ranked[:count])
    return chosen


def _choose_units(name: str, members: Mapping[str, Sequence[ImageSample]], share: float, seed: int) -> set[str]:
    """Groups in a random order, each taken if it brings the classes nearer to their shares."""
    order = sorted(members, key=lambda unit: _rank(seed, "group", unit))
    units = {unit: _count(members[unit]) for unit in order}
    lacking = {
        label: share * total for label, total in _count([p for unit in order for p in members[unit]]).items()
    }
    left = Counter(label for counts in units.values() for label in counts)
    chosen: set[str] = set()

    def take(unit: str) -> None:
        chosen.add(unit)
        left.subtract(units[unit].keys())
        for label, count in units[unit].items():
            lacking[label] -= count

    def gain(unit: str) -> float:
        # Squares: one large deviation counts more than many small ones.
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
            return _repair(name, units, chosen, label)
        take(max(having, key=gain))
    return chosen


def _repair(name: str, units: Units, chosen: Collection[str], label: str) -> set[str]:
    """The groups of the smaller side, where taking one after the other has left it without a class."""
    sides = repair(units, {unit: int(unit in chosen) for unit in units}, 2)
    if sides is None:
        raise BadData(
            f"{name}: the images of class {label!r} cannot be divided between training and validation "
            "without dividing a group, or another class is missing from one of them; each class needs two groups, "
            "one for training and one for validation"
        )
    return {unit for unit, side in sides.items() if side}


def _tie(whole: Sequence[ImageSample], ties: Ties) -> dict[str, list[ImageSample]]:
    """Images that stay together, by the first name of what ties them: a group, being one and the same image, or
    one of `ties`. An image without such ties is a unit by itself.
    """
    firsts: dict[str, str] = {}
    entries: dict[Hashable, str] = {}
    tie_of = {mark: number for number, tie in enumerate(ties) for mark in tie}
    names = [f"/{p.label}/{p.path}" if p.group is None else p.group for p in whole]
    for image, name in zip(whole, names, strict=True):
        tied_by = [image.identity()]
        if tie_of and (mark := identify_image(image)) in tie_of:
            tied_by.append(("tie", tie_of[mark]))
        for entry in tied_by:
            one, other = _first(firsts, name), _first(firsts, entries.setdefault(entry, name))
            firsts[max(one, other)] = min(one, other)
    units: dict[str, list[ImageSample]] = defaultdict(list)
    for image, name in zip(whole, names, strict=True):
        units[_first(firsts, name)].append(image)
    return units


def _count_units(units: Mapping[str, Sequence[ImageSample]]) -> Counter[str]:
    """How many units hold images of each class."""
    return Counter(label for members in units.values() for label in _count(members))


def _first(firsts: dict[str, str], name: str) -> str:
    """The first name of those that are tied to a name, with path compression."""
    first = name
    while firsts.setdefault(first, first) != first:
        first = firsts[first]
    while firsts[name] != first:
        firsts[name], name = first, firsts[name]
    return first


def _count(images: Sequence[ImageSample]) -> dict[str, int]:
    """Images of each class, the classes by name: sums over them are the same in every order of rows."""
    return dict(sorted(Counter(str(image.label) for image in images).items()))


def _rank(seed: int, kind: str, name: str) -> bytes:
    # A file's own name and not the whole path, so that a folder may move.
    drawn = hashlib.sha256(f"{seed}/{kind}/{Path(name).name}".encode(errors="surrogateescape")).digest()
    return drawn + name.encode(errors="surrogateescape")
