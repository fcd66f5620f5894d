"""safetensors files, through their own library, one tensor at a time."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from numpy.typing import NDArray
from safetensors import safe_open

from vggkit.weights.formats.weight_file import Contents, TensorEntry, reading, refuse, shown
from vggkit.weights.storage import CodedEntry, read_coded, restore

if TYPE_CHECKING:
    from torch import Tensor

_HEADER_BYTES: Final = 16 * 2**20
_DTYPES: Final = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def open_safetensors(path: Path, handle: IO[bytes], size_bytes: int, stack: ExitStack) -> Contents:
    """The contents of a safetensors file; raises BadCheckpoint."""
    handle.seek(0)
    header = int.from_bytes(handle.read(8), "little")
    if header > min(size_bytes - 8, _HEADER_BYTES):
        found = f"a safetensors header that claims {header} bytes in a file of {size_bytes}"
        raise refuse(path, found, "it breaks off or is broken; download or copy it again")
    entries = {}
    with reading(path, "safetensors file"):
        opened = stack.enter_context(safe_open(path, framework="numpy"))
        metadata = dict(opened.metadata() or {})
        for key in opened.offset_keys():
            part = opened.get_slice(key)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise refuse(path, f"{shown(key)} of type {kind}", "save it as F32 where it was made")
            entries[key] = TensorEntry(tuple(part.get_shape()), _DTYPES[kind])
        coded = read_coded(metadata)
        entries = _name_restored(path, entries, coded)
    as_tensors: list[Any] = []

    def read(key: str) -> "Tensor | NDArray[Any]":
        if key in coded:
            return restore(key, coded[key], opened.get_tensor)
        if entries[key].dtype in ("float64", "float32", "float16"):
            array: NDArray[Any] = opened.get_tensor(key)
            return array
        if not as_tensors:  # NumPy lacks the other types; torch is imported here
            as_tensors.append(stack.enter_context(safe_open(path, framework="pt")))
        # The library's own tensor is the mapped file, and changes with it.
        value: Tensor = as_tensors[0].get_tensor(key)
        return value.clone()

    return Contents("safetensors", entries, read, metadata, packed=bool(coded))


def _name_restored(
    path: Path, entries: Mapping[str, TensorEntry], coded: Mapping[str, CodedEntry]
) -> dict[str, TensorEntry]:
    """The tensors as they are restored, where some of them are stored as codes and scales; raises BadCheckpoint."""
    named: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        base, _, ending = key.rpartition(".")
        if base not in coded or ending not in ("codes", "scale"):
            named[key] = entry
        elif f"{base}.codes" not in entries or f"{base}.scale" not in entries:
            raise refuse(path, f"codes or scales of {shown(base)} alone", "download or copy it again")
        else:
            named[base] = TensorEntry(coded[base].shape, "float32")
    if lost := sorted(coded.keys() - named.keys()):
        raise refuse(path, f"no codes of {shown(lost[0])}", "download or copy it again")
    return named
