"""Zip archives whose every claim is compared with the file before anything is unpacked."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from vggkit.weights.formats.weight_file import DEFLATE_RATIO, LIMIT_BYTES, SLACK_BYTES, reading, refuse, shown

_DIRECTORY_BYTES: Final = 8 * 2**20
"""A zip's directory is read whole; this is room for some 80,000 tensors."""


class _Bounded:
    """The file as zipfile sees it, which would otherwise read as much at once as the archive claims."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.seek, self.tell, self.seekable = handle.seek, handle.tell, handle.seekable

    def read(self, count: int = -1) -> bytes:
        if count > _DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {count} bytes")
        return self._handle.read(_DIRECTORY_BYTES if count < 0 else count)


class Archive:
    """An open zip archive: its members are unencrypted, named once each, and of believable sizes."""

    def __init__(self, path: Path, handle: IO[bytes], size_bytes: int) -> None:
        """Raises BadCheckpoint."""
        self._path = path
        self._handle = handle
        self._size_bytes = size_bytes
        with reading(path, "zip archive"):
            try:
                self._zip = zipfile.ZipFile(_Bounded(handle))
            except zipfile.BadZipFile as problem:
                found = f"a truncated zip archive ({problem}: its directory stands at its end)"
                raise refuse(path, found, "download or copy it again") from problem
            files = [info for info in self._zip.infolist() if not info.is_dir()]
        self.members: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in files}
        """Every file in it by name, in the order of its directory."""
        if len(self.members) < len(files):
            raise refuse(path, "a zip archive with two members of one name", "write it again; readers would differ")
        for info in files:
            self._check(info)
        total = sum(info.file_size for info in files)
        if total > LIMIT_BYTES:
            raise refuse(path, f"a zip archive that claims to unpack to {total} bytes", "no VGG is that large")

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = shown(info.filename)
        if info.flag_bits & 1:
            raise refuse(self._path, f"an encrypted zip archive ({name})", "unpack it first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(
                self._path, f"a zip compression that is not read ({name})", "write it again with deflate or stored"
            )
        stored = info.compress_type == zipfile.ZIP_STORED
        most = info.compress_size if stored else info.compress_size * DEFLATE_RATIO + SLACK_BYTES
        if info.file_size > most or info.header_offset + info.compress_size > self._size_bytes:
            raise refuse(
                self._path,
                f"a zip archive that claims {info.file_size} bytes for {name}, packed in {info.compress_size}",
                "download it again from a source that you trust",
            )

    @property
    def packed(self) -> bool:
        """Whether any of it is compressed."""
        return any(info.compress_type != zipfile.ZIP_STORED for info in self.members.values())

    def open(self, name: str) -> IO[bytes]:
        """A member to read in order; its checksum is compared at its end."""
        return self._zip.open(self.members[name])

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole; raises BadCheckpoint where it is larger than `limit` bytes."""
        size = self.members[name].file_size
        if size > limit:
            raise refuse(self._path, f"{shown(name)} of {size} bytes in it", "no VGG's is that large")
        with reading(self._path, f"member {shown(name)}"), self.open(name) as stream:
            return stream.read(size)

    def find_start(self, name: str) -> int | None:
        """Where a member's bytes start in the file; None where they are packed. Raises ValueError."""
        info = self.members[name]
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        self._handle.seek(info.header_offset)
        header = self._handle.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{shown(name)} is not where the directory says")
        start = (
            info.header_offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:], "little")
        )
        if start + info.file_size > self._size_bytes:
            raise ValueError(f"{shown(name)} breaks off")
        return start

    def close(self) -> None:
        """Let go of the archive, not of its file."""
        self._zip.close()
