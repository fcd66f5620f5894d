"""What a request may take of the service, and the counters that hold all requests together to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Final

from vggkit.errors import BadConfiguration
from vggkit.serving.refusals import Refusal

LEAST_BUFFERS: Final = 2
"""Requests of the largest size that fit into the memory for requests, at least."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """ServeLimits of the service; a request beyond one of them is refused with a reason.

    Raises BadConfiguration for limits that are not positive, or that contradict each other.
    """

    max_request_bytes: int = 32 * 2**20
    """Size of a request's body in bytes; beyond it 413."""
    max_images: int = 32
    """Number of images in a request; beyond it 413."""
    max_image_pixels: int = 50_000_000
    """Number of pixels of an image, as its header states it; a larger one is not decoded."""
    max_queue: int = 256
    """Number of images that wait or are computed; beyond it 503 with Retry-After."""
    max_buffer_bytes: int = 512 * 2**20
    """Size of all request bodies in memory, in bytes; beyond it 503 with Retry-After."""
    timeout_seconds: float = 30.0
    """Time from a complete request to its result; beyond it 504."""
    upload_seconds: float = 60.0
    """Time in which a request must arrive, in seconds; beyond it 408."""
    header_seconds: float = 10.0
    """Time in which a request's headers must arrive, in seconds; beyond it 408."""
    max_header_bytes: int = 16 * 2**10
    """Size of a request's address and headers in bytes; beyond it 431."""
    max_connections: int = 256
    """Number of open connections of a worker; beyond it 503 with Retry-After."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise BadConfiguration(f"{field.name} must be above 0; got {value}")
        if self.max_queue < self.max_images:
            raise BadConfiguration(
                f"max_queue must be at least max_images, or a request of {self.max_images} images could never be "
                f"computed; got {self.max_queue}"
            )
        if self.max_buffer_bytes < LEAST_BUFFERS * self.max_request_bytes:
            raise BadConfiguration(
                f"max_buffer_bytes must be at least {LEAST_BUFFERS} times max_request_bytes "
                f"({self.max_request_bytes:,}); got {self.max_buffer_bytes:,}"
            )


class Budget:
    """Bytes of memory that all requests share. For one event loop.

    Args:
        most_bytes: How many there are.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.used_bytes = most_bytes, 0

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """What a request takes, and gives back at its end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.used_bytes -= lease.taken


class Lease:
    """Bytes that one request has taken of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.taken = budget, 0

    def take(self, count: int) -> None:
        """Take some more; raises Refusal, 503, where they are not left."""
        budget = self._budget
        if budget.used_bytes + count > budget.most_bytes:
            raise Refusal.overloaded(
                f"the service is busy: requests take {budget.used_bytes:,} of {budget.most_bytes:,} bytes "
                "(--max-buffer-bytes); try again in a second"
            )
        budget.used_bytes += count
        self.taken += count
