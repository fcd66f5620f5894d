"""Labelled images in memory: pairs of image and label, torch datasets, arrays with labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from vggkit.errors import BadInput
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.given import take_one
from vggkit.images.pixels import describe_type, holds_pixels
from vggkit.images.split_names import tell_split

RULE: Final = (
    "labelled images are a place (a folder, a table …), pairs of an image and its label, a torch Dataset of such "
    "pairs, a pair of arrays (images, labels), or a mapping of these by split: {'train': …, 'val': …}"
)

LabelledImages = str | Path | ImageDataset | Iterable[Any] | Mapping[str, Any]
"""A place, or labelled images as `take_labelled` takes them."""

Labelled = Iterator[tuple[str | None, ImageSample]]
"""(Split, image) of each."""


def take_labelled(given: object) -> Labelled:
    """(Split, image) of labelled images in memory.

    Args:
        given: One of these:

            - pairs of an image, as `take_one` takes it, and its label, a name or a number: a list, or whatever else
              can be iterated; a list, tuple or set of labels, perhaps empty, makes the dataset multi-label;
            - a dataset of torch or torchvision, whose items are such pairs, without a transform that makes tensors
              of floats; the names of its `classes` are the labels, the files of its `samples` are read when
              they are needed, and all other images are held in memory;
            - a tuple of arrays: images (N, H, W, 3), (N, H, W, 4) or (N, H, W), uint8, and N labels;
            - a mapping of any of these by split, such as `{"train": …, "val": …}`.

    Raises BadInput for anything else, and for an image or a label that is ambiguous.
    """
    if isinstance(given, Mapping):
        for name, part in given.items():
            split = tell_split(str(name))
            if split is None:
                raise BadInput(f"labelled images are given by split, train, val and test; got {name!r}")
            yield from ((split, image) for image in _take(part, prefix=f"{split} "))
    else:
        yield from ((None, image) for image in _take(given))


def name_given(given: object) -> str:
    """The name of such a dataset, in messages and reports."""
    kind = type(given)
    return "images in memory" if kind.__module__ == "builtins" else kind.__name__


def _take(given: object, *, prefix: str = "") -> Iterator[ImageSample]:
    names = _list_classes(given)
    for number, pair in enumerate(_list_pairs(given)):
        if isinstance(pair, str | bytes | Mapping) or holds_pixels(pair) or not _is_pair(pair):
            raise BadInput(f"item {number}: {RULE}; got {describe_type(pair)}")
        source, label = pair
        name = f"{prefix}image {number}"
        image = take_one(source, name=name)
        if isinstance(label, list | tuple | set | frozenset):
            several = tuple(_name_label(each, names, name) for each in label)
            yield replace(image, labels=several)
        else:
            yield replace(image, label=_name_label(label, names, name))


def _list_pairs(given: Any) -> Iterable[Any]:
    if hasattr(given, "collate_fn") and hasattr(given, "dataset"):
        raise BadInput("a DataLoader makes batches of tensors; give the Dataset itself, which is its .dataset")
    if isinstance(given, tuple) and len(given) == 2 and holds_pixels(given[0]):
        images, labels = given
        if len(images) != len(labels):
            raise BadInput(f"there are {len(images)} images and {len(labels)} labels; give as many of each")
        return zip(images, labels, strict=True)
    if isinstance(given, str | bytes | Path) or holds_pixels(given):
        raise BadInput(f"{RULE}; got {describe_type(given)}")
    inner, places = getattr(given, "dataset", None), getattr(given, "indices", None)
    if inner is not None and places is not None:  # torch's Subset, as random_split gives it
        pairs = _list_pairs(inner)
        return (pairs[int(place)] for place in places) if isinstance(pairs, Sequence) else _list_items(given)
    samples = getattr(given, "samples", None)  # torchvision's folders: files are read when they are needed
    if isinstance(samples, list) and samples and _is_pair(samples[0]) and isinstance(samples[0][0], str | Path):
        return samples
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, Sequence):
        return _list_items(given)
    if not isinstance(given, Iterable):
        raise BadInput(f"{RULE}; got {describe_type(given)}")
    return given


def _list_items(dataset: Any) -> Iterator[Any]:
    # Not by iteration, which for such datasets need not end.
    return (dataset[number] for number in range(len(dataset)))


def _is_pair(pair: object) -> bool:
    return isinstance(pair, Sequence) and len(pair) == 2


def _list_classes(given: Any) -> Sequence[str]:
    """The names that a dataset has for its numbers."""
    names = getattr(given, "classes", None)
    if names is None and hasattr(given, "dataset"):
        names = getattr(given.dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else ()


def _name_label(label: Any, names: Sequence[str], name: str) -> str:
    if isinstance(label, str) and label:
        return label
    if getattr(label, "shape", None) == () and hasattr(label, "item"):  # of NumPy and of torch
        label = label.item()
    if isinstance(label, str) and label:
        return label
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        return names[int(label)] if 0 <= label < len(names) else str(label)
    raise BadInput(f"{name}: a label is a name or a whole number; got {label!r:.60}")
