"""The record of a shard that is complete: what a job that was killed finds when it continues."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from vggkit.images.sources.shards.manifest import ShardIndex


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """The contents of a complete shard."""

    index: ShardIndex
    """An entry for each image; classes are places in `labels`."""
    labels: tuple[str, ...]
    """Class names."""
    sha256: str
    """Of the file."""
    size_bytes: int
    """Its length."""
    excluded: tuple[str, ...]
    """Why images could not be read, which are left out."""
    split: str | None = None
    """The split, where it was found in the shard."""

    def pack(self) -> bytes:
        """The record's file."""
        about = {
            "labels": self.labels,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "excluded": [text.encode(errors="replace").decode() for text in self.excluded],
            "split": self.split,
        }
        out = io.BytesIO()
        np.savez(
            out,
            allow_pickle=False,
            index=np.frombuffer(self.index.pack(), np.uint8),
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )
        return out.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Self | None:
        """The record of a file; None for one that is broken."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as held:
                about = json.loads(held["about"].tobytes())
                index = ShardIndex.unpack(held["index"].tobytes())
            return cls(
                index,
                tuple(about["labels"]),
                about["sha256"],
                about["size_bytes"],
                tuple(about["excluded"]),
                about["split"],
            )
        except (OSError, ValueError, KeyError, EOFError):
            return None


@dataclass(slots=True)
class Entries:
    """The entries of a shard while it is written or read."""

    excluded: list[str] = field(default_factory=list)
    """Why images could not be read."""
    _rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _names: list[bytes] = field(default_factory=list)

    def add(self, data: bytes, *, offset: int, label: int, side: int, name: str) -> None:
        """An image: its file, where it begins or its row, its class, its short side, and its name."""
        self._rows.append((offset, len(data), label, side, _number_content(data)))
        self._names.append(name.encode(errors="surrogateescape"))

    def close(
        self, labels: Sequence[str], *, sha256: str, size_bytes: int, split: str | None = None
    ) -> WrittenShard:
        """The record."""
        index = ShardIndex.of(self._rows, self._names)
        return WrittenShard(index, tuple(labels), sha256, size_bytes, tuple(self.excluded), split)


def digest_file(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and its length in bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _number_content(data: bytes) -> int:
    """64 bits of a file's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
