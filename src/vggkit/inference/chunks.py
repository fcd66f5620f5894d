"""Long work in parts: each is written whole in a folder beside the file that they will become.

A process that is killed leaves whole parts, and the next one goes on behind them. The folder says what the
parts are made with, and goes when the file is there.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vggkit.engines.info import EngineInfo, is_same_engine
from vggkit.errors import BadData, BadOutput
from vggkit.file_locks import take_turn
from vggkit.files import whole_file, write_text
from vggkit.inference.fingerprint import list_differences
from vggkit.table_files import Column

MANIFEST: Final = "made_with.json"
NAME: Final = re.compile(r"(\d{12})-(\d{12})-([0-9a-f]{16})\.part")
LISTS: Final = "lists"
"""The entry of a part's columns that are no arrays, as JSON."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows on the disk."""

    path: Path
    first: int
    """Number of its first row, counted from 0."""
    stop: int
    """Number of the row behind its last."""
    digest: str
    """Of all images up to its end, see `origins.Chain`."""

    def read(self) -> dict[str, Column]:
        """Its columns; raises BadData where the file is broken."""
        return self._read(arrays=True)

    def read_lists(self) -> dict[str, Column]:
        """As `read`, without the columns that are arrays."""
        return self._read(arrays=False)

    def _read(self, *, arrays: bool) -> dict[str, Column]:
        try:
            with np.load(self.path, allow_pickle=False) as held:
                lists: dict[str, Column] = json.loads(held[LISTS].tobytes())
                return lists | {name: held[name] for name in held.files if arrays and name != LISTS}
        except (OSError, ValueError, KeyError, EOFError) as problem:
            raise BadData(f"{self.path}: is broken ({problem}); remove it, and it is made anew") from problem


class Parts:
    """The parts of one file.

    Args:
        out: The file that they will become.
        made_with: What they are made with; any JSON values.
        engine: What computes them; a part of what they are made with.
    """

    def __init__(self, out: Path, made_with: Mapping[str, Any], engine: EngineInfo) -> None:
        self.out, self.engine = out, engine
        self.made_with: dict[str, Any] = json.loads(json.dumps({**made_with, "engine": asdict(engine)}))
        self.folder = out.with_name(f"{out.name}.parts")

    def are_there(self) -> bool:
        """Whether earlier work left some, or has just begun."""
        return (self.folder / MANIFEST).is_file()

    def open(self) -> None:
        """Begin, or go on where earlier work with the same stopped; raises BadOutput where it was another."""
        if not self.are_there():
            self.discard()  # what was half removed
            write_text(self.folder / MANIFEST, json.dumps(self.made_with, indent=1))
            return
        try:
            then = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise BadOutput(f"{self.folder}: cannot be read ({problem}); remove it") from problem
        demand_same(then, self.made_with, f"{self.folder}: holds parts of other results", engine=self.engine)

    def list(self) -> list[Part]:
        """Those that are there, in order, up to the first gap."""
        found: list[Part] = []
        for path in sorted(self.folder.iterdir()):
            named = NAME.fullmatch(path.name)
            if named and int(named[1]) == (found[-1].stop if found else 0):
                found.append(Part(path, int(named[1]), int(named[2]), named[3]))
        return found

    def count(self) -> int:
        """Rows that are there."""
        listed = self.list() if self.are_there() else []
        return listed[-1].stop if listed else 0

    def add(self, first: int, columns: Mapping[str, Column], digest: str) -> None:
        """Write the rows from number `first` on, whole or not at all; raises BadOutput."""
        lists = {name: column for name, column in columns.items() if not isinstance(column, np.ndarray)}
        stop = first + len(next(iter(columns.values())))
        held: dict[str, Any] = {name: column for name, column in columns.items() if name not in lists}
        held[LISTS] = np.frombuffer(json.dumps(lists).encode(), np.uint8)
        with (
            whole_file(self.folder / f"{first:012d}-{stop:012d}-{digest}.part") as beside,
            open(beside, "wb") as out,
        ):
            np.savez(out, allow_pickle=False, **held)

    def discard(self) -> None:
        """Remove them; what says that they are there goes first."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that writes the file; raises BadOutput where another one does."""

        def refuse() -> None:
            raise BadOutput(f"{self.out}: another process is writing it; let it end, or name another file")

        with ExitStack() as stack:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                lock = self.out.with_name(f".{self.out.name}.lock")
                stack.enter_context(take_turn(lock, 60, meanwhile=refuse))
            except BadOutput:
                raise
            except OSError as problem:
                raise BadOutput(f"{self.out}: cannot be written ({problem.strerror or problem})") from problem
            yield


def demand_same(then: Mapping[str, Any], now: Mapping[str, Any], what: str, *, engine: EngineInfo) -> None:
    """Raise BadOutput where results were made with something else; `what` begins the sentence."""
    recorded = then.get("engine")
    if is_same_engine(recorded, engine):
        then = {**then, "engine": now["engine"]}
    elif isinstance(recorded, str):
        now = {**now, "engine": engine.describe()}
    differing = list_differences(then, now)
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise BadOutput(
            f"{what} ({'; '.join(differing[:4])}{more}). Name another file with --out, or say --overwrite to "
            "begin anew"
        )
