"""Processes that want to write the same file take turns: a lock that ends with its process."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vggkit.errors import BadOutput

PAUSE_SECONDS: Final = 0.1


@contextmanager
def take_turn(lock: Path, longest_seconds: float, *, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file while the body runs; wait for it where another process holds it.

    Args:
        lock: The lock's file; it goes with its last holder.
        longest_seconds: Wait no longer than this.
        meanwhile: Called ten times a second while waiting.

    Raises BadOutput where the other one does not end, and OSError where the place cannot be written to.
    """
    until = time.monotonic() + longest_seconds
    while (handle := _try(lock)) is None:
        if time.monotonic() > until:
            raise BadOutput(f"{lock}: another process has held it for {longest_seconds:g} s; end that one first")
        meanwhile()
        time.sleep(PAUSE_SECONDS)
    try:
        yield
    finally:
        # Unlinked while it is held: whoever opened it before sees below that it is another file.
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _try(lock: Path) -> int | None:
    """The open, locked file; None where another process holds it."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle)
        if os.path.samestat(os.fstat(handle), os.stat(lock)):  # noqa: PTH116 (beside fstat)
            return handle
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass  # held by another, or it has just gone with its last holder
    except OSError:
        return handle  # a file system without locks: the digest still guards the file
    os.close(handle)
    return None


def _lock(handle: int) -> None:
    """Lock it or raise at once; the system unlocks it when the process ends, however it ends."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
