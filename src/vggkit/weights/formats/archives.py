"""Zip archives whose claims are compared with the file before anything is unpacked."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from vggkit.weights.formats.weight_file import DEFLATE_RATIO, LIMIT_BYTES, SLACK_BYTES, reading, refuse, shown


class Archive:
    """An open zip archive: its members are unencrypted, named once each, and of believable sizes."""

    def __init__(self, path: Path, handle: IO[bytes], size_bytes: int) -> None:
        """Raises BadCheckpoint."""
        self._path = path
        self._size_bytes = size_bytes
        with reading(path, "zip archive"):
            try:
                self._zip = zipfile.ZipFile(handle)
            except zipfile.BadZipFile as problem:
                found = f"a truncated zip archive ({problem}: its directory is at its end)"
                raise refuse(path, found, "download or copy it again") from problem
            files = [info for info in self._zip.infolist() if not info.is_dir()]
        self.members: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in files}
        """Every file in it by name, in the order of its directory."""
        if len(self.members) < len(files):
            raise refuse(path, "a zip archive with two members of one name", "write it again; readers would differ")
        for info in files:
            self._check(info)
        self.unpacked_bytes = sum(info.file_size for info in files)
        """What all of its members take together."""
        if self.unpacked_bytes > LIMIT_BYTES:
            found = f"a zip archive that claims to unpack to {self.unpacked_bytes} bytes"
            raise refuse(path, found, "no VGG is that large")

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

    def close(self) -> None:
        """Close the archive, not its file."""
        self._zip.close()
