"""Processes that want to write the same file take turns: filelock's lock, which ends with its process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vggkit.errors import BadOutput


@contextmanager
def take_turn(lock: Path, longest_seconds: float, *, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file while the body runs; wait for it where another process holds it.

    Args:
        lock: The lock's file; its folders are made, and it goes with its holder.
        longest_seconds: Wait no longer than this.
        meanwhile: Called once where there is something to wait for; it may raise, and nothing is waited for.

    Raises BadOutput where the other one does not end, or where the place cannot be written to.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(blocking=False)
        except Timeout:
            meanwhile()
            held.acquire(timeout=longest_seconds)
    except Timeout as problem:
        said = f"another process has held it for {longest_seconds:g} s; end that one first"
        raise BadOutput(f"{lock}: {said}") from problem
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{lock}: cannot be written ({problem.strerror or problem})") from problem
    try:
        yield
    finally:
        # While it is held: filelock sees that whoever opened the file before has locked one without a name.
        with suppress(OSError):
            lock.unlink()
        held.release()
