"""torch's own files, `.pth`, `.pt`, `.bin` and `.ckpt`: zip archives, and the older stream of pickles."""

import io
import json
import math
import sys
from pathlib import Path
from typing import IO, Any, Final

from torch import Tensor

from vggkit.models.statements import LABELS_KEY
from vggkit.models.statements import PREFIX as STATEMENTS
from vggkit.weights.formats.archives import Archive
from vggkit.weights.formats.pickles import LIMIT_PICKLE_BYTES, interpret
from vggkit.weights.formats.stand_ins import CodeInPickle, Odd, Stateful, Strided
from vggkit.weights.formats.weight_file import (
    DTYPES,
    Contents,
    TensorEntry,
    decode,
    item_bytes,
    read_bytes,
    reading,
    refuse,
    shown,
)

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "ema")
"""Entries under which training scripts keep the weights, the likeliest first."""
LABEL_ENTRIES: Final = ("class_to_idx", "idx_to_class", "classes", "class_names", "labels")
"""Entries under which they keep the names of classes, torchvision's own name for it first."""
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LIMIT_WRAPPERS: Final = 3
_LIMIT_STORAGES: Final = 100_000
_SAVE_AGAIN: Final = "save model.state_dict() where it was made"


class _Values:
    """Where the values of a torch file lie, and how to read them."""

    def __init__(self, handle: IO[bytes], *, swap: bool, archive: Archive | None = None, root: str = "") -> None:
        self._handle = handle
        self._swap = swap
        self._archive = archive
        self._root = root
        self.places: dict[str, tuple[int | None, int]] = {}
        """Where each storage starts in the file, None where it is packed, and its size in bytes."""

    def locate(self, key: str) -> tuple[int | None, int]:
        """Start and size of a storage; raises LookupError and ValueError."""
        if key not in self.places and self._archive is not None:
            name = f"{self._root}data/{key}"
            self.places[key] = self._archive.find_start(name), self._archive.members[name].file_size
        return self.places[key]

    def read(self, tensor: Strided) -> Tensor:
        """The tensor's values in order."""
        width = item_bytes(tensor.dtype)
        first, count = tensor.first * width, tensor.extent * width
        start, _ = self.locate(tensor.storage.key)
        if start is not None:
            self._handle.seek(start + first)
            raw = read_bytes(self._handle, count)
        else:
            assert self._archive is not None
            with self._archive.open(f"{self._root}data/{tensor.storage.key}") as stream:
                stream.seek(first)
                raw = read_bytes(stream, count)
        flat = decode(raw, tensor.dtype, swap=self._swap)
        if not count:
            return flat.reshape(tensor.shape)
        return flat.as_strided(tensor.shape, tensor.stride).contiguous()


def open_archived(path: Path, handle: IO[bytes], archive: Archive, pickle_name: str) -> Contents:
    """The contents of torch's zip format, whose pickle is the member `pickle_name`; raises BadCheckpoint."""
    root = pickle_name.removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.members:
        raise refuse(path, "a TorchScript program, which holds code", _SAVE_AGAIN)
    content = _interpret(path, io.BytesIO(archive.read(pickle_name, LIMIT_PICKLE_BYTES)))
    order = archive.read(f"{root}byteorder", 16) if f"{root}byteorder" in archive.members else b"little"
    swap = order.decode("ascii", "replace") != sys.byteorder
    values = _Values(handle, swap=swap, archive=archive, root=root)
    return _gather(path, content, values, packed=archive.packed)


def open_legacy(path: Path, handle: IO[bytes], size_bytes: int) -> Contents:
    """The contents of torch's format from before 1.6: pickles one behind the other, then the values.

    Raises BadCheckpoint.
    """
    handle.seek(0)
    if _interpret(path, handle) != _MAGIC:
        raise refuse(path, "a pickle that torch did not write", "save it as .npz or .safetensors where it was made")
    _interpret(path, handle)  # the protocol
    system = _interpret(path, handle)
    storages: dict[str, str] = {}
    content = _interpret(path, handle, storages)
    keys = _interpret(path, handle)
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    values = _Values(handle, swap=bool(little) != (sys.byteorder == "little"))
    with reading(path, "PyTorch file"):
        if not isinstance(keys, list) or len(keys) > _LIMIT_STORAGES:
            raise ValueError("its list of storages is none")
        start = handle.tell()
        for key in map(str, keys):
            handle.seek(start)
            start += 8
            # Only the number of values stands before them; the pickle tells their type.
            size = int.from_bytes(handle.read(8), "little", signed=True) * item_bytes(storages[key])
            if size < 0 or start + size > size_bytes:
                left = max(0, size_bytes - start)
                raise EOFError(f"storage {shown(key)} should take {size} bytes, and {left} are left")
            values.places[key] = (start, size)
            start += size
    return _gather(path, content, values, packed=False)


