"""The rules of a dataset check: each returns its finding or None; those on copies are in `copy_rules`."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Final, get_args

from vggkit.data_checks.findings import Case, Finding, Kind, Member, Severity
from vggkit.data_checks.inspection import ENDINGS, ImageRecord, group_exact
from vggkit.images.class_names import fold, shorten_names, show_name, split_label
from vggkit.images.dataset import ImageDataset
from vggkit.images.split_names import tell_split

FEW_TO_LEARN_FROM: Final = 20
"""Number of training images of a class below which a network learns little about it."""
FEW_TO_MEASURE: Final = 10
"""Images of a class below which its accuracy is known to no better than about ±30 points."""
MANY_EQUAL: Final = 3
"""Equal files from which on an image may be a placeholder though it has the colours of a photo."""
LEAST_PLAIN_OF_EQUAL: Final = 0.4
"""Share of one colour that such an image has at least."""
IMBALANCE: Final = 3.0
"""Ratio of the largest to the smallest class above which it is reported."""


def severity_key(finding: Finding) -> tuple[int, int]:
    """Sort key of findings: the most severe first."""
    return get_args(Severity).index(finding.severity), get_args(Kind).index(finding.kind)


def find_unreadable(records: Sequence[ImageRecord]) -> Finding | None:
    """Images that cannot be decoded, each with its reason."""
    cases = [Case((member(s),), str(s.problem)) for s in records if s.problem is not None]
    return make_finding(
        "unreadable",
        "warning",
        cases,
        f"{count_cases(cases, 'image')} cannot be read",
        "Training and evaluation exclude them. Replace them, or remove them from the table.",
    )


def find_skipped(images: ImageDataset) -> Finding | None:
    """Files that were found and not used as images, by reason."""
    grave = any(omission.is_grave for omission in images.skipped)
    count = sum(omission.count for omission in images.skipped)
    return make_finding(
        "skipped",
        "warning" if grave else "note",
        [Case((), omission.describe()) for omission in images.skipped],
        f"{count:,} {'file, folder or entry was' if count == 1 else 'files, folders or entries were'} skipped",
        "They are ignored. Move images that should be used into the folder of a class, and repair broken links."
        if grave
        else "They are ignored.",
    )


def find_combined_labels(labels: Sequence[str]) -> Finding | None:
    """Classes whose names look like several labels, such as `cat|dog`."""
    found = {label: parts for label in labels if len(parts := split_label(label)) > 1}
    cases = [
        Case((), f"{label!r} looks like {len(parts)} labels ({', '.join(map(repr, parts))}), and is one class")
        for label, parts in found.items()
    ]
    return make_finding(
        "combined-label",
        "warning",
        cases,
        f"{count_cases(cases, 'class', 'classes')} whose name looks like several labels",
        "A Classifier predicts one label for an image and treats a combination as a class of its own. Where "
        "several labels are meant, keep one in each row.",
    )


def find_one_class(labels: Sequence[str]) -> Finding | None:
    """A dataset of a single class, from which no classifier can learn."""
    cases = [Case((), f"every image is of {labels[0]}")] if len(labels) == 1 else []
    return make_finding(
        "one-class",
        "error",
        cases,
        "there is only one class",
        "A classifier needs two or more. Give the folder that holds a subfolder for each class.",
    )


def find_nested(images: ImageDataset) -> Finding | None:
    """Classes whose images lie in several subfolders of the class's own folder."""
    inside: dict[str, set[str]] = defaultdict(set)
    for image in (image for split in images.splits.values() for image in split if image.storage is None):
        folders = PurePath(image.path).parent.parts
        if image.pixels is None and (label := str(image.label)) in folders:
            below = folders[len(folders) - folders[::-1].index(label) :]
            # Where splits lie inside the classes, these subfolders are no classes.
            if below and (tell_split(below[0]) is None or "all" in images.splits):
                inside[label].add(below[0])
    cases = [
        Case((), f"{label} holds {shorten_names(sorted(names), most=4)}")
        for label, names in sorted(inside.items())
        if len(names) > 1
    ]
    return make_finding(
        "nested",
        "note",
        cases,
        f"{count_cases(cases, 'class', 'classes')} with several subfolders",
        "Images in a subfolder are of the class whose folder it lies in. If the subfolders are the classes, put "
        "them beside each other.",
    )


def find_placeholders(records: Sequence[ImageRecord]) -> Finding | None:
    """Drawings on a plain background among photos, such as the `image not found` that web sites send.

    Equal files are one case. In a dataset of drawings none is reported.
    """
    groups = [[records[number] for number in numbers] for numbers in group_exact(records).values()]
    drawn = [each for each in groups if each[0].looks_drawn]
    if 2 * len(drawn) > len(groups):
        return None
    plain = drawn + [
        each
        for each in groups
        if not each[0].looks_drawn and len(each) >= MANY_EQUAL and each[0].plain_share >= LEAST_PLAIN_OF_EQUAL
    ]
    plain.sort(key=len, reverse=True)
    cases = [
        Case(
            tuple(map(member, each)),
            f"{math.floor(100 * each[0].plain_share)} % of it is one colour"
            + (f", and {len(each):,} files are the same" if len(each) > 1 else ""),
        )
        for each in plain
    ]
    count = sum(map(len, plain))
    return make_finding(
        "placeholder",
        "warning",
        cases,
        f"{count:,} {'image is' if count == 1 else 'images are'} probably no photo but a placeholder",
        "Nearly all of it is one plain colour, unlike the other images: a site's `image not found`, or an empty "
        "image. Look at them, and remove those that show nothing of their class.",
    )


