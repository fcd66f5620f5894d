"""Features that were computed before, on the disk: found by what an image holds, whatever it is called.

A store is a folder of segments. A segment is one .npy file of records, mapped into memory and written
whole, so that processes side by side and a kill in the middle do no harm.

Shape letters: F features.
"""

import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadOutput
from vggkit.files import whole_file
from vggkit.paths import find_home

SEGMENT_ROWS: Final = 1_000
"""Rows that are written together."""
SEGMENT_SECONDS: Final = 30.0
"""Longest time that a computed row waits for others before it is written."""
LIMIT: Final = 10 * 2**30
"""Bytes of all stores; beyond them those go that were not used for the longest time."""

Row = NDArray[np.float32]


class FeatureStore:
    """Rows (F,) by the digest of an image's content and the number of the view; one writer, many readers.

    Args:
        key: Digest of everything else that the rows depend on; it names the folder.
        width: F.
    """

    def __init__(self, key: str, *, width: int) -> None:
        self.folder = find_home() / "features" / key
        self.problem: str | None = None
        """Why nothing more is written, where that is so."""
        self._kind = np.dtype([("picture", "V32"), ("view", "<u4"), ("row", "<f4", (width,))])
        self._rows: dict[tuple[bytes, int], Row] = {}
        self._pending: list[tuple[bytes, int, Row]] = []
        self._written = time.monotonic()
        self._open()

    def find(self, image: bytes, view: int) -> Row | None:
        """The row of a view of the image of that SHA-256; safe from several threads."""
        return self._rows.get((image, view))

    def keep(self, image: bytes, view: int, row: Row) -> None:
        """Remember a row, and write it before long."""
        if (image, view) in self._rows:
            return
        self._rows[image, view] = row
        self._pending.append((image, view, row))
        if len(self._pending) >= SEGMENT_ROWS or time.monotonic() - self._written > SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Where that cannot be, `problem` says why, and the rows are in memory alone."""
        self._written = time.monotonic()
        if not self._pending or self.problem is not None:
            return
        records = np.array(self._pending, self._kind)
        try:
            with whole_file(self.folder / f"{secrets.token_hex(8)}.npy") as beside, open(beside, "wb") as file:
                np.save(file, records, allow_pickle=False)
        except BadOutput as problem:
            self.problem = str(problem)
        self._pending.clear()

    def _open(self) -> None:
        """Map every segment that is whole; another file is none of ours."""
        try:
            paths = sorted(self.folder.glob("*.npy"))
        except OSError:
            return
        for path in paths:
            try:
                records = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if records.dtype != self._kind or records.ndim != 1:
                continue
            rows = records["row"]
            marks = zip(records["picture"].tolist(), records["view"].tolist(), strict=True)
            self._rows.update((mark, rows[number]) for number, mark in enumerate(marks))
        with suppress(OSError):  # a new one has no folder yet
            os.utime(self.folder)
        with suppress(OSError):
            remove_oldest(self.folder.parent, spare=self.folder)


def remove_oldest(folder: Path, *, spare: Path, limit: int = LIMIT) -> None:
    """Remove the stores in a folder that were opened the longest time ago, until the rest fits; but `spare`."""
    stores = [entry for entry in folder.iterdir() if entry.is_dir()]
    sizes = {store: sum(file.stat().st_size for file in store.iterdir()) for store in stores}
    total = sum(sizes.values())
    for store in sorted(stores, key=lambda store: store.stat().st_mtime):
        if total <= limit:
            return
        if store != spare:
            shutil.rmtree(store, ignore_errors=True)
            total -= sizes[store]
