"""Keras' files: legacy `.h5`, Keras 3's `.weights.h5`, and `.keras` archives with one of these inside.

Keys are `<layer>/kernel` and `<layer>/bias`. The layers' names are those of the model in legacy files
and in archives; `.weights.h5` counts instead (`conv2d`, `conv2d_1` ... by class, in the model's order).
"""

import json
import mmap
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import MissingExtra
from vggkit.models.statements import PREFIX
from vggkit.weights.formats.weight_file import (
    DEFLATE_RATIO,
    DTYPES,
    SLACK_BYTES,
    Archive,
    Contents,
    TensorEntry,
    reading,
    refuse,
    shown,
    to_native,
)

ARCHIVED_WEIGHTS: Final = "model.weights.h5"
"""The member of a `.keras` archive that holds its weights."""
_JSON_BYTES: Final = 4 * 2**20
_UNPACKED_BYTES: Final = 4 * 2**30
_LIMIT_PARTS: Final = 64
_TEXT_BYTES: Final = 2**16
_HEAP: Final = re.compile(rb"GCOL\x01\0\0\0(.{8})", re.DOTALL)
"""The signature of a heap of texts in an HDF5 file, with its length."""
_HEAP_HEADER: Final = 16
"""Bytes before each object of a heap: its number, its references, its length."""
_NORMALIZATION: Final = ("gamma", "beta", "moving_mean", "moving_variance")
_LEAVES: Final = {"W": "kernel", "b": "bias", "param_0": "kernel", "param_1": "bias"}
"""Their names in Keras 1 and 0."""
_ORDER: Final = ("kernel", "bias", *_NORMALIZATION)
_ROOMS: Final = ("layers", "_layer_checkpoint_dependencies", "vars")
"""Groups of Keras 3 that name no layer."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset whose values lie in the file itself."""

    path: tuple[str, ...]
    """The groups above it and its own name."""
    entry: TensorEntry
    opened: Any

    def read(self) -> NDArray[Any]:
        """Its values."""
        value = np.empty(self.opened.shape, self.opened.dtype)
        if value.size:
            self.opened.read_direct(value)
        return to_native(value) if value.dtype.kind != "V" else value.view(np.uint16)


Named = tuple[tuple[str, ...], str, Dataset]
"""A layer by the models around it and its own name, what the tensor is in it, and the tensor."""


def open_hdf5(path: Path, handle: IO[bytes], stack: ExitStack) -> Contents:
    """The contents of a `.h5` or `.weights.h5` file; raises BadCheckpoint and MissingExtra."""
    return _open(path, handle, stack)


def open_keras_archive(path: Path, archive: Archive, stack: ExitStack) -> Contents:
    """The contents of a `.keras` archive, in the order and under the names of its configuration.

    Its weights are copied to a temporary file, which goes with the WeightFile: HDF5 cannot be read inside a zip.
    """
    size = archive.members[ARCHIVED_WEIGHTS].file_size
    if size > _UNPACKED_BYTES:
        raise refuse(path, f"packed weights of {size} bytes", "no VGG's are that large")
    source = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115, closed with the WeightFile
    with reading(path, "Keras archive"):
        config, about = (_read_json(archive, name) for name in ("config.json", "metadata.json"))
        names = _name_layers(config, ())
        with archive.open(ARCHIVED_WEIGHTS) as packed:
            shutil.copyfileobj(packed, source, 2**20)
    contents = _open(path, source, stack, names)
    stated = {"class_name": config.get("class_name"), "keras_version": about.get("keras_version")}
    metadata = {key: value[:200] for key, value in stated.items() if isinstance(value, str)}
    return Contents(
        "keras-archive",
        contents.entries,
        contents.read,
        contents.metadata | metadata,
        packed=contents.packed or archive.packed,
        dotted=False,
    )


