"""torch's own files, `.pth`, `.pt`, `.bin` and `.ckpt`, through `torch.load(weights_only=True)`.

torch's restricted unpickler makes tensors and plain values and calls nothing else. What training scripts commonly
save beside the weights (an `argparse.Namespace`, NumPy values, dict subclasses) is allowed by name too, and is
replaced by an empty placeholder: none of that code is imported or run.
"""

import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from vggkit.models.statements import LABELS_KEY
from vggkit.models.statements import PREFIX as STATEMENTS
from vggkit.weights.formats.weight_file import (
    DTYPES,
    IN_MEMORY,
    Archive,
    Contents,
    TensorEntry,
    reading,
    refuse,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "ema")
"""Entries under which training scripts keep the weights, the likeliest first."""
LABEL_ENTRIES: Final = ("class_to_idx", "idx_to_class", "classes", "CLASSES", "class_names", "labels")
"""Entries under which they keep the names of classes, torchvision's own name for it first."""
_LEGACY_STARTS: Final = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol) for protocol in range(2, 6))
"""The first bytes of torch's files from before 1.6."""
_READ_PROTOCOLS: Final = (2, 3)
"""Protocols of pickle that torch's restricted unpickler reads, of 3 all but bytes; `torch.save` writes 2."""
_LIMIT_WRAPPERS: Final = 3
_LIMIT_PICKLE_BYTES: Final = 64 * 2**20
"""A state dict's pickle takes some kilobytes; values lie outside it."""
_SAVE_AGAIN: Final = 'where it was made, write torch.save(model.state_dict(), "weights.pth")'
_SAVE_AS_2: Final = 'where you trust it, write torch.save(torch.load(FILE, weights_only=False), "weights.pth")'
_MODULES: Final = ("torch.nn.modules.", "torch.nn.parallel.")


