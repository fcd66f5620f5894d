"""Files of a dataset that are skipped: the reason, the number, and the first names."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

Reason = Literal[
    "beside-classes",
    "unlabelled",
    "broken-link",
    "link-loop",
    "seen-again",
    "listed-twice",
    "unreadable",
    "hidden",
    "not-a-file",
    "without-images",
    "not-an-image",
]
"""Reasons for skipping a file, probable mistakes first."""

MOST_EXAMPLES: Final = 3

_SAID: Final[dict[Reason, tuple[str, str]]] = {
    "beside-classes": ("image is", "images are"),
    "unlabelled": ("image is", "images are"),
    "broken-link": ("link is broken", "links are broken"),
    "link-loop": ("link leads back", "links lead back"),
    "seen-again": ("file or folder is", "files or folders are"),
    "listed-twice": ("entry repeats", "entries repeat"),
    "unreadable": ("file cannot be read", "files cannot be read"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "not-a-file": ("pipe, socket or device", "pipes, sockets or devices"),
    "without-images": ("folder holds", "folders hold"),
    "not-an-image": ("file is not an image", "files are not images"),
}
_MORE: Final[dict[Reason, str]] = {
    "beside-classes": " beside the class folders, in none of them",
    "unlabelled": " in a split without class folders",
    "without-images": " no images",
    "link-loop": " to a folder that it lies in",
    "seen-again": " reached a second time through a link",
    "listed-twice": " an image with the same label",
    "unreadable": ", and its name does not say whether it is an image",
}


@dataclass(frozen=True, slots=True)
class Omission:
    """The files that were skipped for one reason.

    >>> Omission("not-an-image", 2, ("a/notes", "a/x.txt")).describe()
    '2 files are not images: a/notes, a/x.txt'
    """

    reason: Reason
    """The reason."""
    count: int
    """Number of files, folders or entries."""
    examples: tuple[str, ...]
    """The first names, at most three."""

    @property
    def is_grave(self) -> bool:
        """Whether intended images may be missing."""
        return self.reason not in ("unlabelled", "hidden", "not-a-file", "without-images", "not-an-image")

    def describe(self) -> str:
        """The omission in one phrase."""
        one, many = _SAID[self.reason]
        more = ", …" if self.count > len(self.examples) else ""
        phrase = f"{self.count:,} {one if self.count == 1 else many}{_MORE.get(self.reason, '')}"
        return f"{phrase}: {', '.join(self.examples)}{more}"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {**asdict(self), "examples": list(self.examples)}


def warn_of_omissions(omissions: Iterable[Omission]) -> None:
    """Warn a Python caller of skipped files that may be intended images, such as broken links."""
    for omission in omissions:
        if omission.is_grave:
            warnings.warn(f"skipped: {omission.describe()}", stacklevel=3)


@dataclass(frozen=True, slots=True)
class UnlabelledTable:
    """A table without a column of classes."""

    name: str
    """The table."""
    columns: tuple[str, ...]
    """Its columns whose meaning is not known."""

    def describe(self) -> str:
        """A sentence with what is missing and what to do."""
        listed = ", ".join(map(repr, self.columns[:8])) + (" …" if len(self.columns) > 8 else "")
        found = f", but the columns {listed}" if listed else ""
        return (
            f"{self.name}: has no label for its images{found}; add a column called label, or name the column of "
            "labels with --label-column"
        )


class Reading:
    """Counts skipped files while a place is read."""

    def __init__(self, *, is_own: Callable[[object], bool] = lambda name: False) -> None:
        self.is_own = is_own
        """Whether a name is of a file that the caller itself writes there, which is not counted."""
        self._counts: dict[Reason, int] = {}
        self._examples: dict[Reason, list[str]] = {}
        self.unlabelled_table: UnlabelledTable | None = None
        """A table without labels that was read; an error only where labels are required."""
        self.written_labels: set[str] = set()
        """Labels that were read from a table or a file beside an image, not from the name of a folder."""
        self.classes: dict[str, None] = {}
        """The classes of a table that has a column of zeros and ones for each, in order; empty for others."""

    def omit(self, reason: Reason, name: object) -> None:
        """Count a skipped file."""
        if not self.is_own(name):
            self._count(reason, 1, [str(name)])

    def take(self, other: "Reading") -> None:
        """Add the counts of another Reading."""
        for reason, count in other._counts.items():
            self._count(reason, count, other._examples[reason])
        self.unlabelled_table = self.unlabelled_table or other.unlabelled_table
        self.written_labels |= other.written_labels
        self.classes |= other.classes

    def list_omissions(self) -> tuple[Omission, ...]:
        """A record for each reason, probable mistakes first."""
        return tuple(
            Omission(reason, self._counts[reason], tuple(self._examples[reason]))
            for reason in get_args(Reason)
            if reason in self._counts
        )

    def _count(self, reason: Reason, count: int, examples: list[str]) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + count
        held = self._examples.setdefault(reason, [])
        held += examples[: MOST_EXAMPLES - len(held)]