def find_missing_classes(images: ImageDataset, records: Sequence[ImageRecord]) -> Finding | None:
    """Classes of which a split has no readable image."""
    seen = {(s.split, label) for s in records if s.problem is None for label in s.image.classes}
    several = images.task == "multi-label"  # then a class that no split has is an unused label
    used = {label for _, label in seen}
    cases = [
        Case((), f"{split} has no readable image of {label}")
        for split in images.splits
        for label in images.labels
        if (split, label) not in seen and (label in used or not several)
    ]
    return make_finding(
        "missing-class",
        "warning" if several else "error",
        cases,
        f"{count_cases(cases, 'class', 'classes')} missing from a split",
        "Metrics of that split do not cover the class. Add images of it, or remove the class from all splits.",
    )


def find_similar_names(labels: Sequence[str]) -> Finding | None:
    """Classes whose names differ only in case, spaces or Unicode form, which are probably one class."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        by_name[fold(label)].append(label)
    cases = [
        Case((), f"{' and '.join(map(show_name, names))} differ only in case or spaces")
        for names in by_name.values()
        if len(names) > 1
    ]
    return make_finding(
        "similar-names",
        "warning",
        cases,
        f"{count_cases(cases, 'class', 'classes')} with several similar names",
        "They are treated as different classes. Give each class one name.",
    )


def find_few(counts: Mapping[str, Mapping[str, int]]) -> Finding | None:
    """Classes with too few images for training or for evaluation."""
    cases, small = [], set()
    for split, classes in counts.items():
        least = FEW_TO_LEARN_FROM if split in ("train", "all") else FEW_TO_MEASURE
        purpose = "learn from" if split in ("train", "all") else "measure on"
        for label, count in sorted(classes.items(), key=lambda item: item[1]):
            if 0 < count < least:
                small.add(label)
                cases.append(Case((), f"{split}: {count} of {label}; fewer than {least} are few to {purpose}"))
    return make_finding(
        "few",
        "warning",
        cases,
        f"{len(small):,} {'class' if len(small) == 1 else 'classes'} with few images",
        "Add images, or train only the head of a pretrained network, and mind the confidence intervals.",
    )


def find_imbalance(counts: Mapping[str, Mapping[str, int]]) -> Finding | None:
    """Training splits whose largest class is several times the smallest."""
    cases = []
    for split in ("train", "all"):
        filled = {label: count for label, count in counts.get(split, {}).items() if count}
        if len(filled) > 1:
            most, least = max(filled, key=filled.__getitem__), min(filled, key=filled.__getitem__)
            ratio = filled[most] / filled[least]
            if ratio > IMBALANCE:
                detail = f"{split}: {filled[most]} of {most}, {filled[least]} of {least}, {ratio:.1f} times as many"
                cases.append(Case((), detail))
    return make_finding(
        "imbalance",
        "warning",
        cases,
        "the classes are imbalanced",
        "Accuracy favours the large classes. Look at the recall of each class, weight the classes, or add images.",
    )


def find_small(records: Sequence[ImageRecord], image_pixels: int) -> Finding | None:
    """Images that are smaller than the network input, the smallest first."""
    small = [s for s in records if s.head is not None and min(s.head.width, s.head.height) < image_pixels]
    small.sort(key=lambda s: min(s.head.width, s.head.height) if s.head else 0)
    cases = [Case((member(s),), f"{s.head.width}×{s.head.height} pixels") for s in small if s.head]
    every = len(cases) == sum(s.head is not None for s in records)
    return make_finding(
        "small",
        "note" if every else "warning",
        cases,
        f"{'all' if every else f'{len(cases):,}'} images are smaller than the network input "
        f"of {image_pixels} pixels",
        "They are enlarged and contain less detail than the network can use. "
        + (
            "Train with a smaller --image-size."
            if every
            else "Find larger images, or train with a smaller --image-size."
        ),
    )


def find_wrong_endings(records: Sequence[ImageRecord]) -> Finding | None:
    """Files whose format is not that of their name."""
    cases = [
        Case((member(s),), f"is {s.head.format}, whose ending is {ENDINGS[s.head.format][0]}")
        for s in records
        if s.head is not None and s.wrong_ending
    ]
    return make_finding(
        "wrong-extension",
        "note",
        cases,
        f"{count_cases(cases, 'file')} whose format differs from the file name ending",
        "vggkit reads them by their content; other programs may not.",
    )


def find_animated(records: Sequence[ImageRecord]) -> Finding | None:
    """Files with more than one frame."""
    cases = [Case((member(s),), f"{s.head.format}, animated") for s in records if s.head and s.head.animated]
    return make_finding(
        "animated",
        "note",
        cases,
        f"{count_cases(cases, 'image')} with several frames",
        "Only the first frame is used.",
    )


def member(record: ImageRecord) -> Member:
    """The image of a record, as findings name it."""
    return Member(record.image.path, record.split, record.label, record.image)


def members(records: Sequence[ImageRecord], numbers: Iterable[int]) -> tuple[Member, ...]:
    return tuple(member(records[number]) for number in numbers)


def make_finding(
    kind: Kind, severity: Severity, cases: Sequence[Case], summary: str, advice: str
) -> Finding | None:
    return Finding(kind, severity, summary, advice, tuple(cases)) if cases else None


def count_cases(cases: Sequence[Case], one: str, many: str | None = None) -> str:
    return f"{len(cases):,} {one if len(cases) == 1 else many or one + 's'}"
