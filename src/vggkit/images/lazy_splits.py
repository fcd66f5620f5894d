"""Splits of images that are described and not held, by arrays: of a million images in a fraction of a second.

Each class gives its share, drawn by seed and contents: equal files of a class are on one side, and the order and
the names of the images do not matter.

Shape letters: N images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData
from vggkit.hardware import derive_seed
from vggkit.images.lazy_images import LazyImages


def divide_lazily(
    name: str,
    splits: Mapping[str, LazyImages],
    labels: Sequence[str],
    *,
    validation_share: float,
    seed: int,
    fold: tuple[int, int] | None = None,
) -> dict[str, LazyImages]:
    """The same images in splits `train` and `val`; a split `test` stays as it is.

    Args:
        name: The dataset's, for errors.
        splits: `all`, `train` or `val`, which are joined, and perhaps others.
        labels: The class names.
        validation_share: Fraction of each class that is held out, at least one image.
        seed: Of the draw.
        fold: Number, counted from 1, and count of folds, in place of the share.

    Raises BadData where a class has too few different images.
    """
    first, *more = [splits[each] for each in ("all", "train", "val") if each in splits]
    whole = first.join(more) if more else first
    classes = whole.number_classes(labels)
    keys = _mix(whole.list_contents(), derive_seed(seed, "val" if fold is None else "fold"))
    held_out = np.zeros(len(whole), bool)
    for number in np.flatnonzero(np.bincount(classes)).tolist():
        members = np.flatnonzero(classes == number)
        ranks = np.searchsorted(np.sort(keys[members]), keys[members])  # equal files have one rank
        least = 2 if fold is None else fold[1]
        if len(np.unique(ranks)) < least:
            raise BadData(
                f"{name}: class {labels[number]!r} has fewer than {least} different images; it needs as many to be "
                "divided between training and validation"
            )
        if fold is None:
            count = min(len(members) - 1, max(1, round(validation_share * len(members))))
            chosen = ranks < count
            if chosen.all():  # the copies of one image are all but the last
                chosen = ranks < ranks.max()
        else:
            chosen = ranks * fold[1] // len(members) == fold[0] - 1
        held_out[members] = chosen
    others = {each: images for each, images in splits.items() if each not in ("all", "train", "val")}
    train, val = (whole.select(np.flatnonzero(side)) for side in (~held_out, held_out))
    return {"train": train, "val": val, **others}


def _mix(contents: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A random number for each content, by the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = contents + np.uint64(seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        return mixed ^ (mixed >> np.uint64(31))
