"""An open file of weights: shapes and types by key, and one tensor at a time.

Nothing here imports torch before values are read as tensors.
"""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadCheckpoint, UnknownName, VggkitError
from vggkit.weights.formats.reparametrized import find_computed, list_resolved

if TYPE_CHECKING:
    from torch import Tensor

LIMIT_BYTES: Final = 16 * 2**30
"""More than any VGG with its optimizer's state; a file or a claim above it is refused."""
DEFLATE_RATIO: Final = 1100
"""Deflate shrinks at most 1032 times; a larger claim is false."""
SLACK_BYTES: Final = 2**20
"""Declared sizes this small are harmless at any compression ratio."""
PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "vgg.")
"""Prefixes that wrappers put before every key: DataParallel, torch.compile, Lightning and custom modules."""
BESIDE: Final = frozenset(
    (
        *("criterion", "criterions", "loss", "loss_fn", "loss_func", "loss_function", "losses"),
        *("optimizer", "optimizers", "scheduler", "lr_scheduler", "scaler", "n_averaged", "epoch", "global_step"),
        *("metric", "metrics", "train_metrics", "val_metrics", "test_metrics", "train_acc", "val_acc", "test_acc"),
    )
)
"""First parts of keys that are not a network's tensors: optimizers, losses and counters saved beside it."""
DTYPES: Final[Mapping[str, int]] = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1},
}
"""torch's names of the types that are read, and the bytes that one value takes."""
IN_MEMORY: Final = Path("state dict in memory")
"""The path of weights that are no file, for messages."""
_CHUNK: Final = 2**20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Shape and type of a tensor, known before its values are read."""

    shape: tuple[int, ...]
    """Its sizes, as the file lays it out: Keras' kernels are HWIO, torch's OIHW."""
    dtype: str
    """torch's name of its type: `float32`, `bfloat16`, `int64`."""

    @property
    def size_bytes(self) -> int:
        """Memory that its values take."""
        return math.prod(self.shape) * DTYPES[self.dtype]


