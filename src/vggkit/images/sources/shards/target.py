"""The folder that shards are written to, on this machine or at an address."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vggkit.errors import BadData, BadDownload
from vggkit.files import move_file, whole_file
from vggkit.images.sources.locations import Place, is_address

PARTS: Final = "shards.parts"
"""The folder with the records of complete shards, until all are."""


class ShardTarget:
    """A folder of shards, whose files appear whole or not at all.

    Args:
        folder: A path or an address.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/") or folder
        self.is_local = not is_address(folder)

    def name(self, file: str) -> str:
        """The path or address of a file in it."""
        return str(Path(self.folder) / file) if self.is_local else f"{self.folder}/{file}"

    def list_sizes(self, inside: str = "") -> dict[str, int]:
        """The length of each file in it, or in a folder of it; empty where that is not there."""
        folder = self.name(inside) if inside else self.folder
        if self.is_local:
            files = Path(folder).iterdir() if Path(folder).is_dir() else ()
            return {file.name: file.stat().st_size for file in files if file.is_file()}
        try:
            return Place(folder).list_sizes()
        except BadDownload as problem:
            if isinstance(problem.__cause__, FileNotFoundError) and not _lacks_bucket(problem):
                return {}
            raise

    def read(self, file: str) -> bytes | None:
        """A file's bytes; None where it is not there."""
        try:
            with Place(self.name(file)).open() as opened:
                return opened.read()
        except BadData:
            return None
        except BadDownload as problem:
            if isinstance(problem.__cause__, FileNotFoundError):
                return None
            raise

    def write(self, file: str, data: bytes) -> None:
        """Write a file; raises BadOutput."""
        if self.is_local:
            with whole_file(self.name(file)) as beside:
                beside.write_bytes(data)
            return
        with TemporaryDirectory(prefix="vggkit-") as made:
            whole = Path(made) / "file"
            whole.write_bytes(data)
            Place(self.name(file)).put(whole)

    def take(self, source: Path, file: str) -> None:
        """Let a file of this machine, in `make_room`, become one of the folder; raises BadOutput."""
        if self.is_local:
            move_file(source, Path(self.name(file)))
        else:
            Place(self.name(file)).put(source)
            source.unlink()

    def make_room(self) -> TemporaryDirectory[str]:
        """A temporary folder for files before they are complete: on the same disk, where that is here."""
        if not self.is_local:
            return TemporaryDirectory(prefix="vggkit-")
        return TemporaryDirectory(prefix=".shards.", suffix=".part", dir=self.folder)

    def remove(self, file: str) -> None:
        """Remove a file or a folder in it, where there is one."""
        if not self.is_local:
            Place(self.name(file)).remove()
        elif Path(self.name(file)).is_dir():
            shutil.rmtree(self.name(file), ignore_errors=True)
        else:
            Path(self.name(file)).unlink(missing_ok=True)


def _lacks_bucket(problem: BadDownload) -> bool:
    return "bucket does not exist" in str(problem)
