"""Files are written atomically, and shared files by one process at a time."""

import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vggkit.arguments import demand_path
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
        reason = f"another process has held it for {longest_seconds:g} s; end that one first"
        raise BadOutput(f"{lock}: {reason}") from problem
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{lock}: cannot be written ({problem.strerror or problem})") from problem
    try:
        yield
    finally:
        # While it is held: filelock sees that a process which opened the file before has locked one without a name.
        with suppress(OSError):
            lock.unlink()
        held.release()


LONGEST_NAME: Final = 60
"""Characters that a name gives to a file's."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; on leaving, it becomes `path` in one step.

    When the body fails nothing is left behind and an older `path` stays as it was. Folders
    above it are made. Raises BadOutput when the place cannot be written to.
    """
    path = demand_path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise BadOutput(f"{path}: is a folder, and a file is to be written there; name a file")
        try:
            beside.touch()
            mode = beside.stat().st_mode  # as the system gives new files; some writers make theirs private
            yield beside
            beside.chmod(mode)
            with open(beside, "rb+") as written:
                os.fsync(written.fileno())
            beside.replace(path)
        finally:
            with suppress(FileNotFoundError):
                beside.unlink()
        _flush_folder(path.parent)
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem


@contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Give a temporary folder beside files of one folder; on leaving, those of these names in it take their places.

    When the body fails nothing is left behind and older files stay as they were. Of several files the last one is
    what others are found by: an older one goes first, so that it never stands beside files that are not its own.
    Folders above are made. Raises BadOutput when the place cannot be written to.
    """
    last = paths[-1]
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{last.name}.", suffix=".part", dir=last.parent) as folder:
            yield Path(folder)
            for path in paths:
                with open(Path(folder) / path.name, "rb+") as written:
                    os.fsync(written.fileno())
            if len(paths) > 1:
                last.unlink(missing_ok=True)
            for path in paths:
                (Path(folder) / path.name).replace(path)
        _flush_folder(last.parent)
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{last}: cannot be written ({problem.strerror or problem})") from problem


@contextmanager
def whole_folder(path: Path, *, ours: str) -> Iterator[Path]:
    """Give a temporary folder that takes the place on leaving; when the body fails nothing is left.

    Args:
        path: A folder that does not exist, is empty, or holds a file called `ours`: such a one is replaced.
        ours: The name of a file that only such folders hold.

    Raises BadOutput for another folder and where the place cannot be written to.
    """
    try:
        demand_replaceable(path, ours=ours)
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as outer:
            made = Path(outer) / "new"
            made.mkdir()
            yield made
            for file in made.rglob("*"):
                if file.is_file():
                    with open(file, "rb+") as written:
                        os.fsync(written.fileno())
            if path.exists():
                path.replace(Path(outer) / "old")
            made.replace(path)
        _flush_folder(path.parent)
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem


def demand_replaceable(path: Path, *, ours: str) -> None:
    """Raise BadOutput unless a folder does not exist, is empty, or holds a file called `ours`."""
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or (path / ours).exists())):
        kind = "holds other files" if path.is_dir() else "is a file"
        raise BadOutput(f"{path}: {kind}; name a new folder, or an empty one")


def move_file(source: Path, target: Path) -> None:
    """Let a whole file of the same disk take another's place in one step; raises BadOutput."""
    try:
        source.replace(target)
    except OSError as problem:
        raise BadOutput(f"{target}: cannot be written ({problem.strerror or problem})") from problem
    _flush_folder(target.parent)


def demand_writable(path: str | Path) -> None:
    """Raise BadOutput where a file cannot be written, before any work is done."""
    path = demand_path(path)
    made: list[Path] = []
    try:
        if path.is_dir():
            raise BadOutput(f"{path}: is a folder, and a file is to be written there; name a file")
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        made += [folder for folder in path.parents if not folder.exists()]  # the deepest first
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except BadOutput:
        raise
    except OSError as problem:
        raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem
    finally:  # readers do not create folders
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def demand_apart(path: str | Path, sources: Iterable[str | Path]) -> None:
    """Raise BadOutput if a file that is to be written is also an input, under any name."""
    real = Path(os.path.realpath(path))  # also where a folder on the way is still to be made
    if real.exists() and any(_is_same(real, source) for source in sources):
        raise BadOutput(f"{path}: is one of the inputs, and would be overwritten; name another file")


def _is_same(path: Path, source: str | Path) -> bool:
    try:
        return path.samefile(source)
    except (OSError, ValueError):  # an address, or inside an archive
        return False


def name_apart(path: Path, names: Iterable[str]) -> list[Path]:
    """Files beside a file, one for each name: all distinct, and from the file, where systems take `A` for `a` too.

    Args:
        path: Such as `results.csv`, beside which stand `results-vgg11.csv`, `results-vgg11-2.csv`.
        names: Any text.
    """
    found: list[Path] = []
    taken = {_fold(path.name)}
    for name in names:
        plain = re.sub(r"[^\w.-]+", "_", name)[-LONGEST_NAME:]
        numbers = chain([""], (f"-{number}" for number in count(2)))
        spellings = (f"{path.stem}-{plain}{number}{path.suffix}" for number in numbers)
        chosen = next(spelling for spelling in spellings if _fold(spelling) not in taken)
        taken.add(_fold(chosen))
        found.append(path.with_name(chosen))
    return found


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (Windows cannot open folders)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")
