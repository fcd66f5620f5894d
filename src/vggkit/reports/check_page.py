"""The page of a Diagnosis: summary, class sizes, image properties, and every finding, in one HTML file."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from statistics import median_low
from typing import Final, NamedTuple

from vggkit import __version__
from vggkit.data_checks.findings import Case, Diagnosis, Finding, Kind, Member, Severity, Sides, write_command
from vggkit.files import write_text
from vggkit.images.dataset import ImageSample, sort_labels
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.images.sources.tables import Columns
from vggkit.reports.pages.rendering import (
    Thumb,
    find_folder,
    make_thumb,
    render_page,
    say_count,
    split_name,
    split_place,
)

MOST_CASES: Final = 60
"""Cases of a finding on the page; the JSON output has all of them."""

CASES_AT_ONCE: Final = 12
"""Cases that are shown before the rest is unfolded."""

MOST_MEMBERS: Final = 8
"""Images of a case that are shown on the page."""

CLASSES_AT_ONCE: Final = 24
"""Of more classes the largest and the smallest are shown, and all on request."""

CLASSES_AT_EACH_END: Final = 5

OF_TABLES: Final = tuple(field.name for field in fields(Columns))
"""Options about a table, which a table that `check` writes does not need."""

SEVERITIES: Final[dict[Severity, str]] = {
    "error": "metrics measured on these images would be invalid",
    "warning": "results may be worse than necessary",
    "note": "nothing that affects results",
}
"""The consequence of the most severe finding for a training."""

TITLES: Final[dict[Kind, str]] = {
    "unreadable": "Files that cannot be read",
    "one-class": "Only one class",
    "placeholder": "Placeholders among photos",
    "nested": "Classes with subfolders",
    "missing-class": "Classes missing from a split",
    "similar-names": "Classes whose names look the same",
    "leakage": "Leakage: the same images in several splits",
    "contradiction": "Same images, different classes",
    "combined-label": "Labels that look like several",
    "unused-label": "Labels that no image has",
    "inseparable-labels": "Labels that occur only together",
    "skipped": "Passed over",
    "duplicate": "Duplicates",
    "near-duplicate": "Near duplicates",
    "mislabelled": "Labels that may be wrong",
    "outlier": "Outliers",
    "few": "Classes with few images",
    "imbalance": "Classes of unequal size",
    "small": "Images smaller than the network input",
    "unlabelled": "Images without a label",
    "wrong-extension": "Wrong file name endings",
    "animated": "Animations",
}


def write_check_page(diagnosis: Diagnosis, path: str | Path) -> None:
    """Write the diagnosis as one HTML file with its images inside; it contains no scripts and loads nothing.

    Images are decoded again; one that is no longer readable gets a placeholder.

    Args:
        diagnosis: The result of `check`.
        path: The .html file to write.

    Raises BadOutput where the file cannot be written.
    """
    gallery = Gallery.of(diagnosis)
    values = {
        "diagnosis": diagnosis,
        "version": __version__,
        "written": datetime.now().astimezone(),
        "summary": summarize_findings(diagnosis.findings),
        "table": ClassTable.of(diagnosis.counts),
        "scale": draw_to_scale(diagnosis.sides, diagnosis.image_size) if diagnosis.sides else None,
        "titles": TITLES,
        "sections": [show_finding(finding, gallery) for finding in diagnosis.findings],
        "folder": gallery.folder,
        "place": split_place(diagnosis.data),
        "samples": show_samples(diagnosis),
        "check_command": write_command("check", diagnosis.data, diagnosis.options),
        "train_command": write_command("train", diagnosis.data, _leave_out(diagnosis.options, "model")),
        "clean_command": write_command("train", "clean.csv", _leave_out(diagnosis.options, "model", *OF_TABLES)),
    }
    write_text(path, render_page("check.html", values))


def _leave_out(options: Mapping[str, str | bool], *names: str) -> dict[str, str | bool]:
    return {name: value for name, value in options.items() if name not in names}


def show_samples(diagnosis: Diagnosis) -> dict[str, tuple[str, ...]]:
    """A few images of each class as the network sees them, as `data:` addresses; of many classes the first."""
    seen = choose_preprocessing(diagnosis.image_size)
    shown = {}
    for label in sort_labels(diagnosis.samples)[:CLASSES_AT_ONCE]:
        thumbs = (make_thumb(member.image, preprocessing=seen).source for member in diagnosis.samples[label])
        shown[label] = tuple(filter(None, thumbs))
    return shown


@dataclass(frozen=True, slots=True)
class FindingsSummary:
    """The summary of all findings."""

    severity: Severity | None
    """The most severe; None where nothing was found."""
    sentence: str


def summarize_findings(findings: Iterable[Finding]) -> FindingsSummary:
    """For example `2 errors and 1 note: metrics measured on these images would be invalid.`"""
    found = [finding.severity for finding in findings]
    counts = {severity: found.count(severity) for severity in SEVERITIES if severity in found}
    if not counts:
        return FindingsSummary(None, "No findings: these images are ready for training.")
    *others, last = (say_count(count, severity) for severity, count in counts.items())
    listed = f"{', '.join(others)} and {last}" if others else last
    worst = next(iter(counts))
    return FindingsSummary(worst, f"{listed}: {SEVERITIES[worst]}.")


class Profile(NamedTuple):
    """Sizes of the classes of a split in decreasing order, as an SVG path."""

    split: str
    outline: str
    """An SVG path, 1 wide for each class and 100 high for the largest."""
    largest: int
    median: int
    smallest: int


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Number of images of each class in each split."""

    splits: tuple[str, ...]
    labels: tuple[str, ...]
    """Sorted by name, or by decreasing size where there are many."""
    rows: Mapping[str, tuple[int, ...]]
    """Counts of each class, in the order of `splits`."""
    totals: tuple[int, ...]
    largest: tuple[int, ...]
    """The largest class of each split, the scale of its bars."""
    profiles: tuple[Profile, ...]
    """One for each split, where there are many classes; else none."""

    @classmethod
    def of(cls, counts: Mapping[str, Mapping[str, int]]) -> "ClassTable":
        """The table of `Diagnosis.counts`; a class that a split lacks has 0 there."""
        splits = tuple(counts)
        labels = sort_labels(label for classes in counts.values() for label in classes)
        rows = {label: tuple(counts[split].get(label, 0) for split in splits) for label in labels}
        many = len(labels) > CLASSES_AT_ONCE
        if many:
            labels = tuple(sorted(labels, key=lambda label: -sum(rows[label])))
        columns = list(zip(*rows.values(), strict=True)) or [()] * len(splits)
        return cls(
            splits=splits,
            labels=labels,
            rows=rows,
            totals=tuple(map(sum, columns)),
            largest=tuple(max(column, default=0) for column in columns),
            profiles=tuple(map(_draw_profile, splits, columns)) if many else (),
        )

    @property
    def ends(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The largest and the smallest classes."""
        return self.labels[:CLASSES_AT_EACH_END], self.labels[-CLASSES_AT_EACH_END:]


def _draw_profile(split: str, counts: tuple[int, ...]) -> Profile:
    sizes = sorted(counts, reverse=True)
    highest = max(sizes[0], 1)
    # Classes of equal size share a step, which keeps the path short.
    runs = [(size, len(list(run))) for size, run in itertools.groupby(sizes)]
    steps = "".join(f"V{100 - 100 * size / highest:.4g}h{width}" for size, width in runs)
    return Profile(split, f"M0 100{steps}V100Z", sizes[0], median_low(sizes), sizes[-1])


class Rectangle(NamedTuple):
    """A rectangle, scaled so that the longest side of all is 100."""

    left: float
    top: float
    width: float
    height: float


def draw_to_scale(sides: Sides, image_pixels: int) -> dict[str, Rectangle]:
    """The median image and the network's input as centred rectangles in a square of 100."""
    sizes = {"median": sides.median, "seen": (image_pixels, image_pixels)}
    widest, highest = (max(side) for side in zip(*sizes.values(), strict=True))
    unit = 100 / max(widest, highest)
    drawn = {}
    for name, (width, height) in sizes.items():
        corner = ((widest - width) / 2, (highest - height) / 2)
        drawn[name] = Rectangle(*(round(unit * length, 2) for length in (*corner, width, height)))
    return drawn


@dataclass(frozen=True, slots=True)
class Frame:
    """An image as a page shows it."""

    member: Member
    name: str
    """Its path, without the folder that all share."""
    source: str | None
    """The thumbnail as a `data:` address, None where the image cannot be decoded."""
    tiny: bool
    """Whether it is enlarged without smoothing."""

    @property
    def pieces(self) -> list[str]:
        """The name, cut where a line may break: after folders and words, and before the ending."""
        return split_name(self.name)


@dataclass(frozen=True, slots=True)
class CaseView:
    """A case as a page shows it."""

    case: Case
    detail: str
    """The detail of the case, without the path, which is shown separately."""
    frames: tuple[Frame, ...]
    """At most `MOST_MEMBERS`."""
    splits_differ: bool
    labels_differ: bool

    @property
    def undrawn(self) -> int:
        """Number of members that are not shown."""
        return len(self.case.members) - len(self.frames)


@dataclass(frozen=True, slots=True)
class Section:
    """A finding as a page shows it."""

    finding: Finding
    drawn: bool
    """Whether cases are shown with thumbnails; else each is a line."""
    cases: tuple[CaseView, ...]
    """Cases that are shown at once."""
    folded: tuple[CaseView, ...]

    @property
    def undrawn(self) -> int:
        """Number of cases that only the JSON output has."""
        return len(self.finding.cases) - len(self.cases) - len(self.folded)


@dataclass(slots=True)
class Gallery:
    """Thumbnails, each made once, with names relative to a folder."""

    folder: str
    """The folder that all images are in, with its separator; shown names are relative to it."""
    _made: dict[str, Thumb] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, diagnosis: Diagnosis) -> "Gallery":
        """A gallery of the images of all findings."""
        cases = (case for finding in diagnosis.findings for case in finding.cases)
        return cls(find_folder(diagnosis.data, [member.path for case in cases for member in case.members]))

    def show(self, member: Member, *, drawn: bool) -> Frame:
        """A member with its short name, and with its thumbnail if `drawn`."""
        thumb = self._find_thumb(member.image) if drawn else Thumb(None, False)
        return Frame(member, member.path.removeprefix(self.folder), *thumb)

    def _find_thumb(self, image: ImageSample) -> Thumb:
        if image.path not in self._made:
            self._made[image.path] = make_thumb(image)
        return self._made[image.path]


def show_finding(finding: Finding, gallery: Gallery) -> Section:
    """A finding with the cases and images that are shown on the page."""
    drawn = finding.kind != "unreadable" and any(case.members for case in finding.cases)
    views = tuple(_show_case(case, gallery, drawn=drawn) for case in finding.cases[:MOST_CASES])
    return Section(finding, drawn, views[:CASES_AT_ONCE], views[CASES_AT_ONCE:])


def _show_case(case: Case, gallery: Gallery, *, drawn: bool) -> CaseView:
    detail = case.detail.removeprefix(f"{case.members[0].path}: ") if case.members else case.detail
    return CaseView(
        case=case,
        detail=detail,
        frames=tuple(gallery.show(member, drawn=drawn) for member in case.members[:MOST_MEMBERS]),
        splits_differ=len({member.split for member in case.members}) > 1,
        labels_differ=len({member.label for member in case.members}) > 1,
    )
