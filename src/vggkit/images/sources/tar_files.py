"""Tar archives, read so that no file of theirs is lost without a word."""

import posixpath
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Self, cast

from vggkit.errors import BadImage
from vggkit.images.dataset import Storage
from vggkit.images.sources.locations import Place, Ranges

Held = tuple[Storage, Any]
"""Where the bytes of an archive's file are: a storage, and its key there."""

MOST_SPARSE_BYTES: Final = 1 << 30
"""Holes cost an archive nothing, so that a small one can claim any size."""
CHUNK_BYTES: Final = 1 << 20
LONGEST_CHAIN: Final = 40
"""Links that lead to links, as many as Linux follows; those that lead in a circle never end."""

_HEADERS: Final = cast(Any, tarfile)  # the kinds of its HeaderError are known to no type checker
_ZEROS: Final = _HEADERS.EOFHeaderError
_NO_MORE: Final = (_HEADERS.EmptyHeaderError, _HEADERS.TruncatedHeaderError)


class Archive(tarfile.TarFile):
    """A tar archive; raises tarfile.ReadError where it is cut short or damaged.

    Tarfile alone takes a damaged header, or none where another would begin, for the archive's end. Here
    that end must be marked, by a block of zeros (some write one, most two). Rare writers leave the mark
    out, but a copy that was cut short looks the same, and is far more likely.

    What follows the mark is read too: archives joined by `cat`; bytes there that are no archive
    are damage, as zeros where a part of a download never came would be.
    """

    ended = False
    """Whether the block before this was of zeros."""

    @classmethod
    def read(cls, file: BinaryIO, *, once: bool = False) -> Self:
        """The archive in a file.

        Args:
            file: Its bytes, not compressed.
            once: Whether the file passes by once and cannot be sought in.
        """
        seen = _Passing(file) if once else file
        return cast(Self, cast(Any, cls).open(fileobj=seen, mode="r:", tarinfo=_Header, ignore_zeros=True))

    def walk(self) -> Iterator[tarfile.TarInfo]:
        """Its members in their order, none of them kept."""
        for member in self:
            cast(Any, self).members = []  # tarfile would keep every header it has met
            yield member


