"""Files appear whole or not at all: written beside their place, flushed to the disk, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vggkit.arguments import demand_path
from vggkit.errors import BadOutput


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


def move_file(source: Path, target: Path) -> None:
    """Let a whole file of the same disk take another's place in one step; raises BadOutput."""
    try:
        source.replace(target)
    except OSError as problem:
        raise BadOutput(f"{target}: cannot be written ({problem.strerror or problem})") from problem
    _flush_folder(target.parent)


def demand_writable(path: str | Path) -> None:
    """Raise BadOutput where a file cannot be written, before work is spent on what is to be written."""
    path = demand_path(path)
    if path.is_dir():
        raise BadOutput(f"{path}: is a folder, and a file is to be written there; name a file")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as problem:
        raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem


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