def _open(
    path: Path, stream: IO[bytes], stack: ExitStack, names: dict[tuple[str, ...], str] | None = None
) -> Contents:
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as problem:
        raise MissingExtra.of("h5py", "reading Keras files", "weights") from problem
    with reading(path, "HDF5 file"):
        file = stack.enter_context(h5py.File(stream, "r"))
        datasets = list(_walk(path, file, (), size_bytes=stream.seek(0, 2), seen=set()))
        base = next((base for base in ((), ("model_weights",)) if _is_legacy(file, base)), None)
        metadata = {name: text for name, (text, *_) in _read_texts(file).items() if name.startswith(PREFIX)}
        if base is not None:
            _check_heaps(path, stream, datasets)
            container, found = "keras-h5", _list_legacy(_find(file, base), datasets, base)
        else:
            container, found = "keras-3", _list_numbered(datasets, names or {})
    if not found:
        raise refuse(path, "an HDF5 file without Keras' layers", "save it with Keras' model.save_weights")
    keyed = _key(found)
    entries = {key: dataset.entry for key, dataset in keyed.items()}
    packed = any(dataset.opened.chunks is not None for dataset in datasets)
    return Contents(container, entries, lambda key: keyed[key].read(), metadata, packed=packed, dotted=False)


def _walk(path: Path, group: Any, above: tuple[str, ...], *, size_bytes: int, seen: set[int]) -> Iterator[Dataset]:
    """Every dataset below a group; raises BadCheckpoint for values and links that lead out of the file.

    A group is visited once: links back to one would make the walk endless.
    """
    from h5py import Dataset as Values
    from h5py import Group, HardLink, h5d, h5o

    advice = "save it again with h5py or Keras, all in one file"
    place = h5o.get_info(group.id).addr
    if place in seen:
        raise refuse(path, f"{shown('/'.join(above))} as a group that has another path too", advice)
    seen.add(place)
    for name in group:
        if not isinstance(group.get(name, getlink=True), HardLink):
            raise refuse(path, f"{shown(name)} as a link to somewhere else, which is not followed", advice)
        found = group[name]
        if isinstance(found, Group):
            yield from _walk(path, found, (*above, name), size_bytes=size_bytes, seen=seen)
        elif isinstance(found, Values) and found.shape is not None:
            layout = found.id.get_create_plist()
            if layout.get_layout() == h5d.VIRTUAL or layout.get_external_count():
                found = f"{shown(name)} as a dataset whose values lie in other files, which are not opened"
                raise refuse(path, found, advice)
            # Keras keeps bfloat16 as two bytes of no type.
            dtype = "bfloat16" if found.dtype == np.dtype("V2") else found.dtype.newbyteorder("=").name
            if dtype not in DTYPES:
                raise refuse(path, f"{shown(name)} as a dataset of type {str(found.dtype)[:60]}", advice)
            entry = TensorEntry(tuple(int(size) for size in found.shape), dtype)
            # HDF5 reads zeros where values were never written, as when a program was killed.
            held = found.id.get_storage_size()
            most = held if found.chunks is None else held * DEFLATE_RATIO + SLACK_BYTES
            if entry.size_bytes > most or (entry.size_bytes and not held) or held > size_bytes:
                claim = f"a dataset that claims {entry.size_bytes} bytes where the file holds {held}"
                raise refuse(path, f"{shown(name)} as {claim}", "copy it again, or save it again where it was made")
            yield Dataset((*above, name), entry, found)


def _find(file: Any, group: tuple[str, ...]) -> Any:
    return file["/".join(group)] if group else file


