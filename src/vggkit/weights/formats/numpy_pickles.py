"""A `.npy` holding a pickled dict of arrays, as Oxford's networks were handed on; built without calling anything.

Known forms: `{"conv1_1": [kernel, bias]}`, `{"conv1_1": {"weights": …, "biases": …}}` and `{"conv1_1_W": …}`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import torch
from torch import Tensor

from vggkit.weights.formats.pickles import Machine, interpret
from vggkit.weights.formats.stand_ins import CodeInPickle, Global
from vggkit.weights.formats.weight_file import DTYPES, Contents, TensorEntry, decode, reading, refuse, shown

_PAIR: Final = ("weights", "biases")
_LIMIT_DEPTH: Final = 3


@dataclass(slots=True, eq=False)
class _Kind:
    """What stands for a numpy.dtype."""

    code: str
    order: str = "="


@dataclass(slots=True, eq=False)
class _Array:
    """What stands for a numpy.ndarray until its state comes."""

    shape: tuple[int, ...] = ()
    kind: _Kind | None = None
    by_column: bool = False
    values: bytes | list[Any] = b""

    def fill(self, state: Any) -> None:
        """Take over the state (version, shape, kind, by column, values); raises TypeError."""
        _, shape, kind, by_column, values = state
        if isinstance(values, str):  # bytes as Python 2 wrote them
            values = values.encode("latin-1")
        whole = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 2**40 for size in shape)
        if not whole or not isinstance(kind, _Kind) or not isinstance(values, bytes | list):
            raise TypeError("an array whose state is none")
        self.shape, self.kind, self.by_column, self.values = shape, kind, bool(by_column), values


class _ArrayMachine(Machine):
    """A pickle's stack that makes stand-ins of arrays too."""

    def make(self, operation: str, argument: Any) -> None:
        target = self.stack[-2] if len(self.stack) > 1 else None
        if operation == "BUILD" and isinstance(target, _Array):
            target.fill(self.stack.pop())
        elif operation == "BUILD" and isinstance(target, _Kind):
            target.order = str(self.stack.pop()[1])
        elif operation == "REDUCE" and isinstance(target, Global) and self._makes_array(target.name):
            arguments, _ = self.stack.pop(), self.stack.pop()
            self.stack.append(self._reduce(target.name, arguments))
        else:
            super().make(operation, argument)

    @staticmethod
    def _makes_array(name: str) -> bool:
        return name.endswith(".multiarray._reconstruct") or name in ("numpy.dtype", "_codecs.encode")

    @staticmethod
    def _reduce(name: str, arguments: Any) -> Any:
        if name == "_codecs.encode":  # bytes in a protocol that has none
            text, encoding = arguments
            if encoding != "latin1":
                raise ValueError("bytes in an encoding that numpy does not use")
            return text.encode("latin-1")
        return _Kind(str(arguments[0])) if name == "numpy.dtype" else _Array()


def open_npy(path: Path, handle: IO[bytes], size_bytes: int, *, advice: str) -> Contents:
    """The contents of an object array at the handle's position; raises BadCheckpoint.

    The values stay in memory while the file is open: they lie inside the pickle.
    """
    with reading(path, "NumPy file"):
        try:
            value = interpret(handle, machine=_ArrayMachine({}), limit_bytes=size_bytes)
        except CodeInPickle as problem:
            found = f"a pickle that would run code from the file when loaded ({shown(problem.names[0])})"
            raise refuse(path, found, f"nothing of it was run; {advice}") from None
        if isinstance(value, _Array) and isinstance(value.values, list) and len(value.values) == 1:
            value = value.values[0]
        arrays = dict(_flatten(value, "", _LIMIT_DEPTH))
        entries = {key: _describe(key, array) for key, array in arrays.items()}
    if not entries:
        raise refuse(path, "a pickled object without arrays by name", advice)

    def read(key: str) -> Tensor:
        array, entry = arrays[key], entries[key]
        assert isinstance(array.values, bytes)
        assert array.kind is not None
        raw = torch.frombuffer(bytearray(array.values), dtype=torch.uint8)
        flat = decode(raw, entry.dtype, swap=not np.dtype(array.kind.order + array.kind.code).isnative)
        if not array.by_column:
            return flat.view(entry.shape)
        return flat.view(entry.shape[::-1]).permute(*reversed(range(len(entry.shape)))).contiguous()

    return Contents("npy", entries, read, dotted=False)


def _flatten(value: Any, key: str, depth: int) -> list[tuple[str, _Array]]:
    """Arrays by the names on the way to them; a list of two is a kernel and its bias."""
    if isinstance(value, _Array) and isinstance(value.values, bytes):
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


def _describe(key: str, array: _Array) -> TensorEntry:
    kind = array.kind
    if kind is None or not re.fullmatch(r"[fiub][1248]", kind.code) or kind.order not in tuple("<>=|"):
        raise ValueError(f"{shown(key)} is of a type that is not read")
    entry = TensorEntry(array.shape, np.dtype(kind.code).name)
    if entry.dtype not in DTYPES or math.prod(entry.shape) * np.dtype(kind.code).itemsize != len(array.values):
        raise ValueError(f"{shown(key)} has other values than its shape says")
    return entry
