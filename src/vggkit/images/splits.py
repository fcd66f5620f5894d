"""A dataset divided into splits: by share, or by folds.

The split of an image depends on the seed, its class and its name alone (for grouped images, its group's
name): it is the same on every machine and in every order. Therefore everything is counted in the order
of names, and never in that of rows.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

from vggkit.errors import BadData, BadInput
from vggkit.images.dataset import ImageDataset, ImageSample, identify_image
from vggkit.images.fold_assignment import GroupCounts, assign_folds, fill_missing_classes
from vggkit.images.lazy_images import LazyImages
from vggkit.images.lazy_splits import divide_lazily
from vggkit.images.stratification import stratify

CopyGroups = Sequence[Sequence[str]]
"""Groups of images, by `identify_image`, that stay in one split besides the groups that the data names: near
duplicates. A run records them: with share and seed they decide which images were held out."""


def is_divided(images: ImageDataset, fold: str | None = None) -> bool:
    """Whether the dataset's own splits are used as they are: it has `train` and `val`, and no fold is requested."""
    return fold is None and "val" in images.splits and "train" in images.splits


def divide(
    images: ImageDataset, *, validation_share: float, seed: int, copy_groups: CopyGroups = ()
) -> ImageDataset:
    """The same images with splits `train` and `val`, where there is no split for validation yet.

    Stratified: each class gives its share, at least one image. Images of one group stay
    together, as do several entries of one image and copies, and the shares come as near as the groups allow. Images
    with several labels are divided by iterative stratification; there a class of one image is trained on.

    Raises BadData where a class has only one image, no division of the groups that was found leaves each class
    on both sides, or there are no training images.
    """
    if is_divided(images):
        return images
    if images.is_lazy:
        return _divide_lazily(images, validation_share=validation_share, seed=seed)
    whole = images.split("train", "all")
    groups = _group_images(whole, copy_groups)
    if images.task == "multi-label":
        sides = _stratify(groups, [1 - validation_share, validation_share], seed)
        held_out = {image for group, side in sides.items() if side for image in groups[group]}
    elif len(groups) < len(whole) or any(image.group is not None for image in whole):
        chosen = _choose_groups(images.name, groups, validation_share, seed)
        held_out = {image for group in chosen for image in groups[group]}
    else:
        held_out = _choose_images(images.name, whole, validation_share, seed)
    return _split(images, whole, held_out)


def divide_in_folds(
    images: ImageDataset, folds: int, *, seed: int = 0, copy_groups: CopyGroups = ()
) -> tuple[ImageDataset, ...]:
    """The same images divided `folds` times into `train` and `val`, each image in `val` once.

    Stratified, and images of one group stay together, as do several entries of one image and copies; each
    `val` has every class. A split `test` stays apart in every fold; splits `train` and `val` are joined first.

    Raises BadInput for fewer than two folds, BadData where a class has fewer images or groups than folds, or no
    assignment of the groups was found in which each fold has every class.
    """
    if folds < 2:
        raise BadInput(f"folds must be 2 or more, got {folds}")
    whole = _list_undivided(images)
    if not whole:
        raise BadData(f"{images.name}: has only the split {', '.join(images.splits)}; there is nothing to fold")
    groups = _group_images(whole, copy_groups)
    groups_with = _count_groups(groups)
    if images.task == "multi-label":
        sides = _stratify(groups, [1 / folds] * folds, seed)
        held = [
            {p for group, side in sides.items() if side == fold for p in groups[group]} for fold in range(folds)
        ]
        return tuple(_split(images, whole, held_out) for held_out in held)
    kind = "groups" if any(image.group is not None for image in whole) else "images"
    for label in sorted(groups_with):
        if groups_with[label] < folds:
            raise BadData(
                f"{images.name}: class {label!r} has {groups_with[label]} {kind}, too few for {folds} folds"
            )
    order = sorted(groups, key=lambda group: (-len(groups[group]), _rank(seed, "fold", group)))
    assigned = assign_folds({group: _count(groups[group]) for group in order}, folds)
    if assigned is None:
        raise BadData(
            f"{images.name}: no assignment of its {len(groups)} groups to {folds} folds was found in which each "
            "fold has every class; take fewer folds, or divide groups that hold many classes"
        )
    places = {image: assigned[group] for group, members in groups.items() for image in members}
    held = [{image for image, place in places.items() if place == fold} for fold in range(folds)]
    return tuple(_split(images, whole, held_out) for held_out in held)


def hold_out(
    images: ImageDataset,
    *,
    validation_share: float,
    seed: int,
    fold: str | None = None,
    copy_groups: CopyGroups = (),
) -> ImageDataset:
    """Splits `train` and `val`: the fold that is named as `2/5`, or else as `divide` does.

    Raises BadData, and BadInput for a fold that is none.
    """
    if fold is None:
        return divide(images, validation_share=validation_share, seed=seed, copy_groups=copy_groups)
    number, folds = read_fold(fold)
    if images.is_lazy:
        return _divide_lazily(images, validation_share=validation_share, seed=seed, fold=(number, folds))
    return divide_in_folds(images, folds, seed=seed, copy_groups=copy_groups)[number - 1]


def hold_out_with_copies(
    images: ImageDataset, *, validation_share: float, seed: int, fold: str | None = None, copy_groups: CopyGroups
) -> tuple[ImageDataset, CopyGroups]:
    """The result of `hold_out`, and the groups of copies that stay together.

    Copies are separated where their class would otherwise be on one side only.

    Raises what `hold_out` raises without `copy_groups`.
    """
    divided = hold_out(images, validation_share=validation_share, seed=seed, fold=fold)
    if is_divided(images, fold) or not copy_groups:
        return divided, ()
    least = 2 if fold is None else read_fold(fold)[1]
    whole = _list_undivided(images)
    lacking = {label for label, count in _count_groups(_group_images(whole, copy_groups)).items() if count < least}
    if images.task == "multi-label":
        lacking = set()
    loose = {identify_image(image) for image in whole if str(image.label) in lacking} if lacking else set()
    copy_groups = [copies for copies in copy_groups if loose.isdisjoint(copies)]
    try:
        together = hold_out(
            images, validation_share=validation_share, seed=seed, fold=fold, copy_groups=copy_groups
        )
    except BadData:
        return divided, ()
    return together, copy_groups