class _Passing:
    """A file that passes by once; tarfile's own goes on to any length that a header claims, far past the end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._place = 0

    def tell(self) -> int:
        return self._place

    def read(self, size_bytes: int) -> bytes:
        parts = []
        while size_bytes > 0 and (part := self._file.read(min(size_bytes, CHUNK_BYTES))):
            parts.append(part)
            size_bytes -= len(part)
            self._place += len(part)
        return b"".join(parts)

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.StreamError("a file in it goes on where the next should begin")
        while self._place < place and self.read(min(place - self._place, CHUNK_BYTES)):
            pass


class _Header(tarfile.TarInfo):
    """A header of an `Archive`."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        assert isinstance(archive, Archive)
        start = archive.offset
        try:
            header = super().fromtarfile(archive)
        except _ZEROS:
            archive.ended = True
            raise
        except _NO_MORE:
            if archive.ended:
                raise
            raise tarfile.ReadError(
                f"it ends at byte {start:,} without the zeros that mark an archive's end, as a copy does that "
                "was cut short; copy it again, or append 1,024 zero bytes where it is known to be whole"
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
        # a length below zero would lead back here for ever, and none of today's files is longer than the other
        if header.size < 0 or not start < archive.offset < sys.maxsize:
            raise _damaged(start)
        archive.ended = False
        return header


def _damaged(start: int) -> tarfile.ReadError:
    return tarfile.ReadError(
        f"what stands at byte {start:,} is no header, so what follows cannot be found; copy or pack it again"
    )


def is_file(member: tarfile.TarInfo) -> bool:
    """Whether a member has bytes of its own; those of kinds that nobody knows have, by POSIX."""
    return member.isreg() or member.type not in tarfile.SUPPORTED_TYPES


def is_link(member: tarfile.TarInfo) -> bool:
    """Whether a member stands for another one."""
    return member.islnk() or member.issym()


def locate(storage: Ranges, member: tarfile.TarInfo) -> Held:
    """Where a file's bytes are in an archive that is not compressed."""
    if not member.issparse():
        return storage, (member.offset_data, member.size)
    pieces, there = [], member.offset_data
    for start, size_bytes in cast(Any, member).sparse:
        if size_bytes > 0:
            pieces.append((start, there, size_bytes))
            there += size_bytes
    return Pieces(storage), (member.size, tuple(pieces))


@dataclass(frozen=True)
class Pieces:
    """A storage of sparse files, as `tar --sparse` packs them: without their holes."""

    ranges: Ranges
    """The archive."""

    @property
    def quick(self) -> bool:
        """Whether it is on this machine."""
        return self.ranges.quick

    def read(self, key: tuple[int, tuple[tuple[int, int, int], ...]]) -> bytes:
        """The file of (length, pieces: start in the file, start in the archive, length); raises BadImage."""
        size_bytes, pieces = key
        demand_size(size_bytes)
        data = bytearray(size_bytes)
        for start, there, length in pieces:
            data[start : start + length] = self.ranges.read((there, length))
        return bytes(data[:size_bytes])

    def weigh(self, key: tuple[int, object]) -> str:
        """The file's length."""
        return str(key[0])


def demand_size(size_bytes: int) -> None:
    """Raises BadImage for a sparse file that claims too many bytes."""
    if size_bytes > MOST_SPARSE_BYTES:
        raise BadImage(f"is a sparse file of {size_bytes:,} bytes; no more than {MOST_SPARSE_BYTES:,} are read")


@dataclass(frozen=True, slots=True)
class Lost:
    """A storage of one image that cannot be had."""

    reason: str
    """Why."""
    quick: bool = True

    def read(self, key: object) -> bytes:
        """Raises BadImage."""
        raise BadImage(self.reason)

    def weigh(self, key: object) -> str:
        """As a file that does not exist."""
        return "missing"


class Links:
    """Where the bytes are of those members of an archive that are links to others of it.

    Any of an archive's millions of members may be linked to, but few archives have links. So no member
    is remembered; once a link is met, the archive's headers are gone through twice more, and what is
    then kept grows with its links alone. Links are never followed out of the archive.
    """

    def __init__(self, storage: Callable[[], Ranges]) -> None:
        """Of the archive that `storage` gives, not compressed; it is called once a link is met."""
        self._storage = storage
        self._held: dict[int, Held] | None = None

    def hold(self, link: tarfile.TarInfo) -> Held:
        """The bytes of what a link points at; where the archive does not hold that, an image that says so."""
        if self._held is None:
            self._held = _follow(self._storage())
        lost = Lost(f"is a link to {link.linkname}, and its archive holds no such file")
        return self._held.get(link.offset, (lost, None))


def _follow(storage: Ranges) -> dict[int, Held]:
    """What each link leads to, by the place of its header."""
    wanted = {_target(member) for member in _members(storage.place) if is_link(member)}
    latest: dict[str, Held | str] = {}  # by name; a name where that is a link that is not resolved
    links: dict[int, Held | str] = {}
    for member in _members(storage.place):
        if is_link(member):
            target = _target(member)
            # of files of one name, a hard link means the last that was there before it
            found = target if member.issym() else latest.get(target, target)
            links[member.offset] = found
        elif is_file(member):
            found = locate(storage, member)
        else:
            continue
        name = posixpath.normpath(member.name)
        if name in wanted:
            latest[name] = found
    ends = ((offset, _end(found, latest)) for offset, found in links.items())
    return {offset: end for offset, end in ends if end is not None}


def _end(found: Held | str, latest: Mapping[str, Held | str]) -> Held | None:
    for _ in range(LONGEST_CHAIN):
        if not isinstance(found, str):
            return found
        found = latest.get(found, "")
    return None


def _members(place: Place) -> Iterator[tarfile.TarInfo]:
    with place.open() as file, Archive.read(file) as archive:
        yield from archive.walk()


def _target(link: tarfile.TarInfo) -> str:
    """The name of the member that a link points at."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))
