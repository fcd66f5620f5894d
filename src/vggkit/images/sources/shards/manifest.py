"""The manifest of shards: what files there are, how many images of which classes they hold, and where in them.

`shards.json` lists the files with their lengths and SHA-256, the classes and the counts. The index beside it,
`shards.npz`, has an entry of about 60 bytes for each image: its range in the file, its class, its short side, a
number that is equal for equal files, and its name. With both, any image can be split off, shuffled and read without
a pass over the shards.

Shape letters: N images.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadData, BadDownload
from vggkit.images.sources.locations import Place, is_address, is_pattern

FILE_NAME: Final = "shards.json"
"""The manifest in a folder of shards."""
FORMAT: Final = "vggkit shards"
FORMAT_VERSION: Final = 1
MADE_AGAIN: Final = "copy it again, or write the shards again with vggkit shard"

Form = Literal["tar", "parquet"]
ENDINGS: Final[Mapping[Form, str]] = {"tar": ".tar", "parquet": ".parquet"}


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of images of one split."""

    file: str
    """Relative to the manifest's folder, or a path or address of its own."""
    split: str
    """`train`, `val`, `test`, or `all` for an undivided dataset."""
    images: int
    """Number of readable images."""
    size_bytes: int
    """The file's length."""
    sha256: str
    """Of the file, hexadecimal."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardIndex:
    """An entry for each image, shard by shard in their order in the manifest."""

    offsets: NDArray[np.int64]
    """(N,), the first byte in a tar file, or the row in a Parquet file."""
    sizes: NDArray[np.int64]
    """(N,), bytes."""
    classes: NDArray[np.int32]
    """(N,), place of the class among the labels."""
    sides: NDArray[np.int32]
    """(N,), pixels of the short side."""
    contents: NDArray[np.uint64]
    """(N,), equal for equal files."""
    name_ends: NDArray[np.int64]
    """(N,), where each name ends in `names`."""
    names: NDArray[np.uint8]
    """The names in the shards, UTF-8, one after another."""

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, int]], names: Sequence[bytes]) -> Self:
        """The index of rows (offset, size, class, side, content) and names."""
        offsets, sizes, classes, sides, contents = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(
            np.array(offsets, np.int64),
            np.array(sizes, np.int64),
            np.array(classes, np.int32),
            np.array(sides, np.int32),
            np.array(contents, np.uint64),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.frombuffer(b"".join(names), np.uint8),
        )

    @classmethod
    def join(cls, parts: Sequence["ShardIndex"]) -> Self:
        """The entries of several, one after another."""
        lengths = np.cumsum([0, *(len(part.names) for part in parts)])
        ends = [part.name_ends + first for part, first in zip(parts, lengths[:-1], strict=True)]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("offsets", "sizes", "classes", "sides", "contents", "names")
        }
        return cls(**joined, name_ends=np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, number: int) -> str:
        """The name of an image."""
        first = int(self.name_ends[number - 1]) if number else 0
        return self.names[first : int(self.name_ends[number])].tobytes().decode(errors="surrogateescape")

    def pack(self) -> bytes:
        """The file; the same entries give the same bytes."""
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, **{name: getattr(self, name) for name in self.__slots__})
        return out.getvalue()

    def digest(self) -> str:
        """The SHA-256 of its file."""
        return hashlib.sha256(self.pack()).hexdigest()

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The index of a file; raises ValueError, KeyError and OSError."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return cls(**{name: held[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The contents of `shards.json`."""

    form: Form
    """tar or parquet."""
    labels: tuple[str, ...]
    """The class names, sorted."""
    counts: Mapping[str, Mapping[str, int]]
    """Number of readable images of each class in each split."""
    shards: tuple[Shard, ...]
    """The files, the splits one after another."""
    index_sha256: str
    """Of the index, hexadecimal."""
    excluded: int = 0
    """Number of images that could not be read when the shards were written, and are in no count."""
    examples: tuple[str, ...] = ()
    """The first reasons, at most three."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The images and options that the shards were written from."""

    @property
    def images(self) -> int:
        """N, of all splits."""
        return sum(shard.images for shard in self.shards)

    def pack(self) -> bytes:
        """The file; the same contents give the same bytes."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        values["digest"] = _digest(values)
        return (json.dumps(values, indent=1, ensure_ascii=True) + "\n").encode()


def find_manifest(place: str, *, file_endings: tuple[str, ...]) -> str | None:
    """The manifest of a place: itself, or that in a folder; None where there is none.

    An address is a folder unless it is a pattern, or ends as a file does; whether it has a manifest is seen when
    that is read.
    """
    lower = place.lower().partition("?")[0].rstrip("/")
    if lower.endswith(".json"):
        return place
    if is_address(place):
        is_folder = not is_pattern(place) and not lower.endswith(file_endings)
        return f"{place.rstrip('/')}/{FILE_NAME}" if is_folder else None
    inside = Path(place) / FILE_NAME
    return str(inside) if inside.is_file() else None


def locate_shard(manifest: str, file: str) -> str:
    """The place of a shard."""
    if is_address(file) or Path(file).is_absolute():
        return file
    return f"{manifest.rpartition('/')[0]}/{file}" if is_address(manifest) else str(Path(manifest).parent / file)


def name_index(manifest: str) -> str:
    """The index of a manifest."""
    return manifest[: -len(".json")] + ".npz"


def read_manifest(place: str) -> tuple[Manifest, ShardIndex]:
    """The manifest at a place, and its index.

    Raises BadData where they are broken, contradict each other or were changed, BadDownload and MissingExtra for
    addresses.
    """
    try:
        values = json.loads(_read(place))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise BadData(f"{place}: is not a manifest of shards, as vggkit shard writes it")
        if values.get("format_version") != FORMAT_VERSION:
            raise BadData(
                f"{place}: has format version {values.get('format_version')}, and this vggkit reads "
                f"{FORMAT_VERSION}; install a newer vggkit, or write the shards again"
            )
        if values.pop("digest", None) != _digest(values):
            raise BadData(f"{place}: was changed after it was written: its digest is another; {MADE_AGAIN}")
        known = {name: values[name] for name in Manifest.__slots__}
        manifest = Manifest(
            **known
            | {"labels": tuple(known["labels"]), "examples": tuple(known["examples"])}
            | {"shards": tuple(Shard(**each) for each in known["shards"])}
        )
        if manifest.form not in get_args(Form):
            raise BadData(f"{place}: names the form {manifest.form!r}; it is tar or parquet")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        if isinstance(problem, BadData):
            raise
        raise BadData(f"{place}: is not a manifest of shards that can be read ({problem!r})") from problem
    return manifest, _read_index(place, manifest)


def _read_index(place: str, manifest: Manifest) -> ShardIndex:
    """The index of a manifest; raises BadData where they contradict each other."""
    file = name_index(place)
    data = _read(file)
    if hashlib.sha256(data).hexdigest() != manifest.index_sha256:
        raise BadData(
            f"{file}: is not the index that {place} was written with: its SHA-256 is another; {MADE_AGAIN}"
        )
    try:
        index = ShardIndex.unpack(data)
    except (OSError, ValueError, KeyError) as problem:
        raise BadData(f"{file}: is not an index of shards that can be read ({problem})") from problem
    if manifest.images != len(index):
        raise BadData(f"{place}: counts {manifest.images:,} images, and its index has {len(index):,}; {MADE_AGAIN}")
    first = 0
    counted: dict[str, NDArray[np.int64]] = {}
    for shard in manifest.shards:
        classes = index.classes[first : first + shard.images]
        first += shard.images
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(manifest.labels):
            raise BadData(f"{file}: names classes that {place} does not have; {MADE_AGAIN}")
        counts = np.bincount(classes, minlength=len(manifest.labels))
        counted[shard.split] = counted.get(shard.split, np.zeros(len(manifest.labels), np.int64)) + counts
    for split, counts in counted.items():
        stated = [manifest.counts.get(split, {}).get(label, 0) for label in manifest.labels]
        if stated != counts.tolist():
            label, claimed, real = next(
                each for each in zip(manifest.labels, stated, counts.tolist(), strict=True) if each[1] != each[2]
            )
            raise BadData(
                f"{place}: counts {claimed:,} images of {label!r} in {split}, and its index has {real:,}; "
                f"{MADE_AGAIN}"
            )
    return index


def check_sizes(place: str, manifest: Manifest) -> None:
    """Raise BadData for a shard that is missing or has another length than the manifest states.

    Of addresses the folder is listed once, where that is possible; else a shard is checked when it is read.
    """
    sizes: dict[str, dict[str, int]] = {}
    for shard in manifest.shards:
        file = locate_shard(place, shard.file)
        if is_address(file):
            folder = file.rpartition("/")[0]
            if folder not in sizes:
                sizes[folder] = Place(folder).list_sizes()
            found = sizes[folder].get(file.rpartition("/")[2], -1) if sizes[folder] else shard.size_bytes
        else:
            found = Path(file).stat().st_size if Path(file).is_file() else -1
        if found < 0:
            raise BadData(f"{file}: is missing, and {place} lists it; {MADE_AGAIN}")
        if found != shard.size_bytes:
            raise BadData(
                f"{file}: has {found:,} bytes, and {place} states {shard.size_bytes:,}: it was cut short or "
                f"replaced; {MADE_AGAIN}"
            )


def _read(place: str) -> bytes:
    try:
        with Place(place).open() as file:
            return file.read()
    except (BadData, BadDownload) as problem:
        if not is_address(place):
            raise
        raise type(problem)(
            f"{problem}. A folder of shards at an address needs its manifest ({FILE_NAME}), which vggkit shard "
            "writes; without one give a pattern of files, such as …/train-{000..009}.tar"
        ) from problem


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
