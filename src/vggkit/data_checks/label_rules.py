"""Checks of datasets whose images have several labels: each returns its finding or None."""

from collections.abc import Sequence

from vggkit.data_checks.findings import Case, Finding
from vggkit.data_checks.inspection import ImageRecord
from vggkit.data_checks.rules import count_cases, make_finding, member
from vggkit.images.dataset import ImageDataset
from vggkit.images.several_labels import find_inseparable
from vggkit.task import join_labels


def find_unlabelled(records: Sequence[ImageRecord]) -> Finding | None:
    """Images without any label."""
    bare = [record for record in records if not record.image.classes]
    cases = [Case((member(record),), "has no label") for record in bare]
    share = len(bare) / max(1, len(records))
    return make_finding(
        "unlabelled",
        "note",
        cases,
        f"{count_cases(cases, 'image')} without a label, {100 * share:.1f} % of all",
        "They are used as images that show none of the classes. Where their labels are unknown, remove them.",
    )


def find_unused(images: ImageDataset) -> Finding | None:
    """Classes that no image has, such as a column of zeros."""
    counts = [images.count(split) for split in images.splits]
    unused = [label for label in images.labels if not any(count[label] for count in counts)]
    return make_finding(
        "unused-label",
        "warning",
        [Case((), f"no image has {label}") for label in unused],
        f"{len(unused):,} {'label is' if len(unused) == 1 else 'labels are'} never used",
        "A Classifier learns to predict them never. Remove their columns, or add images that have them.",
    )


def find_inseparable_labels(images: ImageDataset) -> Finding | None:
    """Labels that occur only together."""
    found = find_inseparable(image for split in images.splits.values() for image in split)
    cases = [
        Case((), f"{join_labels(labels)}: each of {count:,} images that has one of them has all")
        for labels, count in found.items()
    ]
    return make_finding(
        "inseparable-labels",
        "warning",
        cases,
        f"{count_cases(cases, 'group')} of labels that occur only together",
        "Nothing can tell them apart. If they are one class whose name contains the separator of the labels, "
        "separate the labels by another character; else keep one of them.",
    )