class _Placeholder:
    """An object beside the weights, whose contents are dropped."""

    def __new__(cls, *arguments: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _PlaceholderMethod:
    """A method of such an object, which a pickle names by `getattr`; any other use is refused."""

    def __new__(cls, *arguments: Any) -> Any:
        if not arguments or arguments[0] is not _Placeholder:
            raise pickle.UnpicklingError("GLOBAL builtins.getattr was not used for a placeholder")
        return object.__new__(_Placeholder)


class _PlainDict:
    """A dict subclass beside the weights becomes an OrderedDict."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()  # torch fills this one, and no subclass


class _PlainList:
    """A list or a queue beside the weights becomes a plain list."""

    def __new__(cls, *arguments: Any) -> Any:
        return []


_ALLOWED: Final[tuple[tuple[type, str], ...]] = (
    *(
        (_PlainDict, name)
        for name in (
            "addict.addict.Dict",
            "collections.defaultdict",
            "easydict.EasyDict",
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "mmengine.config.config.ConfigDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "yacs.config.CfgNode",
        )
    ),
    (_PlainList, "collections.deque"),
    *(
        (_Placeholder, f"builtins.{name}")
        for name in ["bool", "bytes", "dict", "float", "frozenset", "int", "list", "range", "slice", "str", "tuple"]
    ),
    *((_Placeholder, f"pathlib.{kind}Path") for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    *(
        (_Placeholder, f"numpy.{room}.{name}")
        for room in ("core", "_core")
        for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
    ),
    *((_Placeholder, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *((_Placeholder, f"datetime.{name}") for name in ("datetime", "date", "timedelta")),
    (_Placeholder, "argparse.Namespace"),
    (_Placeholder, "types.SimpleNamespace"),
    (_Placeholder, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_PlaceholderMethod, "builtins.getattr"),
    *(
        (_Placeholder, f"omegaconf.{name}")
        for name in (
            *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata"),
            *(f"nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "String")),
        )
    ),
    (_Placeholder, "typing.Any"),
)
"""The types that training scripts commonly save beside the weights, by name, and the replacement of each."""


def open_archived(path: Path, handle: IO[bytes], archive: Archive, pickle_name: str) -> Contents:
    """The contents of torch's zip format, whose pickle is the member `pickle_name`; raises BadCheckpoint.

    Values are mapped into memory while the file is open. An archive that was compressed afterwards is read whole.
    """
    root = pickle_name.removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.members:
        raise refuse(path, "a TorchScript program, which holds code", _SAVE_AGAIN)
    if archive.members[pickle_name].file_size > _LIMIT_PICKLE_BYTES:
        raise refuse(path, f"a pickle of {archive.members[pickle_name].file_size} bytes", "no VGG's is that large")
    with reading(path, "PyTorch file"), archive.open(pickle_name) as stream:
        _check_protocol(path, stream.read(2))
    sizes = {info.file_size for name, info in archive.members.items() if name.startswith(f"{root}data/")}
    # torch cannot map compressed files, and reads a path that ends with .safetensors as another format.
    mapped = not archive.packed and path.suffix != ".safetensors"
    return _gather(path, _load(path, handle, mapped=mapped), sizes, packed=archive.packed)


def open_legacy(path: Path, handle: IO[bytes]) -> Contents:
    """The contents of torch's format from before 1.6, read whole; raises BadCheckpoint."""
    handle.seek(0)
    start = handle.read(max(map(len, _LEGACY_STARTS)))
    if not start.startswith(_LEGACY_STARTS):
        raise refuse(path, "a pickle that torch did not write", "save it as .npz or .safetensors where it was made")
    _check_protocol(path, start)
    return _gather(path, _load(path, handle, mapped=False), None, packed=False)


def open_state(state: Mapping[str, Any]) -> Contents:
    """The contents of a state dict, or a checkpoint around one, that is in memory; raises BadCheckpoint."""
    return _gather(IN_MEMORY, state if isinstance(state, dict) else dict(state), None, packed=False)


def _check_protocol(path: Path, start: bytes) -> None:
    """Raise BadCheckpoint for a pickle of a protocol that torch's restricted unpickler does not read."""
    if start[:1] == b"\x80" and start[1] in range(6) and start[1] not in _READ_PROTOCOLS:
        found = (
            f"a pickle of protocol {start[1]}, of which torch reads {' and '.join(map(str, _READ_PROTOCOLS))} alone"
        )
        raise refuse(path, found, f"nothing of it was run; {_SAVE_AS_2}")


def _load(path: Path, handle: IO[bytes], *, mapped: bool) -> Any:
    """The object that torch loads from the file; raises BadCheckpoint."""
    import torch

    handle.seek(0)
    with reading(path, "PyTorch file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles of other protocols
        try:
            with torch.serialization.safe_globals(list(_ALLOWED)):
                source = path if mapped else handle
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as problem:
            raise _explain(path, str(problem)) from None
        except AssertionError as problem:  # torch's, for a file from before 1.6 whose keys and values differ
            raise ValueError(str(problem)) from problem


def _explain(path: Path, problem: str) -> Exception:
    """The error for a pickle that torch did not load, with the names that it does not allow."""
    import torch

    names = re.findall(r"GLOBAL ([\w.]+) (?:was not|whose)", problem)
    # Files from before 1.6 are not listed, nor pickles of other protocols.
    with torch.serialization.safe_globals(list(_ALLOWED)), suppress(Exception):
        names += sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    module = next((name for name in names if name.startswith(_MODULES)), None)
    if module is not None:
        found = f"a whole pickled module ({shown(module)}), which needs its own code to load"
        return refuse(path, found, f"nothing of it was run; {_SAVE_AGAIN}")
    if names:
        listed = ", ".join(shown(name) for name in list(dict.fromkeys(names))[:3])
        found = f"a pickle that would run code from the file when loaded ({listed})"
        return refuse(path, found, f"nothing of it was run; get it as .safetensors, or {_SAVE_AGAIN}")
    reason = re.search(r"WeightsUnpickler error: (.+)", problem)
    cause = "".join(c if c.isprintable() else "?" for c in (reason[1] if reason else problem)[:100])
    found = f"a pickle that torch does not load without running code ({cause})"
    return refuse(path, found, f"nothing of it was run; {_SAVE_AS_2}")


def _gather(path: Path, content: Any, sizes: set[int] | None, *, packed: bool) -> Contents:
    """The tensors by key, without the containers that training scripts put around them.

    Args:
        path: The file.
        content: The object that torch loaded.
        sizes: Bytes of each storage in the archive; None where torch compared them with the file itself.
        packed: Whether the archive is compressed.
    """
    import torch

    inside, stripped = _unwrap(content)
    tensors = {str(key): value for key, value in inside.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise refuse(path, f"no tensors by key, but {_describe(content)}", _SAVE_AGAIN)
    entries = {}
    for key, value in tensors.items():
        kind = _name_odd(value)
        if kind:
            raise refuse(path, f"{shown(key)} as a {kind} tensor", "save it as a plain dense one where it was made")
        if sizes is not None and value.untyped_storage().nbytes() not in sizes:
            found = f"broken or truncated PyTorch file at {shown(key)} (its values are not where it says)"
            raise refuse(path, found, "download or copy it again")
        entries[key] = TensorEntry(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    return Contents(
        "pytorch",
        entries,
        # A copy: mapped values change with the file.
        lambda key: tensors[key].detach().to("cpu", copy=True, memory_format=torch.contiguous_format),
        stripped=stripped,
        packed=packed,
        modules=_list_modules(inside),
        metadata=_find_labels(content, stripped),
    )


def _name_odd(tensor: "Tensor") -> str:
    """The reason why a tensor cannot be read, if there is one."""
    import torch

    if tensor.is_quantized:
        return "quantized"
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else "sparse"
    if tensor.is_meta:
        return "valueless (meta)"
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        return "complex" if tensor.is_complex() else "quantized"
    # One number expanded to terabytes is a few bytes in the file.
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return "expanded (overlapping)" if tensor.numel() > extent else ""


def _find_labels(content: dict[Any, Any], stripped: tuple[str, ...]) -> dict[str, str]:
    """The class names that a training script saved beside the weights, in the form of our own files."""
    levels = [content]
    for name in stripped:
        levels.append(levels[-1].get(name, {}))
    # MMPretrain keeps them in meta.
    meta = content.get("meta")
    if isinstance(meta, dict):
        levels += [meta, *(found for found in [meta.get("dataset_meta")] if isinstance(found, dict))]
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
    """Every module that torch's `state_dict()` listed beside its tensors, with our own metadata of it."""
    listed = getattr(state, "_metadata", None)
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


def _unwrap(content: Any, depth: int = _LIMIT_WRAPPERS) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """The mapping that holds tensors, empty where there is none, and the wrappers that were removed."""
    import torch

    if not isinstance(content, dict):
        return {}, ()
    for name in WRAPPERS if depth else ():
        inside, stripped = _unwrap(content.get(name), depth - 1)
        if inside:
            return inside, (name, *stripped)
    return (content if any(isinstance(value, torch.Tensor) for value in content.values()) else {}), ()


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        names = ", ".join(shown(str(key)) for key in list(content)[:6])
        return f"a dict with the entries {names}" if names else "an empty dict"
    kind = type(content).__name__.strip("_").lower()
    return "one tensor without a name" if kind == "tensor" else f"a {kind}"