@dataclass(frozen=True, slots=True)
class Contents:
    """The result of a format's reader; `open_weights` checks it and makes the WeightFile."""

    container: str
    entries: dict[str, TensorEntry]
    read: Callable[[str], "Tensor | NDArray[Any]"]
    """The values by key: a tensor, or an array; for bfloat16 the array's type may be any of two bytes."""
    metadata: dict[str, str] = field(default_factory=dict)
    stripped: tuple[str, ...] = ()
    packed: bool = False
    """Whether values are compressed."""
    dotted: bool = True
    """Whether keys are modules' paths with dots, and may carry prefixes."""
    modules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Every module by its path, those without tensors too, with its metadata; empty where the file lists none."""


class _NotFinite(BadCheckpoint):
    """NaN or infinity among the values."""


class WeightFile:
    """An open file of weights; use it in a `with`, or `close` it. `open_weights` makes it."""

    path: Path
    """The file."""
    container: str
    """`safetensors`, `pytorch`, `npz`, `npy`, `keras-h5` (legacy), `keras-3` (`.weights.h5`) or
    `keras-archive` (`.keras`)."""
    entries: Mapping[str, TensorEntry]
    """Shape and dtype by key, in the file's order; Keras 3's by number, convolutions before dense layers."""
    metadata: Mapping[str, str]
    """The metadata of the file: safetensors' `__metadata__`, Keras' version and layer names, that of a VGG's own
    state dict."""
    modules: tuple[str, ...]
    """Paths of all modules, those without tensors too, in the order in which the network has them, as torch
    keeps them with a state dict; empty where the file does not list them."""
    stripped: tuple[str, ...]
    """Wrappers and prefixes that were removed, outermost first, such as `('state_dict', 'module.')`, and names of
    tensors that are not the network's, such as `n_averaged` and `criterion`."""

    def __init__(self, path: Path, contents: Contents, close: Callable[[], object]) -> None:
        entries, beside = _leave_beside(contents) if contents.dotted else (contents.entries, ())
        computed = find_computed(entries.keys()) if contents.dotted else {}
        resolved = list_resolved(entries, computed)
        prefixes = _shared_prefixes(list(resolved)) if contents.dotted else ()
        start = sum(map(len, prefixes))
        self.path = path
        self.container = contents.container
        self.entries = MappingProxyType({key[start:]: entries[held] for key, held in resolved.items()})
        root = "".join(prefixes)
        stated = contents.modules.get(root.removesuffix("."), {})
        self.metadata = MappingProxyType({**stated, **contents.metadata})
        self.modules = tuple(
            name[start:]
            for name in contents.modules
            if name.startswith(root) and name != root and "parametrizations" not in name.split(".")
        )
        self.stripped = (*contents.stripped, *beside, *prefixes)
        self._prefix, self._computed, self._kept = root, computed, contents.entries
        self._read = contents.read
        self._close = close

    def read(self, key: str) -> "Tensor":
        """That tensor alone, contiguous on the CPU, as a copy: the file may change or be deleted afterwards.

        Raises UnknownName for a key that `entries` lacks, BadCheckpoint for values that cannot be
        read, and for NaN and infinity, with their number.
        """
        self._demand_key(key)
        entry, made = self.entries[key], self._computed.get(self._prefix + key)
        if made is None:
            value = self._read_tensor(self._prefix + key)
        else:
            value = made.compute(*map(self._read_tensor, (made.values, *made.others))).contiguous()
        assert (tuple(value.shape), str(value.dtype)) == (entry.shape, f"torch.{entry.dtype}")
        self._demand_finite(key, _count_not_finite(value))
        return value

    def read_array(self, key: str) -> NDArray[np.float32]:
        """That tensor as float32, without torch where the format and the type allow it; raises as `read` does."""
        self._demand_key(key)
        if self._prefix + key in self._computed:
            made: NDArray[np.float32] = self.read(key).float().numpy()
            return made
        value, entry = self._read_values(self._prefix + key), self.entries[key]
        if not isinstance(value, np.ndarray):
            array: NDArray[np.float32] = value.float().numpy()
        elif entry.dtype == "bfloat16":
            array = (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif value.dtype.kind == "V" or entry.dtype.startswith("float8"):
            array = self.read(key).float().numpy()
        else:
            array = value.astype(np.float32)
        self._demand_finite(key, int((~np.isfinite(array)).sum()))
        return array

    def is_finite(self, key: str) -> bool:
        """Whether a tensor has neither NaN nor infinity; of one that cannot be read, loading says why."""
        try:
            self.read_array(key)
        except _NotFinite:
            return False
        except BadCheckpoint:
            pass
        return True

    def _demand_key(self, key: str) -> None:
        if key not in self.entries:
            raise UnknownName.of(f"tensor of {self.path.name}", key, self.entries)

    def _read_values(self, held: str) -> "Tensor | NDArray[Any]":
        """The values under the file's own key."""
        with reading(self.path, f"values of {shown(held)}"):
            return self._read(held)

    def _read_tensor(self, held: str) -> "Tensor":
        """The same as a tensor of its type."""
        import torch

        value = self._read_values(held)
        if not isinstance(value, np.ndarray):
            return value
        dtype: torch.dtype = getattr(torch, self._kept[held].dtype)
        found = torch.from_numpy(value)
        return found if found.dtype == dtype else found.view(dtype)

    def _demand_finite(self, key: str, bad: int) -> None:
        if bad:
            values = f"{bad} of {math.prod(self.entries[key].shape)} values"
            raise _NotFinite(
                f"{self.path}: {shown(key)} holds {values} that are NaN or infinite; expected finite weights; "
                "use a checkpoint from before training diverged, or copy the file again"
            )

    def close(self) -> None:
        """Close the file; tensors that were read remain valid."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"WeightFile({str(self.path)!r}, {self.container}, {len(self.entries)} tensors)"


def refuse(path: Path, found: str, advice: str) -> BadCheckpoint:
    """The error for a file that holds something else: what was expected, what was found, what to do."""
    return BadCheckpoint(f"{path}: expected a file of weights, found {found}; {advice}")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Convert any exception of a library for a broken file into one BadCheckpoint."""
    try:
        yield
    except (VggkitError, AssertionError):
        raise
    except Exception as problem:  # libraries raise many types for broken files
        lines = str(problem).splitlines()
        reason = "".join(letter if letter.isprintable() else "?" for letter in lines[0][:200]) if lines else ""
        reason = reason or type(problem).__name__
        raise refuse(path, f"broken or truncated {what} ({reason})", "download or copy it again") from problem


def shown(name: str) -> str:
    """A name out of a file, fit for one line of a message."""
    quoted = ascii(name)
    return quoted if len(quoted) <= 100 else f"{quoted[:96]}...'"


class Archive:
    """An open zip archive: its members are unencrypted, have unique names and plausible sizes."""

    def __init__(self, path: Path, handle: IO[bytes], size_bytes: int) -> None:
        """Raises BadCheckpoint."""
        self._path = path
        self._size_bytes = size_bytes
        with reading(path, "zip archive"):
            try:
                self._zip = zipfile.ZipFile(handle)
            except zipfile.BadZipFile as problem:
                found = f"a truncated zip archive ({problem}: its directory is at its end)"
                raise refuse(path, found, "download or copy it again") from problem
            files = [info for info in self._zip.infolist() if not info.is_dir()]
        self.members: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in files}
        """Every file in it by name, in the order of its directory."""
        if len(self.members) < len(files):
            raise refuse(path, "a zip archive with two members of one name", "write it again; readers would differ")
        for info in files:
            self._check(info)
        self.unpacked_bytes = sum(info.file_size for info in files)
        """The total size of all of its members."""
        if self.unpacked_bytes > LIMIT_BYTES:
            found = f"a zip archive that claims to unpack to {self.unpacked_bytes} bytes"
            raise refuse(path, found, "no VGG is that large")

    def _check(self, info: zipfile.ZipInfo) -> None:
        name = shown(info.filename)
        if info.flag_bits & 1:
            raise refuse(self._path, f"an encrypted zip archive ({name})", "unpack it first")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(
                self._path, f"a zip compression that is not read ({name})", "write it again with deflate or stored"
            )
        stored = info.compress_type == zipfile.ZIP_STORED
        most = info.compress_size if stored else info.compress_size * DEFLATE_RATIO + SLACK_BYTES
        if info.file_size > most or info.header_offset + info.compress_size > self._size_bytes:
            raise refuse(
                self._path,
                f"a zip archive that claims {info.file_size} bytes for {name}, packed in {info.compress_size}",
                "download it again from a source that you trust",
            )

    @property
    def packed(self) -> bool:
        """Whether any of it is compressed."""
        return any(info.compress_type != zipfile.ZIP_STORED for info in self.members.values())

    def open(self, name: str) -> IO[bytes]:
        """A member to read in order; its checksum is compared at its end."""
        return self._zip.open(self.members[name])

    def read(self, name: str, limit: int) -> bytes:
        """A small member whole; raises BadCheckpoint where it is larger than `limit` bytes."""
        size = self.members[name].file_size
        if size > limit:
            raise refuse(self._path, f"{shown(name)} of {size} bytes in it", "no VGG's is that large")
        with reading(self._path, f"member {shown(name)}"), self.open(name) as stream:
            return stream.read(size)

    def close(self) -> None:
        """Close the archive, not its file."""
        self._zip.close()


