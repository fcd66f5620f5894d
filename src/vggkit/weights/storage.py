"""Weights stored in fewer bits than they are computed in: 16-bit floats, or integers of 8 or 4 bits.

The integers have a scale for each output channel, and are Huffman-coded (Han, Mao and Dally 2016, "Deep
Compression", arXiv:1510.00149).

Kernels and matrices are coded; biases and batch norms stay in float32. A coded tensor `KEY` is two in the file:
`KEY.codes`, a zlib stream of one byte for each weight, and `KEY.scale`, float32, one for each output channel. The
entry `vggkit_storage` of the file's metadata names them with their shapes. Every reader restores float32. No torch.

Shape letters: O output channels, I weights of each.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadInput

Storage = Literal["fp32", "fp16", "int8", "int4"]
"""How a Classifier's file holds kernels and matrices. In int4 the first convolution and the last layer are int8."""
Coding = Literal["int8", "int4"]
STORAGE_KEY: Final = "vggkit_storage"
"""The metadata entry that lists the coded tensors."""
LEVELS: Final[Mapping[Coding, int]] = {"int8": 127, "int4": 7}
"""The largest code; codes are symmetric around 0."""
_LARGEST_HALF: Final = 65504.0
_CLIPS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
"""Shares of a channel's largest weight at which int4 may clip; the one of the least squared error is taken."""
_WIDER: Final = (7 / 6, 7 / 5, 7 / 4, 7 / 3, 7 / 2, 7)
"""The same above 1: weights that were rounded to a grid before are found on it again."""
_TOGETHER: Final = 64
"""Rows whose scales are searched together, so that they stay in the processor's cache."""
_MOST_SAMPLED: Final = 5_000
"""Weights of a row that scales are compared on."""
_SCALE_BITS: Final = 12
"""Bits of a scale's mantissa that are dropped, so that code times scale is exact in float32."""

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CodedEntry:
    """A tensor that is stored as codes and scales."""

    coding: Coding
    """Bits of a code."""
    shape: tuple[int, ...]
    """Of the restored tensor, the output channels first."""


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Integer codes of a kernel or matrix."""

    coding: Coding
    codes: NDArray[np.int8]
    """(O, …), within `LEVELS` of 0."""
    scale: Values
    """(O,)."""

    def restore(self) -> Values:
        """The weights, float32."""
        wide = self.scale.reshape(-1, *[1] * (self.codes.ndim - 1))
        restored: Values = self.codes.astype(np.float32) * wide
        return restored


def choose_codings(shapes: Mapping[str, tuple[int, ...]], storage: Storage) -> dict[str, Coding]:
    """The tensors of a state dict that are coded, and in how many bits."""
    matrices = [key for key, shape in shapes.items() if len(shape) > 1]
    if storage not in ("int8", "int4") or not matrices:
        return {}
    # The first reads pixels and the last gives the scores: few weights, and the most sensitive ones.
    fine = (matrices[0], matrices[-1]) if storage == "int4" else matrices
    return {key: "int8" if key in fine else "int4" for key in matrices}


def encode(values: Values, coding: Coding) -> Coded:
    """The nearest codes of a kernel or matrix (O, …); values that were restored from codes are found again."""
    rows = values.reshape(len(values), -1).astype(np.float32)
    scale = choose_scales(rows, coding)
    return Coded(coding, _round(rows, scale, coding).reshape(values.shape), scale)


def choose_scales(rows: Values, coding: Coding) -> Values:
    """The scale (O,) of each row (O, I): its largest weight is the largest code, or for int4 what errs least."""
    if coding == "int8":
        return _shorten(np.abs(rows).max(axis=1) / LEVELS[coding])
    best = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _TOGETHER):
        some = rows[first : first + _TOGETHER]
        best[first : first + _TOGETHER] = _search_scales(some, coding)
    return best


def _search_scales(rows: Values, coding: Coding) -> Values:
    """The scale of each row that errs least on its weights, of very many on every n-th."""
    most, levels = np.abs(rows).max(axis=1), LEVELS[coding]
    sample = np.ascontiguousarray(rows[:, :: -(-rows.shape[1] // _MOST_SAMPLED)])
    best, least = _shorten(most / levels), np.full(len(rows), np.inf)
    for share in (*_CLIPS, *_WIDER):
        scale = _shorten(share * most / levels)
        wide = scale[:, None]
        difference = sample - np.clip(np.rint(sample / wide), -levels, levels) * wide
        error = np.einsum("oi,oi->o", difference, difference)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def _round(rows: Values, scale: Values, coding: Coding) -> NDArray[np.int8]:
    levels = LEVELS[coding]
    codes: NDArray[np.int8] = np.clip(np.rint(rows / scale[:, None]), -levels, levels).astype(np.int8)
    return codes


def _shorten(scale: NDArray[Any]) -> Values:
    """Scales with a short mantissa, rounded to the nearest; a channel of zeros gets 1."""
    positive = np.where(scale > 0, scale, 1).astype(np.float32)
    bits = (positive.view(np.uint32) + np.uint32(1 << (_SCALE_BITS - 1))) >> np.uint32(_SCALE_BITS)
    return (bits << np.uint32(_SCALE_BITS)).view(np.float32)


def pack_state(
    state: Mapping[str, NDArray[Any]], storage: Storage
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors that the file holds in place of a state dict's, and the metadata that they need.

    Raises BadInput for weights that 16-bit floats cannot hold.
    """
    codings = choose_codings({key: value.shape for key, value in state.items()}, storage)
    packed: dict[str, NDArray[Any]] = {}
    for key, value in state.items():
        if key in codings:
            coded = encode(value, codings[key])
            packed[f"{key}.codes"] = np.frombuffer(_compress(coded.codes), np.uint8)
            packed[f"{key}.scale"] = coded.scale
        elif storage == "fp16" and value.ndim > 1:
            if np.abs(value).max() > _LARGEST_HALF:
                raise BadInput(f"{key} holds weights above {_LARGEST_HALF:g}, which 16-bit floats cannot hold")
            packed[key] = value.astype(np.float16)
        else:
            packed[key] = value
    listed = {key: {"coding": coding, "shape": list(state[key].shape)} for key, coding in codings.items()}
    return packed, {STORAGE_KEY: json.dumps(listed)} if listed else {}


