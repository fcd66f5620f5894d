"""What is wrong with a collection of images: the records that the doctor gives."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vggkit.images.dataset import ImageSample
from vggkit.images.label_texts import LabelRemark
from vggkit.images.omissions import Omission

Kind = Literal[
    "unreadable",
    "missing-class",
    "similar-names",
    "leakage",
    "contradiction",
    "combined-label",
    "label-spaces",
    "passed-over",
    "duplicate",
    "near-duplicate",
    "mislabelled",
    "outlier",
    "few",
    "imbalance",
    "small",
    "wrong-extension",
    "animated",
    "label-spellings",
]
"""What can be found, the gravest first."""

Severity = Literal["error", "warning", "note"]
"""`error`: figures would lie. `warning`: they would be worse than they need be. `note`: good to know."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image that a finding is about."""

    path: str
    """As in its `ImageSample`."""
    split: str
    """`train`, `val` …; `all` where the collection is not divided."""
    label: str
    """Its class."""
    image: ImageSample = field(repr=False, compare=False)
    """Itself."""

    def to_dict(self) -> dict[str, str]:
        """A value for JSON."""
        return {"path": self.path, "part": self.split, "label": self.label}


@dataclass(frozen=True, slots=True)
class Case:
    """One instance of a finding: an image, or images that belong together."""

    members: tuple[Member, ...]
    """The images; none where a class is meant."""
    detail: str
    """What is said of them: the reason, the likeness, the class that is likelier."""
    likeness: float | None = None
    """Of near duplicates, in [0, 1]; 1 where the files are the same, byte for byte."""
    suggestion: str | None = None
    """The likelier class of an image that may have a wrong one."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `likeness` and `suggestion` only where they say something."""
        values: dict[str, Any] = {"detail": self.detail, "members": [member.to_dict() for member in self.members]}
        optional = {"likeness": self.likeness, "suggestion": self.suggestion}
        return values | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and every place where it is."""

    kind: Kind
    """What."""
    severity: Severity
    """How grave."""
    summary: str
    """How often and what it is, in a sentence."""
    advice: str
    """What follows from it, and what to do."""
    cases: tuple[Case, ...]
    """Where; the gravest first."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "summary": self.summary,
            "advice": self.advice,
            "cases": [case.to_dict() for case in self.cases],
        }


@dataclass(frozen=True, slots=True)
class Sides:
    """Sizes of images, in pixels."""

    smallest: tuple[int, int]
    """Width and height of the image with the shortest short side."""
    median: tuple[int, int]
    """Median width and median height."""
    largest: tuple[int, int]
    """Width and height of the image with the most pixels."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a collection holds, and what is wrong with it."""

    data: str
    """Where the images come from."""
    counts: Mapping[str, Mapping[str, int]]
    """Readable images of each class in each split."""
    n: int
    """All images, unreadable ones too."""
    sides: Sides | None
    """Sizes of the readable ones; None where there are none."""
    formats: Mapping[str, int]
    """Images by file format, the commonest first."""
    modes: Mapping[str, int]
    """Images by colour mode as Pillow names it, the commonest first."""
    turned: int
    """Images that are stored turned or mirrored, and set right by EXIF's orientation."""
    image_size: int
    """Side of the square that the network is to see."""
    model: str | None
    """The Classifier that labels were checked with, None where without."""
    findings: tuple[Finding, ...]
    """What is wrong, the gravest first."""
    seconds: float
    """How long it took."""
    passed_over: tuple[Omission, ...] = ()
    """What lies among the images and is none of them, counted by reason."""
    remarks: tuple[LabelRemark, ...] = ()
    """Labels that look like several in one, like each other, or are written in several ways."""

    def find(self, kind: Kind) -> Finding | None:
        """The finding of that kind."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "data": self.data,
            "n": self.n,
            "counts": {split: dict(classes) for split, classes in self.counts.items()},
            "sides": asdict(self.sides) if self.sides else None,
            "formats": dict(self.formats),
            "modes": dict(self.modes),
            "turned": self.turned,
            "image_size": self.image_size,
            "model": self.model,
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": round(self.seconds, 2),
            "passed_over": [omission.to_dict() for omission in self.passed_over],
            "remarks": [remark.to_dict() for remark in self.remarks],
        }
