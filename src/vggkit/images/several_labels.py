"""Images with several labels, or none: how they are written in tables, and when a dataset is multi-label."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vggkit.errors import BadData
from vggkit.images.class_names import shorten_names
from vggkit.task import Task

if TYPE_CHECKING:
    from vggkit.images.dataset import ImageDataset, ImageSample


def split_cell(text: str, separator: str) -> tuple[str, ...]:
    """The distinct labels of a cell, without outer spaces; none for an empty cell.

    >>> split_cell("cat; dog;", ";"), split_cell("desert road", " "), split_cell("", ";")
    (('cat', 'dog'), ('desert', 'road'), ())
    """
    pieces = (piece.strip() for piece in text.split(separator))
    return tuple(dict.fromkeys(piece for piece in pieces if piece))


def settle_task(
    name: str,
    splits: "dict[str, list[ImageSample]]",
    task: Task | None,
    *,
    columns: Collection[str] = (),
) -> tuple[Task, tuple[str, ...]]:
    """The task of a dataset, and sentences on it; images of a single-label one get their one label in place.

    Args:
        name: The dataset, for messages.
        splits: Its images. A split without any label is removed where another one has some.
        task: The task that was requested; None: by the images.
        columns: The classes of a table with a column of zeros and ones for each; empty for any other.

    Raises BadData where single-label is requested and an image has several labels or none, or no image has any.
    """
    images = [image for split in splits.values() for image in split]
    if all(image.labels is None for image in images):
        return "single-label", ()
    if task != "multi-label" and all(len(image.classes) == 1 for image in images) and (columns or task):
        for split in splits.values():
            split[:] = [replace(image, label=image.classes[0], labels=None) for image in split]
        return "single-label", ()
    if task == "single-label":
        wrong = next(image for image in images if len(image.classes) != 1)
        held = f"has the labels {shorten_names(wrong.classes, most=3)}" if wrong.classes else "has no label"
        raise BadData(f"{wrong.path}: {held}, and task=single-label needs exactly one; leave task out for several")
    notes = []
    for split in splits.values():
        split[:] = [image if image.labels is not None else replace(image, labels=image.classes) for image in split]
    for key in [key for key, split in splits.items() if not any(image.labels for image in split)]:
        if len(splits) == 1:
            raise BadData(f"{name}: none of its images has a label")
        notes.append(f"split {key} is left out: none of its {len(splits[key]):,} images has a label")
        del splits[key]
    return "multi-label", (_describe([image for split in splits.values() for image in split]), *notes)


def _describe(images: "Sequence[ImageSample]") -> str:
    counts = [len(image.classes) for image in images]
    several, none = sum(count > 1 for count in counts), counts.count(0)
    bare = f" and {none:,} none" if none else ""
    return (
        f"multi-label: {several:,} of {len(counts):,} images have several labels{bare}, "
        f"{sum(counts) / len(counts):.2f} on average"
    )


def find_inseparable(images: "Iterable[ImageSample]") -> Mapping[tuple[str, ...], int]:
    """Labels that occur only together, in three images or more, with the number of these.

    They may be one class whose name contains the separator of the labels.
    """
    places: dict[str, set[int]] = {}
    for number, image in enumerate(images):
        for label in image.classes:
            places.setdefault(label, set()).add(number)
    alike: dict[frozenset[int], list[str]] = {}
    for label, numbers in places.items():
        alike.setdefault(frozenset(numbers), []).append(label)
    return {tuple(sorted(labels)): len(n) for n, labels in alike.items() if len(labels) > 1 and len(n) >= 3}


def demand_task(dataset: "ImageDataset", task: Task) -> None:
    """Raise BadData where a Classifier of a task is used with a dataset of the other one."""
    if dataset.task == task:
        return
    if task == "multi-label":
        raise BadData(
            f"{dataset.name}: gives each image one label, and this Classifier predicts any number of them. Give a "
            "table with all labels of each image, such as sun;sea with --label-separator ';'; where images have "
            "no others, pass --task multi-label"
        )
    raise BadData(
        f"{dataset.name}: its images have several labels or none, and this Classifier gives each exactly one; "
        "train a multi-label one on such images, or keep one label in each row"
    )


def demand_whole_names(name: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise BadData where unknown labels are pieces of one class's name, which contains the separator of labels."""
    unknown = list(unknown)
    for label in known:
        pieces = [piece for piece in unknown if piece != label and piece in label]
        if len(pieces) > 1:
            raise BadData(
                f"{name}: has the labels {shorten_names(pieces, most=3)}, which are pieces of the class {label!r}: "
                "the separator of the labels occurs in its name. Separate labels by another character, or give "
                "each class a column of 0 and 1"
            )
