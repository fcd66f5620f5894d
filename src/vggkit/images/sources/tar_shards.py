"""Tar archives of images, as WebDataset writes them: `0001.jpg` beside `0001.cls` or `0001.json`.

An archive of plain folders is read too: an image's class is then the folder that it is in. The module tarfile reads
the headers; `_Header` makes an error of damage that it would read as the end of an archive. Archives without an end
mark, with bytes after it, with links or with sparse files are refused: no image is lost without a message.
"""

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Final, Self, cast

from vggkit.errors import BadData, VggkitError
from vggkit.images.dataset import ImageSample, Storage
from vggkit.images.file_kinds import FIRST_BYTES, is_image_start, is_junk, tell_by_name
from vggkit.images.omissions import Reading
from vggkit.images.sources.locations import Place, Ranges, copy_whole
from vggkit.images.sources.tables import USUAL, name_split, read_lines, read_text
from vggkit.images.split_names import SPLITS, find_split
from vggkit.images.storages import HeldBytes

UNPACKERS: Final[Mapping[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""By the first bytes of what they unpack."""
ENDINGS: Final = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
SIDES: Final = ("cls", "json", "txt")
"""Endings of the files beside an image that may hold its class, in order of preference."""
MOST_SIDE_BYTES: Final = 1_000_000
"""A larger file beside an image holds no class."""
LONGEST_LABEL: Final = 100
"""A longer line of text is a caption and no class."""
NAMES: Final = ("classes.txt", "classnames.txt", "labels.txt")
"""Lists of classes, one on each line, beside shards whose classes are numbers."""
CHUNK_BYTES: Final = 1 << 20

Labelled = Iterator[tuple[str | None, ImageSample]]
"""(Split, image) of each."""
Hold = Callable[[tarfile.TarInfo, "_StartedMember | None"], tuple[Storage, Any]]
"""Gives the storage of a member's bytes and its key there, for a member whose reading may have started."""

_HEADERS: Final = cast(Any, tarfile)  # the kinds of HeaderError are missing from its type stubs


def read_shards(shards: Sequence[Place], reading: Reading | None = None) -> Labelled:
    """(Split, image) of every archive; only headers are read, and images when they are needed.

    An archive that is compressed, or at an address that does not serve ranges, is copied once to a temporary file
    that is deleted with its images. Raises BadData where an archive is damaged or truncated, or holds links or
    sparse files; BadDownload and MissingExtra for addresses.
    """
    reading = reading or Reading()
    for shard in shards:
        with _explained(shard):
            storage = _in_any_order(shard)
            with storage.place.open() as file, _Archive.read(file) as archive:

                def locate(
                    member: tarfile.TarInfo, started: "_StartedMember | None", storage: Ranges = storage
                ) -> tuple[Storage, Any]:
                    return storage, (member.offset_data, member.size)

                yield from _find_images(archive, shard, locate, reading)


def stream_shards(shards: Sequence[Place], reading: Reading | None = None) -> Labelled:
    """As `read_shards`, but each archive is read once from front to back, and each image holds its bytes."""
    reading = reading or Reading()
    for shard in shards:
        with (
            _explained(shard),
            shard.open() as packed,
            _unpack(packed) as file,
            _Archive.read(_Passing(file)) as archive,
        ):

            def bring(
                member: tarfile.TarInfo, started: "_StartedMember | None", archive: _Archive = archive
            ) -> tuple[Storage, Any]:
                return HeldBytes((started or _begin(archive, member)).read()), None

            yield from _find_images(archive, shard, bring, reading)


class _Archive(tarfile.TarFile):
    """A tar archive whose damage is an error: tarfile alone treats a damaged or missing header as its end."""

    @classmethod
    def read(cls, file: "BinaryIO | _Passing") -> Self:
        """The archive in a file that is not compressed."""
        return cast(Self, cast(Any, cls).open(fileobj=file, mode="r:", tarinfo=_Header))

    def walk(self) -> Iterator[tarfile.TarInfo]:
        """Its members in their order; none of them is held in memory. Raises tarfile.ReadError."""
        for member in self:
            cast(Any, self).members = []  # tarfile would hold every header
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file; pack the archive again without --sparse")
            yield member
        file = cast(IO[bytes], self.fileobj)  # behind the end mark, whose header was read last
        while chunk := file.read(CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError(
                    "bytes follow its end mark. Of archives that were joined by cat only the first would be read: "
                    "give them as several files, or unpack them with tar --ignore-zeros and pack them again"
                )


class _Passing:
    """A file that is read once from front to back; `seek` goes forward and ends with the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0

    def tell(self) -> int:
        return self._place

    def read(self, size_bytes: int) -> bytes:
        pieces = []
        while size_bytes > 0 and (piece := self._file.read(min(size_bytes, CHUNK_BYTES))):
            pieces.append(piece)
            size_bytes -= len(piece)
            self._place += len(piece)
        return b"".join(pieces)

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.StreamError("a member overlaps the next one")
        while self._place < place and self.read(min(place - self._place, CHUNK_BYTES)):
            pass


class _Header(tarfile.TarInfo):
    """A header of an `_Archive`."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """The next header; raises EOFHeaderError at the end mark and tarfile.ReadError for all else."""
        assert isinstance(archive, _Archive)
        start = archive.offset
        try:
            header = super().fromtarfile(archive)
        except _HEADERS.EOFHeaderError:  # the end mark
            raise
        except (_HEADERS.EmptyHeaderError, _HEADERS.TruncatedHeaderError):
            raise tarfile.ReadError(
                f"it ends at byte {start:,} without the zeros that mark an archive's end, as a truncated copy "
                "does; copy it again, or append 1,024 zero bytes if it is known to be complete"
                if start
                else "it ends before its first header does"
            ) from None
        except (
            tarfile.HeaderError,
            ValueError,
            LookupError,
            ArithmeticError,
            MemoryError,
            RecursionError,
        ) as problem:
            raise _damaged(start) from problem
        # A negative length would read this header again without end.
        if header.size < 0 or not start < archive.offset < sys.maxsize:
            raise _damaged(start)
        return header


def _damaged(start: int) -> tarfile.ReadError:
    return tarfile.ReadError(f"there is no valid header at byte {start:,}; copy or pack it again")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A member that is used: an image, or a file beside one."""

    path: PurePosixPath
    stem: str
    """The common prefix of the files of one sample: folder, and name up to its first dot."""
    held: tuple[Storage, Any] | None
    """The location of an image's bytes; None for a file that accompanies one."""
    text: str
    """The text of a file beside an image."""


@dataclass(frozen=True, slots=True)
class _StartedMember:
    """A member whose first bytes have been read."""

    start: bytes
    rest: IO[bytes]

    def read(self) -> bytes:
        return self.start + self.rest.read()


def _find_images(archive: _Archive, shard: Place, hold: Hold, reading: Reading) -> Labelled:
    names = _class_names(shard)
    of_shard = find_split(str(shard))
    for _, entries in groupby(_entries(archive, shard, hold, reading), key=lambda entry: entry.stem):
        sample = list(entries)
        beside = _read_sides({entry.path.suffix[1:].lower(): entry.text for entry in sample if entry.held is None})
        for entry in sample:
            if entry.held is not None:
                folders = [name for name in entry.path.parts[:-1] if name.lower() not in SPLITS]
                label = beside.get("label") or (folders[-1] if folders else None)
                if label is not None and label.isdecimal() and int(label) < len(names):
                    label = names[int(label)]
                elif "label" in beside:
                    reading.written_labels.add(beside["label"])
                inside = find_split(str(entry.path.parent))
                storage, key = entry.held
                yield (
                    name_split(beside.get("split")) or inside or of_shard,
                    ImageSample(f"{shard}#{entry.path}", label, storage=storage, key=key),
                )


def _entries(archive: _Archive, shard: Place, hold: Hold, reading: Reading) -> Iterator[_Entry]:
    for member in archive.walk():
        path = PurePosixPath(member.name)
        pieces = [piece for piece in path.parts if piece not in ("..", "/")]
        is_link = member.islnk() or member.issym()
        # Members of types unknown to tarfile have bytes of their own, by POSIX.
        is_file = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
        if not (is_file or is_link) or any(map(is_junk, pieces)):
            continue
        name, kind = f"{shard}#{path}", tell_by_name(path.name)
        if any(piece.startswith(".") for piece in pieces):
            reading.omit("hidden", name)
            continue
        is_side = path.suffix.lower()[1:] in SIDES
        if is_link and (is_side or kind != "other"):
            raise tarfile.ReadError(
                f"{member.name} is a link to {member.linkname}, and links in archives are not followed; pack it "
                "again with tar --dereference --hard-dereference"
            )
        stem = str(path.parent / path.name.partition(".")[0])
        if is_side:
            data = _begin(archive, member).read() if member.size <= MOST_SIDE_BYTES else b""
            yield _Entry(path, stem, None, data.decode("utf-8", errors="replace"))
        elif kind == "image":
            yield _Entry(path, stem, hold(member, None), "")
        elif kind == "unknown" and is_image_start((started := _begin(archive, member, FIRST_BYTES)).start):
            yield _Entry(path, stem, hold(member, started), "")
        else:
            reading.omit("not-an-image", name)


def _begin(archive: _Archive, member: tarfile.TarInfo, size_bytes: int = 0) -> _StartedMember:
    file = archive.extractfile(member)
    assert file is not None, "a file has bytes"
    return _StartedMember(file.read(size_bytes), file)


def _read_sides(texts: dict[str, str]) -> dict[str, str]:
    """The label and the split of an image, where the files beside it hold them."""
    found: dict[str, str] = {}
    for side in SIDES:
        text = texts.get(side, "").strip()
        if side == "json" and text:
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                lower = {str(name).lower(): value for name, value in values.items()}
                for role, usual in (("label", (*USUAL["label"], "cls")), ("split", USUAL["split"])):
                    value = next((lower[name] for name in usual if isinstance(lower.get(name), str | int)), None)
                    if value is not None:
                        found.setdefault(role, str(value))
        elif text and "\n" not in text and len(text) <= LONGEST_LABEL:
            found.setdefault("label", text)
    return found


def _class_names(shard: Place) -> list[str]:
    if shard.is_local:
        for name in NAMES:
            listed = Path(str(shard)).parent / name
            if listed.is_file():
                return [line.strip() for line in read_lines(read_text(listed).splitlines())]
    return []


def _in_any_order(shard: Place) -> Ranges:
    """The archive, or an unpacked copy of one that cannot be read in any order."""
    with shard.open() as packed:
        unpack = _unpacker(packed.read(8))
    return Ranges(shard) if unpack is None and shard.gives_ranges() else copy_whole(shard, unpack=unpack)


@contextmanager
def _unpack(packed: BinaryIO) -> Iterator[BinaryIO]:
    """An archive's bytes as they pass by, unpacked where it is compressed."""
    # The unpacking of tarfile stops after the first of several compressed streams, and accepts truncated ones.
    with io.BufferedReader(cast(Any, packed), 1 << 20) as file:
        unpack = _unpacker(file.peek(8))
        with file if unpack is None else unpack(file) as plain:
            yield plain


def _unpacker(head: bytes) -> Callable[[Any], Any] | None:
    return next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)


@contextmanager
def _explained(shard: Place) -> Iterator[None]:
    """Errors of tarfile and of the unpackers as BadData with the archive's name."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as problem:
        if isinstance(problem, VggkitError):
            raise
        raise BadData(
            f"{shard}: cannot be read as a tar archive ({problem or type(problem).__name__})"
        ) from problem
