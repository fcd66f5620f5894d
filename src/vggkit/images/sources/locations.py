"""Files here and elsewhere: paths, addresses that fsspec reaches, and patterns of either."""

import re
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from vggkit.errors import BadData, BadDownload, BadImage, BadOutput, MissingExtra, VggkitError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]+(::|://)", re.IGNORECASE | re.ASCII)
"""`s3://…`, `https://…`, `simplecache::https://…`; a drive such as C: is none."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file, on this machine or at an address."""

    address: str
    """A path, or what fsspec takes."""

    def __str__(self) -> str:
        return self.address

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return not is_address(self.address)

    def open(self) -> BinaryIO:
        """Its bytes, to seek in; raises BadData, for an address BadDownload and MissingExtra."""
        try:
            if self.is_local:
                self._demand_file()
                return open(self.address, "rb")
            system, path = reach(self.address)
            return cast(BinaryIO, system.open(path, "rb"))
        except VggkitError:
            raise
        except FileNotFoundError as problem:
            if self.is_local:
                raise BadData(f"{self}: no such file") from None
            raise BadDownload(f"{self}: is not there, or its host cannot be reached") from problem
        except OSError as problem:
            if self.is_local:
                raise BadData(f"{self}: cannot be read ({problem.strerror or problem})") from problem
            raise _explain(self.address, problem) from problem
        except Exception as problem:
            raise _explain(self.address, problem) from problem

    def _demand_file(self) -> None:
        if Path(self.address).exists() and not Path(self.address).is_file():  # reading a pipe would block
            raise BadData(f"{self}: is not a file")

    def read(self, start: int, size_bytes: int) -> bytes:
        """A range of its bytes; raises OSError for every failure."""
        if self.is_local:
            with open(self.address, "rb") as file:
                file.seek(start)
                return file.read(size_bytes)
        try:
            system, path = reach(self.address)
            return cast(bytes, system.cat_file(path, start=start, end=start + size_bytes))
        except OSError:
            raise
        except Exception as problem:  # each kind of address has its own errors
            raise OSError(str(problem) or type(problem).__name__) from problem

    def gives_ranges(self) -> bool:
        """Whether a range of it can be read without the rest; some hosts send the whole file for any request."""
        if self.is_local:
            return True
        try:
            return len(self.read(1, 16)) == 16
        except OSError:
            return False

    def size(self) -> int:
        """Its length in bytes; 0 where the host does not state it."""
        try:
            if self.is_local:
                self._demand_file()
                return Path(self.address).stat().st_size
            system, path = reach(self.address)
            return int(system.size(path) or 0)
        except VggkitError:
            raise
        except FileNotFoundError:
            raise BadData(f"{self}: no such file") from None
        except OSError as problem:
            raise BadData(f"{self}: cannot be read ({problem})") from problem

    def list_sizes(self) -> dict[str, int]:
        """The length in bytes of each file in a folder at an address; empty where its host cannot list it.

        Raises BadDownload where the host refuses to, and MissingExtra.
        """
        system, path = reach(self.address)
        try:
            listed = system.ls(path, detail=True)
        except NotImplementedError:
            return {}
        except Exception as problem:
            raise _explain(self.address, problem) from problem
        found = {str(each["name"]).rstrip("/").rpartition("/")[2]: each.get("size") for each in listed}
        return {name: size for name, size in found.items() if isinstance(size, int)}

    def put(self, source: Path) -> None:
        """Copy a file of this machine to an address, whole or not at all; raises BadOutput and MissingExtra."""
        system, path = reach(self.address)
        try:
            system.put_file(str(source), path)
        except Exception as problem:
            raise BadOutput(f"{self}: cannot be written ({problem or type(problem).__name__})") from problem

    def remove(self) -> None:
        """Remove the file or folder at an address, where there is one; raises BadOutput and MissingExtra."""
        system, path = reach(self.address)
        try:
            system.rm(path, recursive=True)
        except FileNotFoundError:
            pass
        except Exception as problem:
            raise BadOutput(f"{self}: cannot be removed ({problem or type(problem).__name__})") from problem


@dataclass(frozen=True)
class Ranges:
    """A storage whose images are ranges of one file's bytes."""

    place: Place
    """The file, such as an archive that is not compressed."""

    @property
    def quick(self) -> bool:
        """Whether it is on this machine."""
        return self.place.is_local

    def read(self, key: tuple[int, int]) -> bytes:
        """The range (first byte, length); raises BadImage where it cannot be read whole."""
        start, size_bytes = key
        try:
            data = self.place.read(start, size_bytes)
        except OSError as problem:
            raise BadImage(f"its archive cannot be read ({problem})") from problem
        if len(data) < size_bytes:
            raise BadImage(f"its archive ends {size_bytes - len(data)} bytes before the image does")
        if len(data) > size_bytes:
            raise BadImage("its host sends more than was requested")
        return data

    def weigh(self, key: tuple[int, int]) -> str:
        """The range's length."""
        return str(key[1])


@dataclass(frozen=True)
class Whole:
    """A storage of one image: a file at an address."""

    place: Place
    """The address."""
    quick: bool = False

    def read(self, key: object) -> bytes:
        """Its bytes; raises BadImage where it cannot be read."""
        try:
            with self.place.open() as file:
                return file.read()
        except (VggkitError, OSError) as problem:
            raise BadImage(str(problem)) from problem

    def weigh(self, key: object) -> str:
        """Its length."""
        return str(self.place.size())


def copy_whole(place: Place, *, unpack: Callable[[Any], Any] | None = None) -> Ranges:
    """A temporary copy of a file on this machine, which goes with the storage that comes back.

    Args:
        place: The file to copy.
        unpack: The function that opens it decompressed, such as `gzip.open`.
    """
    with place.open() as packed, tempfile.NamedTemporaryFile(prefix="vggkit-", delete=False) as plain:
        storage = Ranges(Place(plain.name))
        weakref.finalize(storage, Path(plain.name).unlink, missing_ok=True)
        shutil.copyfileobj(packed if unpack is None else unpack(packed), plain, 1 << 20)
    return storage


def is_address(place: str) -> bool:
    """Whether a place is an address and not a path."""
    return ADDRESS.match(place) is not None


def is_pattern(place: str) -> bool:
    """Whether a place is a pattern of several: braces `{000..009}`, or `*`, `?`, `[…]`."""
    return any(mark in place for mark in "{*?[")


def expand(place: str) -> list[Place]:
    """The files of a path, an address, or a pattern of either, in order; raises BadData where there are none."""
    if not is_pattern(place) or (not is_address(place) and Path(place).exists()):
        return [Place(place)]
    found: list[Place] = []
    for pattern in _expand_braces(place):
        if not any(mark in pattern for mark in "*?["):
            found.append(Place(pattern))
        elif is_address(pattern):
            system, path = reach(pattern)
            try:
                listed = sorted(cast(list[str], system.glob(path)))
            except Exception as problem:
                raise _explain(pattern, problem) from problem
            found += [Place(system.unstrip_protocol(name)) for name in listed]
        else:
            anchor = Path(pattern).anchor
            found += [
                Place(str(path)) for path in sorted(Path(anchor).glob(str(Path(pattern).relative_to(anchor))))
            ]
    if not found:
        raise BadData(f"{place}: no file is named like this")
    return found


def reach(address: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of an address and the path in it; raises BadDownload and MissingExtra."""
    try:
        import fsspec
    except ImportError as problem:
        raise MissingExtra.of("fsspec", f"the address {address}", "data") from problem
    try:
        system, path = fsspec.core.url_to_fs(address)
    except Exception as problem:
        raise _explain(address, problem) from problem
    return system, str(path)


def _expand_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from braceexpand import braceexpand
    except ImportError as problem:
        raise MissingExtra.of("braceexpand", "a pattern with braces", "data") from problem
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError as problem:
        raise BadData(
            f"{pattern}: its braces cannot be read ({problem}); write {{000..009}} or {{a,b}}"
        ) from problem


def _explain(address: str, problem: Exception) -> VggkitError:
    """The error of a file system, with a message for users; these systems raise errors of many packages."""
    if isinstance(problem, VggkitError):
        return problem
    if isinstance(problem, ImportError):
        if address.lower().startswith(("s3:", "s3a:")):
            return MissingExtra.of("s3fs", address, "s3")
        return MissingExtra(f"{address}: such addresses need one more package ({problem})")
    if isinstance(problem, FileNotFoundError):
        return BadDownload(f"{address}: is not there, or its host cannot be reached ({problem})")
    if isinstance(problem, PermissionError):
        return BadDownload(f"{address}: its host refuses access ({problem}); check the credentials for it")
    return BadDownload(f"{address}: cannot be reached ({problem or type(problem).__name__})")