def _check_heaps(path: Path, stream: IO[bytes], datasets: Sequence[Dataset]) -> None:
    """Raise BadCheckpoint for a damaged heap of texts, in which the HDF5 library would loop for ever.

    Texts of variable length, such as the layers' names, lie in heaps between the datasets. A heap is a row of
    objects, each with its own length, and one of length 0 is followed by itself (HDF5 File Format 3.0, III.E).
    """
    spans = sorted((each.opened.id.get_offset() or 0, each.opened.id.get_storage_size()) for each in datasets)
    start = 0
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        for offset, size in [*((offset, size) for offset, size in spans if offset), (len(file), 0)]:
            for heap in _HEAP.finditer(file, start, offset):
                place, end = heap.end(), min(len(file), heap.start() + int.from_bytes(heap[1], "little"))
                while place + _HEAP_HEADER <= end:
                    length = int.from_bytes(file[place + 8 : place + _HEAP_HEADER], "little")
                    # A free object has number 0, and its header is part of its length.
                    is_free = file[place : place + 2] == b"\0\0"
                    step = length if is_free else _HEAP_HEADER + length + -length % 8
                    if step < _HEAP_HEADER or place + step > end:
                        found = f"broken or truncated HDF5 file (a text of {length} bytes at {place})"
                        raise refuse(path, found, "download or copy it again")
                    place += step
            start = max(start, offset + size)


def _read_texts(group: Any, *, heaped: str | None = None) -> dict[str, list[str]]:
    """The texts, or lists of them, among a group's attributes; of variable length those whose name begins so."""
    from h5py import check_string_dtype

    found = {}
    for name in group.attrs:
        text_type = check_string_dtype(group.attrs.get_id(name).dtype)
        if text_type is None:
            continue
        if text_type.length is not None or (heaped and name.startswith(heaped)):
            values = np.asarray(group.attrs[name]).reshape(-1).tolist()
            texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in values]
            found[name] = [text[:_TEXT_BYTES] for text in texts]
    return {name: texts for name, texts in found.items() if texts}


def _key(found: Sequence[Named]) -> dict[str, Dataset]:
    """`<layer>/<leaf>` where that is one layer's alone, with the models around it where it is not."""
    owners: dict[str, set[tuple[str, ...]]] = {}
    for layer, _, _ in found:
        owners.setdefault(layer[-1], set()).add(layer)
    keyed: dict[str, Dataset] = {}
    for layer, leaf, dataset in found:
        name = layer[-1] if len(owners[layer[-1]]) == 1 else "/".join(layer)
        key = f"{name}/{leaf}"
        keyed["/".join(dataset.path) if key in keyed else key] = dataset
    return keyed


def _is_legacy(file: Any, base: tuple[str, ...]) -> bool:
    there = not base or base[0] in file
    return there and any(name in _find(file, base).attrs for name in ("layer_names", "layer_names0"))


def _list_legacy(group: Any, datasets: Sequence[Dataset], base: tuple[str, ...]) -> list[Named]:
    """The tensors of a legacy file in the order of its layers."""
    texts = _read_texts(group, heaped="layer_names")
    # Keras cuts a long list into numbered attributes.
    parts = [f"layer_names{number}" for number in range(_LIMIT_PARTS)]
    names = [name for part in ("layer_names", *parts) for name in texts.get(part, ())]
    if not names:
        raise ValueError("its layer_names are no list of texts")
    order = {tuple(name.split("/")): number for number, name in enumerate(names)}
    layers: dict[tuple[str, ...], list[Dataset]] = {}
    for dataset in datasets:
        path = dataset.path[len(base) :]
        if dataset.path[: len(base)] == base and len(path) > 1:
            # A layer's name may itself hold slashes.
            known = [path[:end] for end in range(1, len(path)) if path[:end] in order]
            layers.setdefault(known[-1] if known else path[:1], []).append(dataset)
    found: list[Named] = []
    ranked = sorted(layers, key=lambda layer: (order.get(layer, len(order)), _by_number(layer)))
    for layer in ranked:
        skip = len(base) + len(layer)
        insides = {dataset.path[skip:-1] for dataset in layers[layer]}
        named: list[Named] = []
        for dataset in layers[layer]:
            inside = dataset.path[skip:-1]
            # A model within the model keeps the weights of all its layers in one group.
            owner = (*layer, *inside) if len(insides) > 1 and inside else ("/".join(layer),)
            named.append((owner, _clean(dataset.path[-1], owner[-1]), dataset))
        found += sorted(named, key=lambda one: (_by_number(one[0]), _rank_leaf(one[1])))
    return found


