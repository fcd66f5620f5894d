"""What stands for the things that a torch pickle names: records of where values lie, and nothing that runs."""

import re
from dataclasses import dataclass
from typing import Any, Final

from vggkit.weights.formats.weight_file import DTYPES

STORAGES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
}
_ODD: Final = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "valueless (meta)",
    "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_device_tensor_from_numpy": "device-bound",
}
_DICTS: Final = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
_LIMIT_DIMENSIONS: Final = 16
_BUILTINS: Final = "bool bytearray bytes complex dict float frozenset int list range set slice str tuple"
_HARMLESS: Final = {
    # What training scripts keep beside the weights. None of it is made: it is passed over.
    *_DICTS,
    *(f"builtins.{name}" for name in _BUILTINS.split()),
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    *(f"numpy.{room}.multiarray.{name}" for room in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"),
    *("argparse.Namespace", "collections.deque", "datetime.datetime", "datetime.date", "datetime.timedelta"),
    *("_codecs.encode", "torch.device", "torch.Size", "torch.Tensor", "torch.nn.parameter.Parameter"),
    *("torch.nn.parameter.Buffer", "torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout"),
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
}
_REBUILDS: Final = {
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_device_tensor_from_cpu_tensor",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values in the file, by its key."""

    dtype: str
    key: str
    count: int
    """Values in the whole run."""
    start: int = 0
    """Values before this view of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Strided:
    """A tensor that has yet to be read: a view of a storage, all in values of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def first(self) -> int:
        """Values before its first one in the whole storage."""
        return self.storage.start + self.offset

    @property
    def extent(self) -> int:
        """Values from its first to its last one in the storage."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Odd:
    """A tensor of a kind that is not read."""

    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """Something beside the weights that was passed over."""


class Stateful(dict[Any, Any]):
    """A mapping with attributes of its own, as torch's state dicts are."""

    state: Any = None
    """Its attributes by name."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that stands for itself."""

    name: str


class CodeInPickle(Exception):
    """The pickle names something that would run; `names`: all that it names, the first refused one first."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names[0])
        self.names = names

    @property
    def is_module(self) -> bool:
        """Whether it is a whole pickled module, not a state dict."""
        return any(name.startswith(("torch.nn.modules.", "torch.nn.parallel.", "module ")) for name in self.names)


def plain_key(key: Any) -> Any:
    """A key for a dict: only plain values, as hashing nested tuples can take for ever."""
    return key if isinstance(key, str | int | float | bytes) else Inert()


def look_up(module: str, name: str) -> Global:
    """The name, where it is known and harmless; raises CodeInPickle."""
    module = {"__builtin__": "builtins", "torch.tensor": "torch._tensor", "copy_reg": "copyreg"}.get(module, module)
    full = f"{module}.{name}"
    if full in _HARMLESS:
        return Global(full)
    if module == "torch._utils" and (name in _REBUILDS or name in _ODD):
        return Global(full)
    # Storages (torch.FloatStorage, torch.cuda.FloatStorage); dtypes, layouts and schemes, which are plain values.
    if re.fullmatch(r"torch(\.cuda|\.storage)?", module) and re.fullmatch(r"\w+Storage", name):
        return Global(full)
    if module == "torch" and re.fullmatch(r"(b?float|u?int|complex|q?u?int|per_|sparse_|strided|bool)\w*", name):
        return Global(full)
    raise CodeInPickle([full])


def reduce_call(function: Any, arguments: Any) -> Any:
    """What calling `function` would stand for; nothing is called. Raises TypeError and more."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise TypeError("a call of something that is no name")
    name = function.name.removeprefix("torch._utils.")
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return _rebuild(arguments, typed=name.endswith("v3"))
    if name in _REBUILDS or name == "torch.nn.parameter.Parameter":
        return arguments[0] if arguments and isinstance(arguments[0], Strided | Odd) else Odd("unknown")
    if name in _ODD:
        return Odd(_ODD[name])
    if name == "torch._tensor._rebuild_from_type_v2":
        inner = arguments[0]
        if not isinstance(inner, Global) or not inner.name.startswith("torch._utils."):
            raise TypeError("a tensor made of something that is none")
        return reduce_call(inner, arguments[2])
    if name == "torch.Size":
        return arguments[0] if arguments else ()
    if name in _DICTS:
        # Python 2 gives an OrderedDict as a list of pairs.
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return Stateful({plain_key(key): value for key, value in pairs})
    return Inert()


def _rebuild(arguments: tuple[Any, ...], *, typed: bool) -> Strided:
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    if (
        len(shape) != len(stride)
        or len(shape) > _LIMIT_DIMENSIONS
        or not all(map(_is_size, (offset, *shape, *stride)))
    ):
        raise ValueError("a tensor whose sizes are no sizes")
    dtype = storage.dtype
    if typed:
        dtype = arguments[6].name.removeprefix("torch.")
        if dtype not in DTYPES and not dtype.startswith(("complex", "q")):
            raise ValueError(f"a tensor of type {dtype[:40]}")
    return Strided(storage, dtype, offset, tuple(shape), tuple(stride))


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**62


def find_storage(reference: Any) -> Storage:
    """The storage that a persistent id stands for; raises CodeInPickle for a module, ValueError and more."""
    if isinstance(reference, tuple) and reference and reference[0] == "module":
        named = reference[1].name if len(reference) > 1 and isinstance(reference[1], Global) else "of its own class"
        raise CodeInPickle([f"module {named}"])
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise ValueError("a reference to something that is no storage")
    kind, key, count = reference[1], reference[2], reference[4]
    if not isinstance(kind, Global) or not isinstance(key, str | int) or type(count) is not int:
        raise TypeError("a storage without a type, a key or a size")
    dtype = STORAGES[kind.name.rpartition(".")[2]]
    view = reference[5] if len(reference) == 6 else None
    start, size = (view[1], view[2]) if view is not None else (0, count)
    if not all(map(_is_size, (start, size, count))) or start + size > count:
        raise ValueError("a storage whose sizes are no sizes")
    return Storage(dtype, str(key), start + size, start)