def read_fold(text: str) -> tuple[int, int]:
    """Number and count of a fold that is written as `2/5`; raises BadInput."""
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", str(text))
    if found is None or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise BadInput(f"fold must be written as 2/5, the second of five; got {text!r}")
    return int(found[1]), int(found[2])


def _divide_lazily(
    images: ImageDataset, *, validation_share: float, seed: int, fold: tuple[int, int] | None = None
) -> ImageDataset:
    lazy = {name: split for name, split in images.splits.items() if isinstance(split, LazyImages)}
    divided = divide_lazily(
        images.name, lazy, images.labels, validation_share=validation_share, seed=seed, fold=fold
    )
    return images.keep(divided)


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


def _choose_groups(name: str, members: Mapping[str, Sequence[ImageSample]], share: float, seed: int) -> set[str]:
    """Groups in a random order, each taken if it brings the classes nearer to their shares."""
    order = sorted(members, key=lambda group: _rank(seed, "group", group))
    groups = {group: _count(members[group]) for group in order}
    lacking = {
        label: share * total for label, total in _count([p for group in order for p in members[group]]).items()
    }
    left = Counter(label for counts in groups.values() for label in counts)
    chosen: set[str] = set()

    def take(group: str) -> None:
        chosen.add(group)
        left.subtract(groups[group].keys())
        for label, count in groups[group].items():
            lacking[label] -= count

    def gain(group: str) -> float:
        # Squares: one large deviation counts more than many small ones.
        return sum(lacking[label] ** 2 - (lacking[label] - count) ** 2 for label, count in groups[group].items())

    def spare(group: str) -> bool:
        return group not in chosen and all(left[label] > 1 for label in groups[group])

    for group in order:
        if spare(group) and gain(group) > 0:
            take(group)
    for label in list(lacking):
        if any(label in groups[group] for group in chosen):
            continue
        groups_with = [group for group in order if label in groups[group] and spare(group)]
        if not groups_with:
            return _fill_missing_class(name, groups, chosen, label)
        take(max(groups_with, key=gain))
    return chosen


def _fill_missing_class(name: str, groups: GroupCounts, chosen: Collection[str], label: str) -> set[str]:
    """The groups of the smaller side by tabu search, where the greedy choice has left it without a class."""
    sides = fill_missing_classes(groups, {group: int(group in chosen) for group in groups}, 2)
    if sides is None:
        raise BadData(
            f"{name}: the images of class {label!r} cannot be divided between training and validation "
            "without dividing a group, or another class is missing from one of them; each class needs two groups, "
            "one for training and one for validation"
        )
    return {group for group, side in sides.items() if side}


def _group_images(whole: Sequence[ImageSample], copy_groups: CopyGroups) -> dict[str, list[ImageSample]]:
    """Images that stay together, by the first name among them: those of one group of the data, entries of the
    same image, and copies. Any other image is a group by itself.
    """
    firsts: dict[str, str] = {}
    entries: dict[Hashable, str] = {}
    copies_of = {mark: number for number, copies in enumerate(copy_groups) for mark in copies}
    names = [f"/{p.label}/{p.path}" if p.group is None else p.group for p in whole]
    for image, name in zip(whole, names, strict=True):
        links = [image.identity()]
        if copies_of and (mark := identify_image(image)) in copies_of:
            links.append(("copies", copies_of[mark]))
        for entry in links:
            one, other = _first(firsts, name), _first(firsts, entries.setdefault(entry, name))
            firsts[max(one, other)] = min(one, other)
    groups: dict[str, list[ImageSample]] = defaultdict(list)
    for image, name in zip(whole, names, strict=True):
        groups[_first(firsts, name)].append(image)
    return groups


def _count_groups(groups: Mapping[str, Sequence[ImageSample]]) -> Counter[str]:
    """Number of groups that contain images of each class."""
    return Counter(label for members in groups.values() for label in _count(members))


def _first(firsts: dict[str, str], name: str) -> str:
    """The first name of those that are linked to a name, with path compression."""
    first = name
    while firsts.setdefault(first, first) != first:
        first = firsts[first]
    while firsts[name] != first:
        firsts[name], name = first, firsts[name]
    return first


def _count(images: Sequence[ImageSample]) -> dict[str, int]:
    """Images of each class, the classes by name: sums over them are the same in every order of rows."""
    return dict(sorted(Counter(label for image in images for label in image.classes).items()))


def _stratify(groups: Mapping[str, Sequence[ImageSample]], shares: Sequence[float], seed: int) -> dict[str, int]:
    """The side of each group of images with several labels; raises BadData where one of them has no image."""
    order = sorted(groups, key=lambda group: _rank(seed, "group", group))
    sides = stratify({group: _count(groups[group]) for group in order}, shares)
    if len(set(sides.values())) < len(shares):
        raise BadData(f"{len(groups):,} images or groups of images are too few to divide them in {len(shares)}")
    return sides


def _rank(seed: int, kind: str, name: str) -> bytes:
    # A file's own name and not the whole path, so that a folder may move.
    drawn = hashlib.sha256(f"{seed}/{kind}/{Path(name).name}".encode(errors="surrogateescape")).digest()
    return drawn + name.encode(errors="surrogateescape")
