"""NumPy's files: `.npz` archives, read member by member, and `.npy` holding a dict of arrays."""

import io
import math
import sys
import warnings
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from torch import Tensor

from vggkit.weights.formats.archives import Archive
from vggkit.weights.formats.numpy_pickles import open_npy as open_pickled
from vggkit.weights.formats.weight_file import (
    DTYPES,
    Contents,
    TensorEntry,
    decode,
    read_bytes,
    reading,
    refuse,
    shown,
)

_HEADER_BYTES: Final = 10_000
_SAVE_AGAIN: Final = (
    'where you trust it, save it again by name: numpy.savez("weights.npz", **{"conv1_1.weight": kernel, ...})'
)


def open_npz(path: Path, archive: Archive) -> Contents:
    """The contents of an `.npz`; arrays that hold text are passed over. Raises BadCheckpoint."""
    entries: dict[str, TensorEntry] = {}
    layouts: dict[str, tuple[int, bool, bool]] = {}
    for name, info in archive.members.items():
        if not name.endswith(".npy"):
            continue
        key = name.removesuffix(".npy")
        with reading(path, f"NumPy archive at {shown(key)}"), archive.open(name) as stream:
            shape, by_column, dtype, start = _read_header(stream)
        if dtype.hasobject:
            found = f"{shown(key)} as a pickled object, which would run code when loaded"
            raise refuse(path, found, f"nothing of it was run; {_SAVE_AGAIN}")
        if dtype.kind in "SU":
            continue
        kind = dtype.newbyteorder("=").name
        if kind not in DTYPES:
            raise refuse(path, f"{shown(key)} of type {dtype.name[:60]}", "save it as float32")
        entry = TensorEntry(shape, kind)
        held = info.file_size - start
        if entry.size_bytes != held:
            found = f"{shown(key)} of {entry.size_bytes} bytes by its header, and {held} by the archive"
            raise refuse(path, found, "download or copy it again")
        entries[key] = entry
        layouts[key] = (start, by_column, not dtype.isnative)

    def read(key: str) -> Tensor:
        start, by_column, swap = layouts[key]
        entry = entries[key]
        with archive.open(f"{key}.npy") as stream:
            stream.read(start)
            raw = read_bytes(stream, entry.size_bytes)
        flat = decode(raw, entry.dtype, swap=swap)
        if not by_column:
            return flat.view(entry.shape)
        return flat.view(entry.shape[::-1]).permute(*reversed(range(len(entry.shape)))).contiguous()

    return Contents("npz", entries, read, packed=archive.packed)


def open_npy(path: Path, handle: IO[bytes], size_bytes: int) -> Contents:
    """The contents of a `.npy` that holds a pickled dict of arrays; raises BadCheckpoint for any other."""
    with reading(path, "NumPy file"):
        _, _, dtype, start = _read_header(handle)
    if not dtype.hasobject:
        raise refuse(path, "one plain array, which names no layer", _SAVE_AGAIN)
    handle.seek(start)
    return open_pickled(path, handle, size_bytes, advice=_SAVE_AGAIN)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether it is laid out by columns, dtype, and the header's length; raises ValueError and more."""
    magic = stream.read(8)
    version = tuple(magic[6:])
    if magic[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
        raise ValueError("it is no array of a version that is known")
    length = stream.read(2 if version == (1, 0) else 4)
    count = int.from_bytes(length, "little")
    if count > _HEADER_BYTES:
        raise ValueError(f"its header claims {count} bytes")
    header = io.BytesIO(length + stream.read(count))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers that Python 2 wrote are read all the same
        shape, by_column, dtype = read(header)
    # The product stands in for memory: a zero beside a huge size would hide it.
    if any(type(size) is not int or not 0 <= size < sys.maxsize for size in shape) or math.prod(shape) < 0:
        raise ValueError("its shape is none")
    return shape, by_column, dtype, len(magic) + len(length) + count
