"""A file of weights once it is open: what it says it holds, and one tensor at a time."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Final, Self

import torch
from torch import Tensor

from vggkit.errors import BadCheckpoint, UnknownName, VggkitError

LIMIT_BYTES: Final = 16 * 2**30
"""More than any VGG with its optimizer's state; a file or a claim above it is refused."""
DEFLATE_RATIO: Final = 1100
"""Deflate shrinks at most 1032 times: whatever claims more is lying."""
SLACK_BYTES: Final = 2**20
"""Claims this small are harmless, whatever their ratio."""
PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "vgg.")
"""What wrappers put before every key: DataParallel, torch.compile, Lightning and people's own modules."""
_FLOATS: Final = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
_WHOLES: Final = "int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
DTYPES: Final = frozenset((*_FLOATS.split(), *_WHOLES.split()))
"""torch's names of the types that are read."""
_CHUNK: Final = 2**20


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a file says of a tensor before its values are read."""

    shape: tuple[int, ...]
    """Its sizes, as the file lays it out: Keras' kernels are HWIO, torch's OIHW."""
    dtype: str
    """torch's name of its type: `float32`, `bfloat16`, `int64`."""

    @property
    def size_bytes(self) -> int:
        """Memory that its values take."""
        return math.prod(self.shape) * item_bytes(self.dtype)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a container's reader hands over; `open_weights` checks it and makes the WeightFile."""

    container: str
    entries: dict[str, TensorEntry]
    read: Callable[[str], Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    stripped: tuple[str, ...] = ()
    packed: bool = False
    """Whether values are compressed."""
    dotted: bool = True
    """Whether keys are modules' paths with dots, and may carry prefixes."""
    modules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Every module by its path, those without tensors too, and what is stated of it; empty: not told."""


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
    """What the file says beside its tensors: safetensors' `__metadata__`, Keras' version and layer names,
    what a VGG's own state dict states."""
    modules: tuple[str, ...]
    """Paths of all modules, those without tensors too, in the order in which the network has them, as torch
    keeps them with a state dict; empty where the file does not tell."""
    stripped: tuple[str, ...]
    """Wrappers and prefixes that were taken off, outermost first, such as `('state_dict', 'module.')`."""

    def __init__(self, path: Path, contents: Contents, close: Callable[[], object]) -> None:
        prefixes = _shared_prefixes(list(contents.entries)) if contents.dotted else ()
        start = sum(map(len, prefixes))
        self.path = path
        self.container = contents.container
        self.entries = MappingProxyType({key[start:]: entry for key, entry in contents.entries.items()})
        root = "".join(prefixes)
        stated = contents.modules.get(root.removesuffix("."), {})
        self.metadata = MappingProxyType({**stated, **contents.metadata})
        self.modules = tuple(name[start:] for name in contents.modules if name.startswith(root) and name != root)
        self.stripped = (*contents.stripped, *prefixes)
        self._prefix = "".join(prefixes)
        self._read = contents.read
        self._close = close

    def read(self, key: str) -> Tensor:
        """That tensor alone, contiguous on the CPU, as a copy: the file may change or go afterwards.

        Raises UnknownName for a key that `entries` lacks, BadCheckpoint for values that cannot be
        read, and for NaN and infinity, saying how many.
        """
        if key not in self.entries:
            raise UnknownName.of(f"tensor of {self.path.name}", key, self.entries)
        entry = self.entries[key]
        with reading(self.path, f"values of {shown(key)}"):
            value = self._read(self._prefix + key)
        assert (tuple(value.shape), value.dtype) == (entry.shape, getattr(torch, entry.dtype))
        bad = _count_not_finite(value)
        if bad:
            raise BadCheckpoint(
                f"{self.path}: {shown(key)} holds {bad} of {value.numel()} values that are NaN or infinite; "
                "expected finite weights; take a checkpoint from before training diverged, or copy the file again"
            )
        return value

    def close(self) -> None:
        """Let go of the file; tensors that were read stay."""
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
    """Turn whatever a library says of a broken file into one BadCheckpoint."""
    try:
        yield
    except (VggkitError, AssertionError):
        raise
    except Exception as problem:  # broken files show themselves in many ways
        lines = str(problem).splitlines()
        reason = "".join(letter if letter.isprintable() else "?" for letter in lines[0][:200]) if lines else ""
        reason = reason or type(problem).__name__
        raise refuse(path, f"broken or truncated {what} ({reason})", "download or copy it again") from problem


def shown(name: str) -> str:
    """A name out of a file, fit for one line of a message."""
    quoted = ascii(name)
    return quoted if len(quoted) <= 100 else f"{quoted[:96]}...'"


def item_bytes(dtype: str) -> int:
    """Bytes of one value."""
    found: torch.dtype = getattr(torch, dtype)
    return found.itemsize


def read_bytes(stream: IO[bytes], count: int) -> Tensor:
    """The next `count` bytes as a uint8 tensor; raises EOFError where there are fewer."""
    raw = torch.empty(count, dtype=torch.uint8)
    view = memoryview(raw.numpy())  # type: ignore[arg-type]
    done = 0
    while done < count:
        # By pieces, as zipfile would hold the whole a second time.
        got = stream.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"{count - done} of {count} bytes are missing")
        done += got
    return raw


def decode(raw: Tensor, dtype: str, *, swap: bool) -> Tensor:
    """A flat tensor of `dtype` from its bytes; `swap`: they are in the other byte order."""
    if swap:
        raw = raw.view(-1, item_bytes(dtype)).flip(1).reshape(-1)
    if dtype == "bool":
        return raw.ne(0)  # other bytes than 0 and 1 are no values of torch's bool
    return raw.view(getattr(torch, dtype))


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


def _count_not_finite(value: Tensor) -> int:
    if not value.is_floating_point() or not value.numel():
        return 0
    count = 0
    for piece in value.reshape(-1).split(_CHUNK):
        numbers = piece if piece.dtype.itemsize > 1 else piece.float()  # torch compares no 8-bit floats
        # One pass tells whether all are finite, ten times as fast as asking for each.
        if not torch.isfinite(torch.stack(torch.aminmax(numbers))).all():
            count += int((~torch.isfinite(numbers)).sum())
    return count
