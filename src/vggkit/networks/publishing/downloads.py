"""One file from an address: resumed where it broke off, its digest checked, there whole or not at all.

A download that breaks off stays beside its place as `<name>.part`, with what the host said of it in
`<name>.part.json`; the next one goes on from there, in this process or in another. Two processes
that want the same file take turns. No torch here.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Final

from vggkit.errors import BadDownload, BadOutput
from vggkit.networks.publishing.answers import Broken, ask, read_some
from vggkit.networks.publishing.turns import take_turn
from vggkit.writing import write_text

CHUNK_BYTES: Final = 1 << 18
NEWS_BYTES: Final = 1 << 20
"""An attempt that brings this much is no failure, however it ends."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are there, and those of the whole file; 0 where the host does not say."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download waits, and how often it tries again."""

    stall_seconds: float = 30.0
    """Longest wait for a connection, and for the next byte."""
    attempts: int = 5
    """Failures in a row after which it gives up; an attempt that brings a MiB starts the count anew."""
    first_attempts: int = 3
    """The same for a host that has not given a single byte."""
    first_wait_seconds: float = 1.0
    """Pause after the first failure; each following one is twice as long."""
    longest_wait_seconds: float = 20.0
    """Longest pause between two attempts, whatever the host asks for."""
    total_seconds: float = 6 * 3600.0
    """Longest time for one file, however it drips."""


PATIENCE: Final = Patience()


def download(
    address: str,
    path: str | Path,
    *,
    digest_prefix: str,
    at_most_bytes: int,
    on_progress: OnProgress | None = None,
    patience: Patience = PATIENCE,
) -> str:
    """Bring the file at `address` to `path`, unless it is there.

    Args:
        address: http or https; redirects are followed five times at most, never from https to http.
        path: Where it is to stand; its folders are made.
        digest_prefix: First hexadecimal digits of its SHA-256, as many as are known.
        at_most_bytes: A larger file is refused.
        on_progress: Called now and then with the bytes done and in all (0: unknown).
        patience: How long to wait, how often to try.

    Returns the file's whole SHA-256. Raises BadDownload where the host does not give that file,
    and BadOutput where the place cannot be written to or the disk is full.
    """
    path = Path(path)
    part = _Part(path, address)
    wanted = _Wanted(address, path, part, digest_prefix, at_most_bytes, on_progress, patience)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        with take_turn(lock, patience.total_seconds, meanwhile=lambda: part.tell(on_progress)):
            return check_digest(path, digest_prefix) if path.is_file() else _bring(wanted)
    except (BadDownload, BadOutput):
        raise
    except OSError as problem:
        raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: str | Path, digest_prefix: str) -> str:
    """SHA-256 of a file that must begin with `digest_prefix`; raises BadDownload."""
    found = hash_file(path)
    if not found.startswith(digest_prefix):
        raise BadDownload(
            f"{path}: its SHA-256 begins {found[:8]}, and that of the published file {digest_prefix}; "
            "it is broken or another file: delete it and run again"
        )
    return found


@dataclass(frozen=True)
class _Note:
    """What a host said about a file."""

    validator: str | None = None
    """Strong ETag, else the date of its last change."""
    total_bytes: int | None = None


class _Part:
    """What is there of a file, and the note beside it."""

    def __init__(self, path: Path, address: str) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.address = address

    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def read_note(self) -> _Note | None:
        """None where nothing tells what the bytes are of."""
        try:
            said = json.loads(self.note.read_text(encoding="utf-8"))
            note = _Note(said["validator"], said["total_bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        known = isinstance(note.validator, str | None) and isinstance(note.total_bytes, int | None)
        return note if known and said["address"] == self.address else None

    def begin(self, note: _Note) -> None:
        """Start anew. The old bytes go first, so that they never stand under the new note."""
        self.discard()
        said = {"address": self.address, "validator": note.validator, "total_bytes": note.total_bytes}
        write_text(self.note, json.dumps(said))

    def discard(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)

    def hash(self, size: int) -> "hashlib._Hash":
        """The digest of the first `size` bytes."""
        digest = hashlib.sha256()
        if size:
            with open(self.path, "rb") as file:
                while size and (chunk := file.read(min(CHUNK_BYTES, size))):
                    digest.update(chunk)
                    size -= len(chunk)
        return digest

    def tell(self, on_progress: OnProgress | None) -> None:
        """Report how far another process has come."""
        if on_progress is not None:
            note = self.read_note()
            on_progress(self.size_bytes(), (note and note.total_bytes) or 0)


@dataclass(frozen=True)
class _Wanted:
    """`download`'s arguments."""

    address: str
    path: Path
    part: _Part
    digest_prefix: str
    at_most_bytes: int
    on_progress: OnProgress | None
    patience: Patience


