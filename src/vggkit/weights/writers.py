"""Weights written tensor by tensor: a file is never in memory whole, but for `.pth`, which torch writes.

Each writer takes a path that is its own to fill; `convert` puts the finished file in its place. torch is imported
when values are written, and not before.
"""

import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadConfiguration, MissingExtra, UnknownName
from vggkit.weights.dialects import Dialect
from vggkit.weights.formats.weight_file import DTYPES

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "torchvision": (".safetensors", ".pth", ".pt"),
    "timm": (".safetensors", ".pth", ".pt"),
    "blocks": (".safetensors", ".pth", ".pt"),
    "explicit": (".safetensors", ".pth", ".pt"),
    "keras": (".weights.h5", ".h5", ".npz"),
    "caffe": (".npz",),
}
"""The files that readers of each dialect take; `.weights.h5` is Keras 3's own, `.h5` the one before."""

_SAFETENSORS_NAMES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor to write."""

    key: str
    """Its key in the file."""
    shape: tuple[int, ...]
    """Its shape in the file."""
    dtype: str
    """torch's name of its type."""
    read: Callable[[], "Tensor"]
    """Returns its values when they are written; any strides."""

    def values(self) -> "Tensor":
        """Its values, contiguous."""
        import torch

        value = self.read().to(getattr(torch, self.dtype))
        assert tuple(value.shape) == self.shape, (self.key, tuple(value.shape), self.shape)
        return value.contiguous()


def suffix_of(path: Path, dialect: Dialect) -> str:
    """The dialect's kind of file that the path names; raises BadConfiguration for none, and UnknownName."""
    if dialect not in SUFFIXES:
        raise UnknownName.of("dialect", dialect, SUFFIXES)
    found = next((suffix for suffix in SUFFIXES[dialect] if path.name.lower().endswith(suffix)), None)
    if found is None:
        raise BadConfiguration(
            f"{path.name}: weights in dialect {dialect!r} are written as {' or '.join(SUFFIXES[dialect])}"
        )
    return found


def write_pieces(path: Path, suffix: str, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> None:
    """Write the tensors to `path` in the format of `suffix`.

    The metadata goes where the format has a place for it: all but `.npz`. Raises OSError, and
    MissingExtra where HDF5 needs h5py.
    """
    match suffix:
        case ".safetensors":
            _write_safetensors(path, pieces, metadata)
        case ".npz":
            _write_npz(path, pieces)
        case ".h5":
            _write_legacy_hdf5(path, pieces, metadata)
        case ".weights.h5":
            _write_keras_3(path, pieces, metadata)
        case _:
            _write_torch(path, pieces, metadata)


def _write_safetensors(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> None:
    """8 bytes of length, a header of JSON, the values one behind the other; wide types first, to be aligned."""
    import torch

    ordered = sorted(pieces, key=lambda piece: -DTYPES[piece.dtype])
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for piece in ordered:
        end = start + int(np.prod(piece.shape, dtype=np.int64)) * DTYPES[piece.dtype]
        header[piece.key] = {
            "dtype": _SAFETENSORS_NAMES[piece.dtype],
            "shape": list(piece.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for piece in ordered:
            out.write(piece.values().reshape(-1).view(torch.uint8).numpy().data)


def _write_torch(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> None:
    """A state dict; the metadata is where torch keeps the versions of a network's modules."""
    import torch

    state = OrderedDict((piece.key, piece.values()) for piece in pieces)
    state._metadata = OrderedDict({"": {"version": 1, **metadata}})  # type: ignore[attr-defined]
    torch.save(state, path)


def _to_numpy(piece: Piece) -> NDArray[Any]:
    """Its values for formats without bfloat16, whose numbers float32 holds exactly."""
    value = piece.values()
    array: NDArray[Any] = (value.float() if piece.dtype == "bfloat16" else value).numpy()
    return array


def _write_npz(path: Path, pieces: Sequence[Piece]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for piece in pieces:
            with archive.open(f"{piece.key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _to_numpy(piece), allow_pickle=False)


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py  # type: ignore[import-untyped,unused-ignore]
    except ImportError as problem:
        raise MissingExtra.of("h5py", "Writing Keras' HDF5 files", "weights") from problem
    return h5py.File(path, "w")


def _encode(metadata: Mapping[str, str]) -> dict[str, np.bytes_]:
    """Texts of a fixed length, which are stored in the attribute itself."""
    return {name: np.bytes_(text.encode()) for name, text in metadata.items()}


def _group_layers(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    layers: dict[str, list[Piece]] = {}
    for piece in pieces:
        layers.setdefault(piece.key.rsplit("/", 1)[0], []).append(piece)
    return layers


def _write_legacy_hdf5(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> None:
    """As `save_weights` of Keras before 3 wrote it: a group for each layer, its order in an attribute."""
    layers = _group_layers(pieces)
    with _open_hdf5(path) as file:
        file.attrs.update({"backend": b"torch", "keras_version": b"3.0.0", **_encode(metadata)})
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, own in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [piece.key.encode() for piece in own]
            for piece in own:
                group.create_dataset(piece.key, data=_to_numpy(piece))


def _write_keras_3(path: Path, pieces: Sequence[Piece], metadata: Mapping[str, str]) -> None:
    """As Keras 3 writes it: layers by their class and number alone, their tensors by number."""
    numbers = {"conv2d": 0, "dense": 0}
    with _open_hdf5(path) as file:
        file.attrs.update(_encode(metadata))
        for own in _group_layers(pieces).values():
            kind = "conv2d" if len(own[0].shape) == 4 else "dense"
            number = numbers[kind]
            numbers[kind] += 1
            group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
            for count, piece in enumerate(own):
                group.create_dataset(str(count), data=_to_numpy(piece))
