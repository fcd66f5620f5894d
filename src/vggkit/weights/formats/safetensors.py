"""safetensors files, through their own library, one tensor at a time."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final

from safetensors import safe_open
from torch import Tensor

from vggkit.weights.formats.weight_file import Contents, TensorEntry, reading, refuse, shown

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
        opened = stack.enter_context(safe_open(path, framework="pt"))
        metadata = dict(opened.metadata() or {})
        for key in opened.offset_keys():
            part = opened.get_slice(key)
            kind = part.get_dtype()
            if kind not in _DTYPES:
                raise refuse(path, f"{shown(key)} of type {kind}", "save it as F32 where it was made")
            entries[key] = TensorEntry(tuple(part.get_shape()), _DTYPES[kind])

    def read(key: str) -> Tensor:
        # The library's own tensor is the file itself, mapped: whoever rewrites it would change the weights.
        value: Tensor = opened.get_tensor(key)
        return value.clone()

    return Contents("safetensors", entries, read, metadata)
