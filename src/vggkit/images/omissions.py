"""What lies in a collection and is none of its images: why, how often, and the first names."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

Reason = Literal[
    "beside-classes",
    "broken-link",
    "link-loop",
    "seen-again",
    "listed-twice",
    "unreadable",
    "hidden",
    "not-a-file",
    "not-an-image",
]
"""Why something was skipped, the likeliest mistakes first."""

MOST_EXAMPLES: Final = 3

_SAID: Final[dict[Reason, tuple[str, str]]] = {
    "beside-classes": ("image lies", "images lie"),
    "broken-link": ("link leads nowhere", "links lead nowhere"),
    "link-loop": ("link leads back", "links lead back"),
    "seen-again": ("file or folder is", "files or folders are"),
    "listed-twice": ("entry repeats", "entries repeat"),
    "unreadable": ("file cannot be read", "files cannot be read"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "not-a-file": ("pipe, socket or device", "pipes, sockets or devices"),
    "not-an-image": ("file is not an image", "files are not images"),
}
_MORE: Final[dict[Reason, str]] = {
    "beside-classes": " beside the class folders, in none of them",
    "link-loop": " to a folder that it lies in",
    "seen-again": " reached a second time through a link",
    "listed-twice": " an image with the same label",
    "unreadable": ", and nothing in the name tells an image",
}


@dataclass(frozen=True, slots=True)
class Omission:
    """What was skipped for one reason."""

    reason: Reason
    """Why."""
    count: int
    """How many files, folders or entries."""
    examples: tuple[str, ...]
    """The first of them, at most three."""

    @property
    def is_grave(self) -> bool:
        """Whether images may be missing that somebody meant to be there."""
        return self.reason not in ("hidden", "not-a-file", "not-an-image")

    def describe(self) -> str:
        """A sentence for people: `2 files are not images: a/notes, a/x.txt`."""
        one, many = _SAID[self.reason]
        more = ", …" if self.count > len(self.examples) else ""
        said = f"{self.count:,} {one if self.count == 1 else many}{_MORE.get(self.reason, '')}"
        return f"{said}: {', '.join(self.examples)}{more}"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {**asdict(self), "examples": list(self.examples)}


def warn_of_omissions(omissions: Iterable[Omission]) -> None:
    """Warn a Python caller of what somebody may have meant to be an image, such as links that lead nowhere."""
    for omission in omissions:
        if omission.is_grave:
            warnings.warn(f"passed over: {omission.describe()}", stacklevel=3)


class Reading:
    """What is met while a place is read, beside its images; in memory are counts and a few names."""

    def __init__(self, *, is_own: Callable[[object], bool] = lambda name: False) -> None:
        self.is_own = is_own
        """Whether a name is of a file that the caller itself writes there, which is not counted."""
        self._counts: dict[Reason, int] = {}
        self._examples: dict[Reason, list[str]] = {}
        self.written_labels: set[str] = set()
        """Labels that somebody wrote into a table or beside an image, other than names of folders."""

    def omit(self, reason: Reason, name: object) -> None:
        """Count what is skipped."""
        if not self.is_own(name):
            self._count(reason, 1, [str(name)])

    def take(self, other: "Reading") -> None:
        """Count what another has met, too."""
        for reason, count in other._counts.items():
            self._count(reason, count, other._examples[reason])
        self.written_labels |= other.written_labels

    def list_omissions(self) -> tuple[Omission, ...]:
        """A record for each reason, the likeliest mistakes first."""
        return tuple(
            Omission(reason, self._counts[reason], tuple(self._examples[reason]))
            for reason in get_args(Reason)
            if reason in self._counts
        )

    def _count(self, reason: Reason, count: int, examples: list[str]) -> None:
        self._counts[reason] = self._counts.get(reason, 0) + count
        held = self._examples.setdefault(reason, [])
        held += examples[: MOST_EXAMPLES - len(held)]
