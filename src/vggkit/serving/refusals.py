"""Requests that are refused: a status, a name for programs, and a sentence for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

RETRY_SECONDS: Final = 1
"""What Retry-After says."""


@dataclass(frozen=True, slots=True)
class ImageProblem:
    """An image of a request that cannot be classified."""

    name: str
    """Its name, as it was sent."""
    problem: str
    """Why, in a sentence."""


@dataclass(eq=False)
class Refusal(Exception):
    """A request that gets an error as its response."""

    status: int
    """The HTTP status."""
    error: str
    """The name of the error, for programs."""
    message: str
    """The rule, what was received, and what to do."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the response."""
    images: Sequence[ImageProblem] = ()
    """The problem of each image, where every image has one."""

    @classmethod
    def overloaded(cls, message: str) -> Self:
        """503, to be tried again."""
        return cls(503, "overloaded", message, {"Retry-After": str(RETRY_SECONDS)})

    def to_dict(self, request_id: str) -> dict[str, Any]:
        """The response's JSON."""
        values: dict[str, Any] = {"error": self.error, "message": self.message, "request_id": request_id}
        if self.images:
            values["images"] = [{"name": each.name, "problem": each.problem} for each in self.images]
        return values