def _bring(wanted: _Wanted) -> str:
    """Try until it is there or patience ends."""
    part, patience = wanted.part, wanted.patience
    deadline = time.monotonic() + patience.total_seconds
    failures, most, came = 0, part.size_bytes(), False
    while True:
        try:
            return _attempt(wanted, deadline)
        except Broken as problem:
            size = part.size_bytes()
            failures = 1 if size >= most + NEWS_BYTES else failures + 1
            came, most = came or size > most, max(most, size)
            if problem.start_over:
                part.discard()
            pause = max(patience.first_wait_seconds * 2 ** (failures - 1), problem.wait_seconds)
            pause = min(pause, patience.longest_wait_seconds)
            limit = patience.attempts if came else patience.first_attempts
            if failures >= limit or time.monotonic() + pause > deadline:
                kept = f"; {size:,} bytes are kept, run again to go on from there" if part.size_bytes() else ""
                raise BadDownload(f"{wanted.address}: {problem}, {failures} times in a row{kept}") from problem
            time.sleep(pause)


def _attempt(wanted: _Wanted, deadline: float) -> str:
    part, stall_seconds = wanted.part, wanted.patience.stall_seconds
    size, note = part.size_bytes(), part.read_note()
    start = size if note and (note.validator or wanted.digest_prefix) else 0
    if note and start and start == note.total_bytes:  # it ended between the last byte and the file's name
        return _finish(wanted, part.hash(start), resumed=True)
    validator = note.validator if note else None
    with ask(wanted.address, start=start, validator=validator, stall_seconds=stall_seconds) as response:
        start, total = _agree(wanted, response, start, note)
        digest, done = part.hash(start), start
        with open(part.path, "r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            _report(wanted, done, total)
            while chunk := read_some(response, CHUNK_BYTES, stall_seconds=stall_seconds):
                done += len(chunk)
                if done > wanted.at_most_bytes:
                    part.discard()
                    raise BadDownload(
                        f"{wanted.address}: sends more than the {wanted.at_most_bytes:,} bytes expected"
                    )
                if time.monotonic() > deadline:
                    raise BadDownload(f"{wanted.address}: took over {wanted.patience.total_seconds:g} s; gave up")
                digest.update(chunk)
                file.write(chunk)
                _report(wanted, done, total)
            file.flush()
            with suppress(OSError):  # not every file system can
                os.fsync(file.fileno())
    if total is not None and done != total:
        raise Broken(f"the connection ended after {done:,} of {total:,} bytes")
    return _finish(wanted, digest, resumed=start > 0)


def _agree(wanted: _Wanted, response: HTTPResponse, start: int, note: _Note | None) -> tuple[int, int | None]:
    """From which byte to write, and the size of the whole file, by what the host answers."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")  # W/"…" is for pages
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        total = int(found[2]) if found else None
        same = note is not None and note.validator in (None, validator) and note.total_bytes in (None, total)
        if not (found and same and int(found[1]) == start):
            raise Broken("the file changed on its host in between", start_over=True)
    else:  # the host gives no parts, or the file changed
        length = response.headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdecimal() else None
    if total is not None and total > wanted.at_most_bytes:
        raise BadDownload(
            f"{wanted.address}: says to be {total:,} bytes, expected {wanted.at_most_bytes:,} at most; another one?"
        )
    if total is not None and (free := shutil.disk_usage(wanted.path.parent).free) < total - start:
        raise BadOutput(
            f"{wanted.path}: needs {(total - start) / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB left"
        )
    if start == 0:
        wanted.part.begin(_Note(validator, total))
    return start, total


def _finish(wanted: _Wanted, digest: "hashlib._Hash", *, resumed: bool) -> str:
    """Give the file its name where it is the right one, else throw it away."""
    found, size = digest.hexdigest(), wanted.part.size_bytes()
    if found.startswith(wanted.digest_prefix):
        wanted.part.path.replace(wanted.path)
        wanted.part.discard()
        return found
    wanted.part.discard()
    if resumed:  # the older part of it may have been at fault
        raise Broken(f"{size:,} bytes came in pieces whose SHA-256 is not {wanted.digest_prefix}…")
    raise BadDownload(
        f"{wanted.address}: {size:,} bytes came whose SHA-256 begins {found[:8]}, and that of the published file "
        f"begins {wanted.digest_prefix}; they were thrown away: try from another network"
    )


def _report(wanted: _Wanted, done: int, total: int | None) -> None:
    if wanted.on_progress is not None:
        wanted.on_progress(done, total or 0)