def round_state(state: Mapping[str, NDArray[Any]], storage: Storage) -> dict[str, NDArray[Any]]:
    """The state dict as it is read back after it was stored; raises what `pack_state` does."""
    codings = choose_codings({key: value.shape for key, value in state.items()}, storage)
    rounded = dict(state)
    for key, coding in codings.items():
        rounded[key] = encode(state[key], coding).restore()
    if storage == "fp16":
        packed, _ = pack_state(state, storage)
        rounded = {key: value.astype(state[key].dtype) for key, value in packed.items()}
    return rounded


def read_coded(metadata: Mapping[str, str]) -> dict[str, CodedEntry]:
    """The coded tensors that a file's metadata lists; empty where there are none. Raises ValueError."""
    if STORAGE_KEY not in metadata:
        return {}
    try:
        listed = json.loads(metadata[STORAGE_KEY])
        found = {key: CodedEntry(each["coding"], tuple(each["shape"])) for key, each in listed.items()}
        for entry in found.values():
            sizes = all(type(side) is int and side > 0 for side in entry.shape)
            if entry.coding not in LEVELS or len(entry.shape) < 2 or not sizes:
                raise ValueError(f"{entry.coding} of {entry.shape}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise ValueError(f"its list of coded tensors is damaged: {problem!s:.100}") from problem
    return found


def restore(key: str, entry: CodedEntry, read: Callable[[str], NDArray[Any]]) -> Values:
    """The weights of a coded tensor, float32.

    Args:
        key: Its key.
        entry: Coding and shape.
        read: Gives the file's array of a key.

    Raises ValueError where codes and scales do not fit.
    """
    stream, scale, count = read(f"{key}.codes"), read(f"{key}.scale"), math.prod(entry.shape)
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(stream.tobytes(), count)
        whole = len(plain) == count and not unpacker.decompress(unpacker.unconsumed_tail, 1) and unpacker.eof
    except zlib.error as problem:
        raise ValueError(f"the codes of {key} are damaged ({problem})") from problem
    if not whole or scale.shape != entry.shape[:1] or scale.dtype != np.float32:
        raise ValueError(f"the codes or scales of {key} are not those of a tensor {entry.shape}")
    return Coded(entry.coding, np.frombuffer(plain, np.int8).reshape(entry.shape), scale).restore()


def _compress(codes: NDArray[np.int8]) -> bytes:
    """Huffman codes alone: weights do not repeat, and looking for repetitions takes time and gains nothing."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    return packer.compress(codes.tobytes()) + packer.flush()
