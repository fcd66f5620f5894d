"""Storages of a single image: its bytes in memory, or the reason why it could not be read."""

import hashlib
from dataclasses import dataclass, field

from vggkit.errors import BadImage


@dataclass(frozen=True, slots=True)
class HeldBytes:
    """A storage of one image whose file is in memory."""

    data: bytes = field(repr=False)
    """Its file."""
    quick: bool = True
    is_named: bool = True
    """Whether the image has its own name; one without is distinguished from others by all of its bytes."""

    def read(self, key: object) -> bytes:
        """The bytes."""
        return self.data

    def weigh(self, key: object) -> str:
        """The number of bytes, or a digest of them."""
        return str(len(self.data)) if self.is_named else hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A storage of one image that could not be read."""

    reason: str
    """Why."""
    quick: bool = True

    def read(self, key: object) -> bytes:
        """Raises BadImage with the reason."""
        raise BadImage(self.reason)

    def weigh(self, key: object) -> str:
        """The reason."""
        return self.reason