def to_native(array: NDArray[Any]) -> NDArray[Any]:
    """The array contiguous, in this machine's byte order."""
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(native).reshape(array.shape)  # a scalar would become a row of one


def _leave_beside(contents: Contents) -> tuple[Mapping[str, TensorEntry], tuple[str, ...]]:
    """The entries without those of losses, optimizers and counters, and the names of these."""
    beside = list(dict.fromkeys(key.split(".")[0] for key in contents.entries if key.split(".")[0] in BESIDE))
    entries = {key: entry for key, entry in contents.entries.items() if key.split(".")[0] not in beside}
    return (entries, tuple(beside)) if entries else (contents.entries, ())


def _shared_prefixes(keys: list[str]) -> tuple[str, ...]:
    """Known prefixes that every key has, one within the other."""
    found: list[str] = []
    while keys:
        prefix = next((p for p in PREFIXES if all(len(key) > len(p) and key.startswith(p) for key in keys)), None)
        if prefix is None:
            break
        found.append(prefix)
        keys = [key.removeprefix(prefix) for key in keys]
    return tuple(found)


def _count_not_finite(value: "Tensor") -> int:
    import torch

    if not value.is_floating_point() or not value.numel():
        return 0
    count = 0
    for piece in value.reshape(-1).split(_CHUNK):
        numbers = piece if piece.dtype.itemsize > 1 else piece.float()  # torch compares no 8-bit floats
        # One pass shows whether all are finite, ten times as fast as testing each.
        if not torch.isfinite(torch.stack(torch.aminmax(numbers))).all():
            count += int((~torch.isfinite(numbers)).sum())
    return count
