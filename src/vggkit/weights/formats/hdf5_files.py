"""HDF5 files whose every dataset lies in the file itself and is as large as it says.

HDF5 can point out of a file (external links, external storage, virtual datasets) and promise more
than it holds; all of that is refused before a value is read.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from vggkit.errors import BadCheckpoint, MissingExtra
from vggkit.models.statements import PREFIX
from vggkit.weights.formats.hdf5_names import read_texts
from vggkit.weights.formats.hdf5_structure import check_structure
from vggkit.weights.formats.weight_file import (
    DEFLATE_RATIO,
    DTYPES,
    SLACK_BYTES,
    TensorEntry,
    decode,
    reading,
    refuse,
    shown,
)

_CHUNK_BYTES: Final = 2**30
_LIMIT_OBJECTS: Final = 20_000
_LIMIT_DEPTH: Final = 24
_FILTERS: Final = (1, 2, 3, 32000)
"""deflate, shuffle, fletcher32, lzf: those that h5py brings. Others would be loaded from the system."""
_STATEMENT_BYTES: Final = 2**16
_TRUST: Final = "save it again with h5py or Keras, all in one file"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset that may be read."""

    path: tuple[str, ...]
    """The groups above it and its own name."""
    entry: TensorEntry
    opened: Any

    def read(self) -> Tensor:
        """Its values."""
        value = np.empty(self.opened.shape, self.opened.dtype)
        if value.size:
            self.opened.read_direct(value)
        raw = torch.from_numpy(value.reshape(-1).view(np.uint8))
        swap = value.dtype.kind != "V" and not value.dtype.isnative
        return decode(raw, self.entry.dtype, swap=swap).view(self.entry.shape)


class Hdf5File:
    """An open HDF5 file, all of its datasets checked."""

    def __init__(self, path: Path, stream: IO[bytes], size_bytes: int, stack: ExitStack) -> None:
        """`stream`: the file, or where it lies in an archive. Raises BadCheckpoint, MissingExtra without h5py."""
        try:
            import h5py  # type: ignore[import-untyped]
        except ImportError as problem:
            raise MissingExtra.of("h5py", "reading Keras files", "weights") from problem
        self._h5py: Any = h5py
        self._path = path
        self._stream = stream
        self._size_bytes = size_bytes
        self._objects = 0
        self._groups: set[Any] = set()
        self.packed = False
        """Whether any of it is compressed."""
        with reading(path, "HDF5 file"):
            check_structure(stream)
            self._file = h5py.File(stream, "r")
            stack.callback(self._file.close)
            self.datasets = list(self._walk(self._file, ()))

    def read_texts(self, group: tuple[str, ...]) -> dict[str, list[str]]:
        """The texts that a group carries, by attribute; left out are those that cannot be read."""
        with reading(self._path, "HDF5 file"):
            return read_texts(self._stream, self._h5py.h5o.get_info(self._find(group).id).addr)

    def read_statements(self) -> dict[str, str]:
        """What the file states of itself beside its datasets, as `convert` writes it."""
        with reading(self._path, "HDF5 file"):
            address = self._h5py.h5o.get_info(self._file.id).addr
            texts = read_texts(self._stream, address, limit_bytes=_STATEMENT_BYTES)
        return {name: texts[name][0] for name in texts if name.startswith(PREFIX) and len(texts[name]) == 1}

    def has_attribute(self, group: tuple[str, ...], name: str) -> bool:
        """Whether the group is there and has that attribute, without reading it."""
        with reading(self._path, "HDF5 file"):
            known = any(dataset.path[: len(group)] == group for dataset in self.datasets)
            return known and name in self._find(group).attrs

    def _find(self, group: tuple[str, ...]) -> Any:
        return self._file["/".join(group)] if group else self._file

    def _refuse(self, name: str, found: str) -> BadCheckpoint:
        return refuse(self._path, f"{shown(name)} as {found}", _TRUST)

    def _walk(self, group: Any, above: tuple[str, ...]) -> Iterator[Dataset]:
        address = self._h5py.h5o.get_info(group.id).addr
        if address in self._groups or len(above) > _LIMIT_DEPTH:
            raise self._refuse("/".join(above[-2:]), "a group within itself")
        self._groups.add(address)
        for name in group:
            self._objects += 1
            if self._objects > _LIMIT_OBJECTS:
                raise ValueError(f"it holds more than {_LIMIT_OBJECTS} objects")
            if not isinstance(group.get(name, getlink=True), self._h5py.HardLink):
                raise self._refuse(name, "a link to somewhere else, which is not followed")
            found = group[name]
            if isinstance(found, self._h5py.Group):
                yield from self._walk(found, (*above, name))
            elif isinstance(found, self._h5py.Dataset) and found.shape is not None:
                yield Dataset((*above, name), self._check(name, found), found)

    def _check(self, name: str, found: Any) -> TensorEntry:
        layout = found.id.get_create_plist()
        if layout.get_layout() == self._h5py.h5d.VIRTUAL or layout.get_external_count():
            raise self._refuse(name, "a dataset whose values lie in other files, which are not opened")
        filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
        if any(number not in _FILTERS for number in filters):
            raise self._refuse(name, f"a dataset packed in a way that is not read (filters {filters})")
        # Keras keeps bfloat16 as two bytes of no type.
        dtype = "bfloat16" if found.dtype == np.dtype("V2") else found.dtype.newbyteorder("=").name
        if dtype not in DTYPES:
            raise self._refuse(name, f"a dataset of type {str(found.dtype)[:60]}")
        entry = TensorEntry(tuple(int(size) for size in found.shape), dtype)
        held, start = found.id.get_storage_size(), found.id.get_offset()
        packed = held * DEFLATE_RATIO + SLACK_BYTES if filters else held
        beyond = held > self._size_bytes or (start is not None and start + held > self._size_bytes)
        chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
        if entry.size_bytes > packed or (entry.size_bytes and not held) or beyond or chunk > _CHUNK_BYTES:
            raise self._refuse(name, f"a dataset that claims {entry.size_bytes} bytes where the file holds {held}")
        self.packed |= bool(filters)
        return entry