def _clean(leaf: str, layer: str) -> str:
    """`block1_conv1_W_1:0`, `kernel:0` and `W` are all the same: a layer's kernel."""
    leaf = re.sub(r":\d+$", "", leaf).removeprefix(f"{layer}_")
    short = re.sub(r"_\d+$", "", leaf)
    return _LEAVES.get(leaf) or _LEAVES.get(short) or (short if short in _ORDER else leaf)


def _list_numbered(datasets: Sequence[Dataset], names: dict[tuple[str, ...], str]) -> list[Named]:
    """The tensors of a Keras 3 file: in the order of `names`, else by number."""
    layers: dict[tuple[str, ...], dict[str, Dataset]] = {}
    for dataset in datasets:
        if _is_variable(dataset.path):
            stored = tuple(part for part in dataset.path[:-1] if part not in _ROOMS)
            if stored and stored[-1] != "seed_generator":
                layers.setdefault(stored, {})[dataset.path[-1]] = dataset
    order = {stored: number for number, stored in enumerate(names)}
    found: list[Named] = []
    for stored in sorted(layers, key=lambda layer: (order.get(layer, len(order)), _by_number(layer))):
        shown_as = tuple(names.get(stored[: end + 1], part) for end, part in enumerate(stored))
        tensors = layers[stored]
        leaves = _name_variables(stored[-1], tensors)
        found += [
            (shown_as, leaves.get(number, number), tensors[number]) for number in sorted(tensors, key=_by_digits)
        ]
    return found


def _is_variable(path: tuple[str, ...]) -> bool:
    """Whether it is a layer's, and no optimizer's."""
    return len(path) > 2 and path[-2] == "vars" and path[0] != "optimizer"


def _name_variables(layer: str, tensors: dict[str, Dataset]) -> dict[str, str]:
    """The meaning of the numbers of a layer's variables, where that is known."""
    if layer.startswith("batch_normalization"):
        return dict(zip("0123", _NORMALIZATION, strict=True)) if len(tensors) == 4 else {}
    first = tensors.get("0")
    return {"0": "kernel", "1": "bias"} if first is not None and len(first.entry.shape) > 1 else {}


def _read_json(archive: Archive, name: str) -> dict[str, Any]:
    found = json.loads(archive.read(name, _JSON_BYTES)) if name in archive.members else {}
    return found if isinstance(found, dict) else {}


def _name_layers(model: dict[str, Any], above: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Each layer's counted name as the weights' file has it, and what the model calls it; in the model's order."""
    config = model.get("config")
    layers = config.get("layers") if isinstance(config, dict) else None
    names: dict[tuple[str, ...], str] = {}
    used: Counter[str] = Counter()
    for layer in layers if isinstance(layers, list) else ():
        if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
            continue
        base = _snake_case(layer["class_name"][:100])
        stored = (*above, f"{base}_{used[base]}" if used[base] else base)
        used[base] += 1
        inner = layer.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
        names[stored] = name[:200] if isinstance(name, str) and name else stored[-1]
        names |= _name_layers(layer, stored)
    return names


def _snake_case(name: str) -> str:
    """As Keras does: Conv2D is conv2d, BatchNormalization is batch_normalization."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _by_digits(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if text.isdecimal() and len(text) < 10 else (1, 0, text)


def _by_number(path: tuple[str, ...]) -> list[tuple[int, list[tuple[int, int, str]]]]:
    """Sorts conv2d_9 before conv2d_10, and dense layers behind all others."""
    return [
        (part.startswith("dense"), [_by_digits(piece) for piece in re.split(r"(\d+)", part) if piece])
        for part in path
    ]


def _rank_leaf(leaf: str) -> tuple[int, str]:
    return _ORDER.index(leaf) if leaf in _ORDER else len(_ORDER), leaf
