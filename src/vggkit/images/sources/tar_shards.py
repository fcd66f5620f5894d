"""Tar archives of images, as WebDataset writes them: `0001.jpg` beside `0001.cls` or `0001.json`.

An archive of plain folders is taken too: an image's class is then the folder that it lies in.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Final, Protocol, cast

from vggkit.errors import BadData, BadImage, VggkitError
from vggkit.images.dataset import HeldBytes, ImageSample
from vggkit.images.file_kinds import FIRST_BYTES, is_image_start, is_junk, tell_by_name
from vggkit.images.omissions import Reading
from vggkit.images.sources.locations import Place, Ranges, copy_whole
from vggkit.images.sources.tables import USUAL, name_split, read_lines, read_text
from vggkit.images.sources.tar_files import Archive, Held, Links, Lost, demand_size, is_file, is_link, locate
from vggkit.images.splits import SPLITS, find_split

UNPACKERS: Final[Mapping[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""By the first bytes of what they unpack."""
ENDINGS: Final = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
SIDES: Final = ("cls", "json", "txt")
"""Endings of what stands beside an image and may tell its class, the likeliest first."""
MOST_SIDE_BYTES: Final = 1_000_000
"""What stands beside an image and is larger tells no class."""
LONGEST_LABEL: Final = 100
"""A line of text that is longer is a caption and no class."""
NAMES: Final = ("classes.txt", "classnames.txt", "labels.txt")
"""Lists of classes, a line each, that lie beside shards whose classes are numbers."""


def read_shards(
    shards: Sequence[Place], reading: Reading | None = None
) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of every archive; the images themselves are skipped, and read when they are needed.

    An archive that is compressed, or at an address that gives no ranges, is copied once to a
    temporary file that goes with its images. An image that is a link to another file of its archive
    has that file's bytes. Raises BadData where an archive is broken, cut short too, BadDownload and
    MissingExtra for addresses.
    """
    reading = reading or Reading()
    for shard in shards:
        with _whole(shard):
            storage = _in_any_order(shard)
            links = Links(partial(_given, storage))
            with storage.place.open() as file, Archive.read(file) as archive:
                yield from _find_images(archive, shard, links, partial(_locate, storage, links), reading)


def stream_shards(
    shards: Sequence[Place], reading: Reading | None = None
) -> Iterator[tuple[str | None, ImageSample]]:
    """As `read_shards`, but each archive passes by once, front to back, and each image brings its bytes.

    Those that a link points at have gone by: an archive with links is then opened as `read_shards`
    does, beside the stream, for the linked images alone; memory stays as it is.
    """
    reading = reading or Reading()
    for shard in shards:
        with (
            _whole(shard),
            shard.open() as packed,
            _unpack(packed) as file,
            Archive.read(file, once=True) as archive,
        ):
            links = Links(partial(_in_any_order, shard))
            yield from _find_images(archive, shard, links, partial(_bring, archive, links), reading)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of an archive that matters: an image, or what stands beside one."""

    path: PurePosixPath
    stem: str
    """What the files of one sample share: folder and name up to its first point."""
    held: Held | None
    """Where an image's bytes are."""
    text: str
    """What stands beside one says."""


class _Hold(Protocol):
    """Where the bytes of an archive's file will be had; `begun` is the file where it was begun to be read."""

    def __call__(self, member: tarfile.TarInfo, begun: "_Begun | None" = None) -> Held: ...


@dataclass(frozen=True, slots=True)
class _Begun:
    """A file of an archive whose first bytes have been read."""

    start: bytes
    rest: IO[bytes]

    def read(self) -> bytes:
        return self.start + self.rest.read()


def _locate(storage: Ranges, links: Links, member: tarfile.TarInfo, begun: _Begun | None = None) -> Held:
    return links.hold(member) if is_link(member) else locate(storage, member)


def _bring(archive: Archive, links: Links, member: tarfile.TarInfo, begun: _Begun | None = None) -> Held:
    try:
        if is_link(member):
            storage, key = links.hold(member)
            return HeldBytes(storage.read(key)), None
        if member.issparse():
            demand_size(member.size)
    except BadImage as problem:
        return Lost(str(problem)), None
    return HeldBytes(_begin(archive, member).read() if begun is None else begun.read()), None


