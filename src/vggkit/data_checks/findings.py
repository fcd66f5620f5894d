"""The records of a dataset check: the diagnosis, its findings and their cases."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Omission
from vggkit.task import Task

Kind = Literal[
    "unreadable",
    "one-class",
    "missing-class",
    "similar-names",
    "leakage",
    "contradiction",
    "placeholder",
    "combined-label",
    "unused-label",
    "inseparable-labels",
    "skipped",
    "duplicate",
    "near-duplicate",
    "nested",
    "mislabelled",
    "outlier",
    "few",
    "imbalance",
    "small",
    "unlabelled",
    "wrong-extension",
    "animated",
]
"""The kinds of findings, the most severe first."""

Severity = Literal["error", "warning", "note"]
"""`error`: metrics would be invalid. `warning`: results may be worse than necessary. `note`: for information."""


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a case."""

    path: str
    """The path of the image."""
    split: str
    """`train`, `val` or `test`; `all` where the dataset is not divided."""
    label: str
    """Its class."""
    image: ImageSample = field(repr=False, compare=False)
    """The image."""

    def to_dict(self) -> dict[str, str]:
        """A value for JSON."""
        return {"path": self.path, "split": self.split, "label": self.label}


@dataclass(frozen=True, slots=True)
class Case:
    """One instance of a finding: an image, or images that belong together."""

    members: tuple[Member, ...]
    """The images; none where the case is about a class."""
    detail: str
    """The reason, the similarity, or the more likely class, in words."""
    similarity: float | None = None
    """Similarity of near duplicates in [0, 1]; 1 where the files are byte for byte the same."""
    suggestion: str | None = None
    """The more likely class of an image whose label may be wrong."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `similarity` and `suggestion` only where they are known."""
        values: dict[str, Any] = {"detail": self.detail, "members": [member.to_dict() for member in self.members]}
        optional = {"similarity": self.similarity, "suggestion": self.suggestion}
        return values | {name: value for name, value in optional.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem with all of its cases."""

    kind: Kind
    """The kind of problem."""
    severity: Severity
    """The severity."""
    summary: str
    """The problem and how often it occurs, in a phrase."""
    advice: str
    """The consequence, and what to do."""
    cases: tuple[Case, ...]
    """The cases, the most severe first."""

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
    """The result of a dataset check: its size, the properties of its images, and the findings."""

    data: str
    """The source of the images."""
    counts: Mapping[str, Mapping[str, int]]
    """Readable images of each class in each split."""
    n: int
    """Number of images, including unreadable ones."""
    sides: Sides | None
    """Sizes of the readable images; None where there are none."""
    formats: Mapping[str, int]
    """Number of images by file format, most frequent first."""
    modes: Mapping[str, int]
    """Number of images by Pillow's colour mode, most frequent first."""
    turned: int
    """Number of images that are rotated or mirrored by their EXIF orientation."""
    image_size: int
    """Side in pixels of the network's input."""
    model: str | None
    """The Classifier that labels were checked with; None without one."""
    findings: tuple[Finding, ...]
    """The findings, the most severe first."""
    seconds: float
    """Duration of the check."""
    skipped: tuple[Omission, ...] = ()
    """Files that were found and not used as images, counted by reason."""
    options: Mapping[str, str | bool] = field(default_factory=dict)
    """The options of the check by name that a command must repeat to see the same, such as `label_column`; a
    flag is True."""
    samples: Mapping[str, tuple[Member, ...]] = field(default_factory=dict, repr=False)
    """A few readable images of each class."""
    task: Task = "single-label"
    """Whether every image has exactly one class, or any number of them."""
    labels_per_image: float = 1.0
    """Mean number of labels of an image."""

    def find(self, kind: Kind) -> Finding | None:
        """The finding of that kind; None where there is none."""
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
            "options": dict(self.options),
            "model": self.model,
            "findings": [finding.to_dict() for finding in self.findings],
            "task": self.task,
            "labels_per_image": self.labels_per_image,
            "seconds": round(self.seconds, 2),
            "skipped": [omission.to_dict() for omission in self.skipped],
        }


def write_command(verb: str, data: str, options: Mapping[str, str | bool]) -> str:
    """A line for the shell, with the options that a check was given."""
    words = ["vggkit", verb, data]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *([] if isinstance(value, bool) else [value])]
    return shlex.join(words)
