"""Rows of a long job in chunks: each is written atomically, in a folder beside the final file.

A process that is killed leaves complete chunks, and the next one continues after them. The folder records how the
chunks were made, and is removed when the file is complete.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vggkit.errors import BadData, BadOutput
from vggkit.files import take_turn, whole_file, write_text
from vggkit.inference.fingerprint import demand_same
from vggkit.table_files import Column, name_about, name_rows

MANIFEST: Final = "made_with.json"
NAME: Final = re.compile(r"(\d{12})-(\d{12})-([0-9a-f]{16})\.part")
LISTS: Final = "lists"
"""The entry of a chunk's columns that are no arrays, as JSON."""
RENAMED: Final = {"answer": "prediction"}
"""Columns by the names of version 0.1, with their current names."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows on the disk."""

    path: Path
    """Its file."""
    first: int
    """Number of its first row, counted from 0."""
    stop: int
    """Number of the row behind its last."""
    digest: str
    """Of all images up to its end, see `fingerprint.ImageDigest`."""

    def read(self, *, arrays: bool = True) -> dict[str, Column]:
        """Its columns, or those that are no arrays; raises BadData where the file is broken."""
        try:
            with np.load(self.path, allow_pickle=False) as held:
                lists: dict[str, Column] = json.loads(held[LISTS].tobytes())
                names = [str(name) for name in held.files if arrays and name != LISTS]
                found = lists | {name: held[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise BadData(f"{self.path}: is broken ({problem}); remove it, and it is computed again") from problem
        return {str(RENAMED.get(name, name)): column for name, column in found.items()}


@dataclass(frozen=True, slots=True)
class ChunkName:
    """What identifies a chunk of a job: a chunk of the same name holds the same rows."""

    first: int
    """Number of its first row, counted from 0."""
    stop: int
    """Number of the row behind its last."""
    digest: str
    """Of all images up to its end."""

    def __str__(self) -> str:
        return f"{self.first:012d}-{self.stop:012d}-{self.digest}.part"


def pack_chunk(columns: Mapping[str, Column]) -> bytes:
    """The file of a chunk's columns."""
    lists = {name: column for name, column in columns.items() if not isinstance(column, np.ndarray)}
    held: dict[str, Any] = {name: column for name, column in columns.items() if name not in lists}
    held[LISTS] = np.frombuffer(json.dumps(lists).encode(), np.uint8)
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, **held)
    return out.getvalue()


class Chunks:
    """The chunks of one file.

    Args:
        out: The final file.
        made_with: Model, engine, options and images; any JSON values.
    """

    def __init__(self, out: Path, made_with: Mapping[str, Any]) -> None:
        self.out = out
        self.made_with: dict[str, Any] = json.loads(json.dumps(made_with))
        self.folder = out.with_name(f"{out.name}.parts")
        self._lock = out.with_name(f".{out.name}.lock")

    def exist(self) -> bool:
        """Whether an earlier call left some, or has just started."""
        return (self.folder / MANIFEST).is_file()

    def open(self) -> None:
        """Start, or continue an equal job; raises BadOutput where the chunks are of another one."""
        if not self.exist():
            self.discard()  # after an interrupted removal
            write_text(self.folder / MANIFEST, json.dumps(self.made_with, indent=1))
            return
        try:
            then = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise BadOutput(f"{self.folder}: cannot be read ({problem}); remove it") from problem
        demand_same(then, self.made_with, f"{self.folder}: holds chunks of other results")

    def list(self) -> list[Chunk]:
        """Those that are there, in order, up to the first gap."""
        found: list[Chunk] = []
        for path in sorted(self.folder.iterdir()):
            named = NAME.fullmatch(path.name)
            if named and int(named[1]) == (found[-1].stop if found else 0):
                found.append(Chunk(path, int(named[1]), int(named[2]), named[3]))
        return found

    def list_names(self) -> set[ChunkName]:
        """The names of those that are there up to the first gap."""
        return {ChunkName(each.first, each.stop, each.digest) for each in self.list()}

    def count(self) -> int:
        """Rows that are there."""
        listed = self.list() if self.exist() else []
        return listed[-1].stop if listed else 0

    def add(self, first: int, columns: Mapping[str, Column], digest: str) -> None:
        """Write the rows from number `first` on, whole or not at all; raises BadOutput."""
        self.put(ChunkName(first, first + len(next(iter(columns.values()))), digest), pack_chunk(columns))

    def put(self, name: ChunkName, data: bytes) -> None:
        """Write a chunk whose file is made already, in place of one of the same name; raises BadOutput."""
        with whole_file(self.folder / str(name)) as beside:
            beside.write_bytes(data)

    def keep(self, names: Collection[ChunkName]) -> set[ChunkName]:
        """Those of these names that are there; chunks of other names are removed."""
        there = {str(name): name for name in names}
        found = set()
        for path in self.folder.iterdir():
            if path.name in there:
                found.add(there[path.name])
            elif NAME.fullmatch(path.name):
                path.unlink()
        return found

    def discard(self) -> None:
        """Remove them; the manifest that lists them is removed first."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def owns(self, name: object) -> bool:
        """Whether a file or folder is one that this job writes, and so no image that was skipped."""
        place = Path(os.path.realpath(str(name)))
        own = [self.out, name_rows(self.out), name_about(self.out), self._lock, self.folder]
        return any(place == each or each in place.parents for each in map(Path, map(os.path.realpath, own)))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that writes the file; raises BadOutput where another one does."""

        def refuse() -> None:
            raise BadOutput(f"{self.out}: another process is writing it; let it end, or name another file")

        with take_turn(self._lock, 60, meanwhile=refuse):
            yield