def _interpret(path: Path, stream: IO[bytes], storages: dict[str, str] | None = None) -> Any:
    with reading(path, "PyTorch file"):
        try:
            return interpret(stream, storages)
        except CodeInPickle as problem:
            name = shown(problem.names[0])
            if problem.is_module:
                found = f"a whole pickled module ({name}), which needs its own code to load"
                raise refuse(path, found, f"nothing of it was run; {_SAVE_AGAIN}") from None
            found = f"a pickle that would run code from the file when loaded ({name})"
            raise refuse(path, found, f"nothing of it was run; get it as .safetensors, or {_SAVE_AGAIN}") from None


def _gather(path: Path, content: Any, values: _Values, *, packed: bool) -> Contents:
    """The tensors by key, out of whatever training scripts put around them; each checked against the file."""
    inside, stripped = _unwrap(content)
    tensors = {str(key): value for key, value in inside.items() if isinstance(value, Strided | Odd)}
    if not tensors:
        raise refuse(path, f"no tensors by key, but {_describe(content)}", _SAVE_AGAIN)
    entries = {}
    strided: dict[str, Strided] = {}
    for key, value in tensors.items():
        kind = value.kind if isinstance(value, Odd) else _name_odd(value)
        if isinstance(value, Odd) or kind:
            raise refuse(path, f"{shown(key)} as a {kind} tensor", "save it as a plain dense one where it was made")
        with reading(path, f"PyTorch file at {shown(key)}"):
            if (value.first + value.extent) * item_bytes(value.dtype) > values.locate(value.storage.key)[1]:
                raise ValueError("it reaches beyond its storage")
        strided[key] = value
        entries[key] = TensorEntry(value.shape, value.dtype)
    return Contents(
        "pytorch",
        entries,
        lambda key: values.read(strided[key]),
        stripped=stripped,
        packed=packed,
        modules=_list_modules(inside),
        metadata=_find_labels(content, stripped),
    )


def _find_labels(content: dict[Any, Any], stripped: tuple[str, ...]) -> dict[str, str]:
    """The class names that a training script kept beside the weights, as we state them, where it did."""
    levels = [content]
    for name in stripped:
        levels.append(levels[-1].get(name, {}))
    for level in levels:
        for entry in LABEL_ENTRIES:
            labels = _order_labels(level.get(entry))
            if labels:
                return {LABELS_KEY: json.dumps(labels, ensure_ascii=False)}
    return {}


def _order_labels(names: Any) -> list[str]:
    """Names by number, whichever of both is the key; empty for anything else."""
    if isinstance(names, dict):
        pairs = [(number, name) if isinstance(name, str) else (name, number) for number, name in names.items()]
        if not all(type(number) is int and isinstance(name, str) for number, name in pairs):
            return []
        names = (
            [name for _, name in sorted(pairs)] if {number for number, _ in pairs} == set(range(len(pairs))) else []
        )
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        return []
    return list(names) if len(set(names)) == len(names) else []


def _list_modules(state: dict[Any, Any]) -> dict[str, dict[str, str]]:
    """Every module that torch's `state_dict()` listed beside its tensors, and what we stated of it."""
    kept = state.state if isinstance(state, Stateful) else None
    listed = kept.get("_metadata") if isinstance(kept, dict) else None
    if not isinstance(listed, dict):
        return {}
    return {
        name: {
            key: value
            for key, value in (about.items() if isinstance(about, dict) else ())
            if isinstance(key, str) and key.startswith(STATEMENTS) and isinstance(value, str)
        }
        for name, about in listed.items()
        if isinstance(name, str)
    }


def _name_odd(tensor: Strided) -> str:
    """What keeps a strided tensor from being read, if anything."""
    if tensor.dtype not in DTYPES:
        return "complex" if "complex" in tensor.dtype else "quantized"
    # One number expanded to terabytes is a few bytes in the file.
    return "expanded (overlapping)" if math.prod(tensor.shape) > tensor.extent else ""


def _unwrap(content: Any, depth: int = _LIMIT_WRAPPERS) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The mapping that holds tensors, empty where there is none, and the wrappers that were taken off."""
    if not isinstance(content, dict):
        return {}, ()
    for name in WRAPPERS if depth else ():
        inside, stripped = _unwrap(content.get(name), depth - 1)
        if inside:
            return inside, (name, *stripped)
    return (content if any(isinstance(value, Strided | Odd) for value in content.values()) else {}), ()


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(shown(str(key)) for key in list(content)[:6])
        return f"a dict with the entries {names}" if names else "an empty dict"
    if isinstance(content, Strided | Odd):
        return "one tensor without a name"
    return f"a {type(content).__name__.lower()}"
