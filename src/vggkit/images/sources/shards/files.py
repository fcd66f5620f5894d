"""The bytes of images in shards: read in place, or from a copy of the shard while its images are needed.

A tar file of this machine is read in place. A file at an address is copied, and of a Parquet file, whose rows
cannot be read one by one, the images are laid one after another; such a copy is made in the background before its
first image is needed, and removed after the last one. The SHA-256 of a shard is verified when it is brought.
"""

import hashlib
import shutil
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadImage, VggkitError
from vggkit.images.sources.locations import Place
from vggkit.images.sources.parquet import ParquetImages
from vggkit.images.sources.shards.manifest import MADE_AGAIN, Form, Shard
from vggkit.images.sources.tables import Columns

CHUNK_BYTES: Final = 1 << 22
BROUGHT_AT_ONCE: Final = 2
"""Shards that are copied at the same time."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A shard whose images can be read from a file of this machine."""

    path: str
    starts: NDArray[np.int64] | None
    """First byte of each image; None: as in the shard itself."""
    is_temporary: bool


class ShardFiles:
    """A storage of the images of a manifest, by their numbers; safe in threads, and it can be pickled.

    Args:
        places: Where each shard lies.
        shards: What the manifest states of it.
        form: tar or parquet.
        offsets: (N,), the first byte of each image, or its row.
        sizes: (N,), bytes of each image.
        reopen: A function and its arguments that give the same in another process, which is all that is pickled.
    """

    def __init__(
        self,
        places: Sequence[str],
        shards: Sequence[Shard],
        form: Form,
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        *,
        reopen: tuple[Callable[..., "ShardFiles"], str, str],
    ) -> None:
        self.places, self.shards, self.form = tuple(places), tuple(shards), form
        self.offsets, self.sizes = offsets, sizes
        self.firsts = np.cumsum([0, *(shard.images for shard in shards)])
        """Number of the first image of each shard, and the number of all."""
        self.quick = form == "tar" and all(Place(place).is_local for place in places)
        self._reopen = reopen
        self._starts: list[int] = self.firsts.tolist()
        self._lock = threading.Lock()
        self._copies: dict[int, Future[_Copy]] = {}
        self._verified: set[int] = set()
        self._tables: dict[int, ParquetImages] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._folder: Path | None = None
        self._made = 0

    def __reduce__(self) -> tuple[Callable[..., "ShardFiles"], tuple[str, str]]:
        function, *arguments = self._reopen
        return function, (arguments[0], arguments[1])

    def find_shard(self, number: int) -> int:
        """The shard of an image."""
        return bisect_right(self._starts, number) - 1

    def find_shards(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard of each image."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def read(self, key: int) -> bytes:
        """The file of an image.

        Raises BadImage where it cannot be read, BadData and BadDownload where the shard could not be brought.
        """
        shard = self.find_shard(key)
        with self._lock:
            copied = self._copies.get(shard)
        offset, size_bytes = int(self.offsets[key]), int(self.sizes[key])
        copy = None
        if copied is not None:
            with suppress(CancelledError):  # it was released before it began
                copy = copied.result()
        if copy is not None:
            if copy.starts is not None:
                offset = int(copy.starts[key - self.firsts[shard]])
            try:
                data = Place(copy.path).read(offset, size_bytes)
            except FileNotFoundError:  # it was removed since
                if not copy.is_temporary:
                    raise BadImage("its shard is not there any more") from None
                offset = int(self.offsets[key])
                data = self._read_in_place(shard, offset, size_bytes)
        else:
            data = self._read_in_place(shard, offset, size_bytes)
        if len(data) != size_bytes:
            raise BadData(
                f"{self.places[shard]}: has {len(data):,} bytes of an image of {size_bytes:,}: it was changed "
                f"since its manifest was written; {MADE_AGAIN}"
            )
        return data

    def weigh(self, key: int) -> str:
        """The number of bytes."""
        return str(self.sizes[key])

    def bring(self, shard: int) -> None:
        """Begin to copy a shard in the background, or to verify one that is read in place; once."""
        with self._lock:
            if shard in self._copies or (self.quick and shard in self._verified):
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(BROUGHT_AT_ONCE, thread_name_prefix="shard")
            self._copies[shard] = self._pool.submit(self._copy, shard)

    def release(self, shard: int) -> None:
        """Remove the copy of a shard; its images can still be read, each by itself."""
        with self._lock:
            copied = self._copies.pop(shard, None)
        if copied is not None and not copied.cancel():
            copied.add_done_callback(_remove)

    def verify(self, shard: int) -> None:
        """Read a shard to its end; raises BadData where its SHA-256 is not the manifest's, and BadDownload."""
        with Place(self.places[shard]).open() as file:
            self._pass(file, None, shard)

    def _read_in_place(self, shard: int, offset: int, size_bytes: int) -> bytes:
        if self.form == "parquet":
            with self._lock:
                table = self._tables.get(shard)
                if table is None:
                    # Each keeps some groups of rows.
                    while len(self._tables) >= BROUGHT_AT_ONCE:
                        self._tables.pop(next(iter(self._tables)))
                    table = self._tables[shard] = ParquetImages(Place(self.places[shard]), Columns())
            return table.read(offset)
        try:
            return Place(self.places[shard]).read(offset, size_bytes)
        except OSError as problem:
            raise BadImage(f"its shard cannot be read ({problem})") from problem

    def _copy(self, shard: int) -> _Copy:
        place = Place(self.places[shard])
        if self.quick:
            self.verify(shard)
            with self._lock:
                self._verified.add(shard)
            return _Copy(place.address, None, is_temporary=False)
        whole, images = self._name_copy(shard, "whole"), self._name_copy(shard, "images")
        try:
            if place.is_local:
                self.verify(shard)
            else:
                with place.open() as file, open(whole, "wb") as out:
                    self._pass(file, out, shard)
            if self.form == "tar":
                return _Copy(str(whole), None, is_temporary=True)
            starts = self._lay_out(shard, place if place.is_local else Place(str(whole)), images)
            if not place.is_local:
                whole.unlink()
        except BaseException as problem:
            whole.unlink(missing_ok=True)
            images.unlink(missing_ok=True)
            if isinstance(problem, OSError) and not isinstance(problem, VggkitError):
                raise BadData(f"{place}: cannot be brought here ({problem})") from problem
            raise
        return _Copy(str(images), starts, is_temporary=True)

    def _pass(self, file: Any, out: Any, shard: int) -> None:
        """Read a file to its end, perhaps into another; raises BadData where its SHA-256 is not the manifest's."""
        found = hashlib.sha256()
        try:
            while chunk := file.read(CHUNK_BYTES):
                found.update(chunk)
                if out is not None:
                    out.write(chunk)
        except OSError as problem:
            raise BadData(f"{self.places[shard]}: cannot be read to its end ({problem})") from problem
        if found.hexdigest() != self.shards[shard].sha256:
            raise BadData(
                f"{self.places[shard]}: its contents are not those that its manifest states (SHA-256 "
                f"{found.hexdigest()[:12]}… in place of {self.shards[shard].sha256[:12]}…): it was damaged or "
                f"replaced; {MADE_AGAIN}"
            )

    def _lay_out(self, shard: int, place: Place, to: Path) -> NDArray[np.int64]:
        """Write the images of a Parquet file one after another; returns where each begins."""
        first, stop = self.firsts[shard : shard + 2]
        rows = self.offsets[first:stop]
        sizes = self.sizes[first:stop]
        table = ParquetImages(place, Columns())
        with open(to, "wb") as out:
            for row, size_bytes in zip(rows.tolist(), sizes.tolist(), strict=True):
                data = table.read(row)
                if len(data) != size_bytes:
                    raise BadData(
                        f"{self.places[shard]}: its row {row} has {len(data):,} bytes, and the index of its "
                        f"manifest states {size_bytes:,}; {MADE_AGAIN}"
                    )
                out.write(data)
        starts: NDArray[np.int64] = np.cumsum(sizes) - sizes
        return starts

    def _name_copy(self, shard: int, kind: str) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="vggkit-shards-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            # With a name of its own: a copy that is being removed may still be there.
            self._made += 1
            return self._folder / f"{shard}-{kind}-{self._made}"


def _remove(copied: Future[_Copy]) -> None:
    if not copied.cancelled() and copied.exception() is None and copied.result().is_temporary:
        Path(copied.result().path).unlink(missing_ok=True)