def _find_images(
    archive: Archive, shard: Place, links: Links, hold: _Hold, reading: Reading
) -> Iterator[tuple[str | None, ImageSample]]:
    names = _class_names(shard)
    of_shard = find_split(str(shard))
    for _, entries in groupby(_entries(archive, shard, links, hold, reading), key=lambda entry: entry.stem):
        sample = list(entries)
        said = _read_sides({entry.path.suffix[1:].lower(): entry.text for entry in sample if entry.held is None})
        for entry in sample:
            if entry.held is not None:
                folders = [name for name in entry.path.parts[:-1] if name.lower() not in SPLITS]
                label = said.get("label") or (folders[-1] if folders else None)
                if label is not None and label.isdecimal() and int(label) < len(names):
                    label = names[int(label)]
                elif "label" in said:
                    reading.written_labels.add(said["label"])
                inside = find_split(str(entry.path.parent))
                storage, key = entry.held
                yield (
                    name_split(said.get("split")) or inside or of_shard,
                    ImageSample(f"{shard}#{entry.path}", label, storage=storage, key=key),
                )


def _entries(archive: Archive, shard: Place, links: Links, hold: _Hold, reading: Reading) -> Iterator[_Entry]:
    for member in archive.walk():
        path = PurePosixPath(member.name)
        splits = [split for split in path.parts if split not in ("..", "/")]
        if not (is_file(member) or is_link(member)) or any(map(is_junk, splits)):
            continue
        name = f"{shard}#{path}"
        if any(split.startswith(".") for split in splits):
            reading.omit("hidden", name)
            continue
        stem = str(path.parent / path.name.partition(".")[0])
        kind = tell_by_name(path.name)
        if path.suffix.lower()[1:] in SIDES:
            yield _Entry(path, stem, None, _read_side(archive, links, member))
        elif kind == "image":
            yield _Entry(path, stem, hold(member), "")
        elif is_link(member) and isinstance(hold(member)[0], Lost):
            reading.omit("broken-link", f"{name} -> {member.linkname}, no file of the archive")
        elif kind == "unknown" and (found := _find_image(archive, member, hold)) is not None:
            yield _Entry(path, stem, found, "")
        else:
            reading.omit("not-an-image", name)


def _find_image(archive: Archive, member: tarfile.TarInfo, hold: _Hold) -> Held | None:
    """Where a file's bytes are, if by its first ones it is an image; whatever else it is may be large."""
    if is_link(member):
        storage, key = held = hold(member)
        try:
            return held if is_image_start(storage.read(key)) else None
        except BadImage:
            return None
    begun = _begin(archive, member, FIRST_BYTES)
    return hold(member, begun) if is_image_start(begun.start) else None


def _begin(archive: Archive, member: tarfile.TarInfo, size_bytes: int = 0) -> _Begun:
    file = archive.extractfile(member)
    assert file is not None, "a file has bytes"
    return _Begun(file.read(size_bytes), file)


def _read_side(archive: Archive, links: Links, member: tarfile.TarInfo) -> str:
    """What stands beside an image says, nothing where it is too large or a link that leads nowhere."""
    if not is_link(member):
        data = _begin(archive, member).read() if member.size <= MOST_SIDE_BYTES else b""
    else:
        storage, key = links.hold(member)
        weight = storage.weigh(key)
        data = storage.read(key) if weight.isdecimal() and int(weight) <= MOST_SIDE_BYTES else b""
    return data.decode("utf-8", errors="replace")


def _read_sides(texts: dict[str, str]) -> dict[str, str]:
    """Label and split, as far as the files beside an image tell."""
    said: dict[str, str] = {}
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
                        said.setdefault(role, str(value))
        elif text and "\n" not in text and len(text) <= LONGEST_LABEL:
            said.setdefault("label", text)
    return said


def _class_names(shard: Place) -> list[str]:
    if shard.is_local:
        for name in NAMES:
            listed = Path(str(shard)).parent / name
            if listed.is_file():
                return [line.strip() for line in read_lines(read_text(listed).splitlines())]
    return []


def _in_any_order(shard: Place) -> Ranges:
    """An archive, or a plain copy of one that cannot be read in any order."""
    with shard.open() as packed:
        unpack = _unpacker(packed.read(8))
    return Ranges(shard) if unpack is None and shard.gives_ranges() else copy_whole(shard, unpack=unpack)


@contextmanager
def _unpack(packed: BinaryIO) -> Iterator[BinaryIO]:
    """An archive's bytes as they pass by, unpacked where it is compressed."""
    # tarfile's own unpacking ends with the first of several splits, and does not miss what was cut off
    with io.BufferedReader(cast(Any, packed), 1 << 20) as file:
        unpack = _unpacker(file.peek(8))
        with file if unpack is None else unpack(file) as plain:
            yield plain


def _unpacker(head: bytes) -> Callable[[Any], Any] | None:
    return next((unpack for magic, unpack in UNPACKERS.items() if head.startswith(magic)), None)


def _given(storage: Ranges) -> Ranges:
    return storage


@contextmanager
def _whole(shard: Place) -> Iterator[None]:
    """What a broken archive means to people."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as problem:
        if isinstance(problem, VggkitError):
            raise
        raise BadData(f"{shard}: is not a whole tar archive ({problem or type(problem).__name__})") from problem
