"""NumPy's files: `.npz` archives, and `.npy` holding a pickled dict of arrays, as Oxford's networks were published.

Known forms of the dict: `{"conv1_1": [kernel, bias]}`, `{"conv1_1": {"weights": …, "biases": …}}` and
`{"conv1_1_W": …}`. No torch here.
"""

import math
import pickle
import warnings
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vggkit.weights.formats.weight_file import (
    DTYPES,
    Archive,
    Contents,
    TensorEntry,
    reading,
    refuse,
    shown,
    to_native,
)

_PAIR: Final = ("weights", "biases")
_LIMIT_DEPTH: Final = 3
_SAVE_AGAIN: Final = (
    'where you trust it, save it again by name: numpy.savez("weights.npz", **{"conv1_1.weight": kernel, ...})'
)


def open_npz(path: Path, archive: Archive) -> Contents:
    """The contents of an `.npz`; arrays of text are passed over. Raises BadCheckpoint."""
    entries: dict[str, TensorEntry] = {}
    for name, info in archive.members.items():
        if not name.endswith(".npy"):
            continue
        key = name.removesuffix(".npy")
        with reading(path, f"NumPy archive at {shown(key)}"), archive.open(name) as stream:
            shape, dtype = _read_header(stream)
            held = info.file_size - stream.tell()
        if dtype.hasobject:
            found = f"{shown(key)} as a pickled object, which would run code when loaded"
            raise refuse(path, found, f"nothing of it was run; {_SAVE_AGAIN}")
        if dtype.kind in "SU":
            continue
        kind = dtype.newbyteorder("=").name
        if kind not in DTYPES:
            raise refuse(path, f"{shown(key)} of type {dtype.name[:60]}", "save it as float32")
        entries[key] = TensorEntry(shape, kind)
        if entries[key].size_bytes != held:
            found = f"{shown(key)} of {entries[key].size_bytes} bytes by its header, and {held} by the archive"
            raise refuse(path, found, "download or copy it again")

    def read(key: str) -> NDArray[Any]:
        with archive.open(f"{key}.npy") as stream:
            return to_native(npy.read_array(stream, allow_pickle=False))

    return Contents("npz", entries, read, packed=archive.packed)


def open_npy(path: Path, handle: IO[bytes]) -> Contents:
    """The contents of a `.npy` that holds a pickled dict of arrays; raises BadCheckpoint for any other.

    The values remain in memory while the file is open: they lie inside the pickle.
    """
    with reading(path, "NumPy file"):
        _, dtype = _read_header(handle)
        if not dtype.hasobject:
            raise refuse(path, "one plain array, which names no layer", _SAVE_AGAIN)
        try:
            value = _ArrayUnpickler(handle, encoding="latin1").load()
        except pickle.UnpicklingError as problem:
            if not problem.args or not isinstance(problem.args[0], _Refused):
                raise
            found = f"a pickle that would run code from the file when loaded ({shown(problem.args[0])})"
            raise refuse(path, found, f"nothing of it was run; {_SAVE_AGAIN}") from None
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.size == 1:
            value = value.reshape(-1)[0]
        arrays = dict(_flatten(value, "", _LIMIT_DEPTH))
        entries = {key: _describe(key, array) for key, array in arrays.items()}
    if not entries:
        raise refuse(path, "a pickled object without arrays by name", _SAVE_AGAIN)
    return Contents("npy", entries, lambda key: to_native(arrays[key]).copy(), dotted=False)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array that follows; raises ValueError and more."""
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its version {version} is not known")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2 are accepted
        shape, _, dtype = readers[version](stream)
    if any(type(size) is not int or not 0 <= size < 2**62 for size in shape):
        raise ValueError("its shape has negative or huge sizes")
    return shape, dtype


class _Refused(str):
    """A name in a pickle that is not one of an array's."""


_MAKERS: Final = {
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "scalar": np.float64(0).__reduce__()[0],
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
}
"""The functions that NumPy's own pickles name, in `numpy.core` or `numpy._core`."""


class _ArrayUnpickler(pickle._Unpickler):
    """Makes arrays and plain values. In Python and not in C, whose memo a few bytes can make gigabytes long."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays are made with; raises UnpicklingError for any other."""
        if module.startswith(("numpy.core.", "numpy._core.")) and name in _MAKERS:
            return _MAKERS[name]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes in a protocol that has none
            return lambda text, encoding: text.encode("latin-1")
        raise pickle.UnpicklingError(_Refused(f"{module}.{name}"))


def _flatten(value: Any, key: str, depth: int) -> list[tuple[str, NDArray[Any]]]:
    """Arrays by the names on the way to them; a list of two is a kernel and its bias."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return [(key, value)]
    if isinstance(value, dict) and depth:
        pairs = [(_text(name), inner) for name, inner in value.items()]
    elif isinstance(value, list | tuple) and len(value) == len(_PAIR) and key:
        pairs = list(zip(_PAIR, value, strict=True))
    else:
        return []
    start = f"{key}/" if key else ""
    return [found for name, inner in pairs for found in _flatten(inner, start + name, depth - 1)]


def _text(name: Any) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


def _describe(key: str, array: NDArray[Any]) -> TensorEntry:
    kind = array.dtype.newbyteorder("=").name
    if kind not in DTYPES or array.nbytes != math.prod(array.shape) * DTYPES[kind]:
        raise ValueError(f"{shown(key)} is of a type that is not read")
    return TensorEntry(array.shape, kind)
