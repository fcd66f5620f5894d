"""The weights that an engine is built from: of a network in memory, or of a model file, without torch."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.outputs import Ranges
from vggkit.errors import BadCheckpoint
from vggkit.models.configuration import Configuration
from vggkit.task import Activation
from vggkit.weights.card import Card, demand_classifier
from vggkit.weights.classifier_file import read_card
from vggkit.weights.locate import locate_model
from vggkit.weights.storage import CodedEntry, read_coded, restore

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG
    from vggkit.weights.model import Model

Values = NDArray[np.float32]
READERS: Final = 2
"""Threads that read through a file."""
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def open_for_engine(model: "Model | ModelFile | str | Path", verb: str) -> "Model | ModelFile":
    """The model that an engine reads weights from, without importing torch.

    A model in memory is returned as it is; a file, a run's folder, a model's name or `hf://owner/name` gives a
    ModelFile.

    Args:
        model: The model or its location.
        verb: The operation that needs the model, for error messages.

    Raises BadInput for any other type, and the errors of ModelFile.
    """
    if isinstance(model, str | os.PathLike):
        return ModelFile(model)
    demand_classifier(model, verb)
    return model


class NetworkWeights:
    """The weights of a network in memory, as they are when they are read.

    Args:
        network: The VGG.
        activation: How logits become probabilities.
        activation_ranges: Those that int8 needs; see `measure_ranges`.
        pixels: Sides of its images in pixels, where they are known.
    """

    def __init__(
        self,
        network: "VGG",
        *,
        activation: Activation = Activation(),  # noqa: B008 (frozen)
        activation_ranges: Ranges = MappingProxyType({}),
        pixels: int | None = None,
    ) -> None:
        self._network = network
        self.activation = activation
        self.activation_ranges = activation_ranges
        self.pixels = pixels

    @property
    def configuration(self) -> Configuration:
        """The configuration of the network."""
        return self._network.configuration

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """The values of these keys, not copied where they are float32 on the CPU."""
        state = self._network.state_dict()
        return {key: state[key].detach().cpu().float().contiguous().numpy() for key in keys}

    def load_network(self) -> "VGG":
        """The network itself."""
        return self._network


class ModelFile:
    """A Classifier's file, from which only the needed parts are read, without torch.

    Opening reads the header. The weights of a file are mapped into memory, and an engine copies what it needs
    when it computes first: until then the file must not be written over in place. vggkit never does; it
    writes a new file and renames it.

    Args:
        path: A file, a run's folder, or `hf://owner/name`.

    Raises BadCheckpoint where it is not a whole file of a Classifier; from the hub BadDownload and
    MissingExtra too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = locate_model(path)
        self._identity = _identify(self.path)
        self.card: Card = read_card(self.path)
        self._start, self._entries, self._coded = self._read_header()
        self._checked: set[str] = set()
        expected = self.configuration.state_shapes()
        stored = {key: tuple(entry["shape"]) for key, entry in self._entries.items()}
        halves = {f"{key}.{ending}" for key in self._coded for ending in ("codes", "scale")}
        found = {key: shape for key, shape in stored.items() if key not in halves}
        found |= {key: entry.shape for key, entry in self._coded.items() if f"{key}.codes" in stored}
        if found != expected:
            wrong = sorted(key for key in expected.keys() | found if expected.get(key) != found.get(key))
            raise BadCheckpoint(
                f"{self.path}: its weights do not fit its own configuration ({', '.join(wrong[:4])} …)"
            )

    @property
    def configuration(self) -> Configuration:
        """The configuration of the network."""
        return self.card.configuration

    @property
    def activation(self) -> Activation:
        """How logits become probabilities."""
        return self.card.activation

    @property
    def activation_ranges(self) -> Ranges:
        """The activation ranges that int8 needs; empty where they were not measured."""
        return self.card.activation_ranges

    @property
    def pixels(self) -> int:
        """Sides of its images in pixels."""
        return self.card.preprocessing.crop_pixels

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """The values of these keys in float32, where they are that in the file itself.

        Raises BadCheckpoint where the file was changed since it was opened, or values are not finite.
        """
        if _identify(self.path) != self._identity:
            raise BadCheckpoint(f"{self.path}: was changed since it was opened; open it again")
        try:
            mapped = np.memmap(self.path, np.uint8, mode="c")  # OpenVINO takes only what could be written to
        except (OSError, ValueError) as problem:
            raise BadCheckpoint(f"{self.path}: cannot be read ({problem})") from problem
        found = {key: self._find_values(key, mapped) for key in keys}
        new = [key for key in keys if key not in self._checked]
        with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
            for key, finite in zip(new, pool.map(_are_finite, [found[key] for key in new]), strict=True):
                if not finite:
                    raise BadCheckpoint(
                        f"{self.path}: {key} holds values that are not finite; take an earlier checkpoint"
                    )
        self._checked.update(new)
        return found

    def load_network(self) -> "VGG":
        """The network in PyTorch, read as `load` does."""
        from vggkit.weights.model import Model

        return Model.load(self.path).network

    def _read_header(self) -> tuple[int, dict[str, dict[str, Any]], dict[str, CodedEntry]]:
        """The offset of the values, the type, shape and place of each, and the coded tensors."""
        with open(self.path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
        metadata = entries.pop("__metadata__", None) or {}
        try:
            return 8 + size, entries, read_coded(metadata)
        except ValueError as problem:
            raise BadCheckpoint(f"{self.path}: {problem}; download or copy it again") from problem

    def _find_values(self, key: str, mapped: NDArray[np.uint8]) -> Values:
        if key in self._coded:
            return self._restore(key, mapped)
        entry = self._entries[key]
        if entry["dtype"] not in _DTYPES:
            raise BadCheckpoint(f"{self.path}: {key} is of type {entry['dtype']}; save it as F32 where it was made")
        first, last = (self._start + place for place in entry["data_offsets"])
        raw = np.asarray(mapped[first:last]).view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return np.require(raw, np.float32, ["ALIGNED"])

    def _restore(self, key: str, mapped: NDArray[np.uint8]) -> Values:
        """The values of a tensor that is stored as codes and scales."""

        def read(name: str) -> NDArray[Any]:
            if name not in self._entries:
                raise ValueError(f"{name} is not there")
            entry = self._entries[name]
            first, last = (self._start + place for place in entry["data_offsets"])
            kind = {"U8": "<u1", "F32": "<f4"}.get(entry["dtype"], "<u1")
            return np.array(mapped[first:last]).view(kind).reshape(entry["shape"])

        try:
            return restore(key, self._coded[key], read)
        except ValueError as problem:
            raise BadCheckpoint(f"{self.path}: {problem}; download or copy it again") from problem


def _are_finite(values: Values) -> bool:
    # A sum is finite only where all of it is, and computed much faster; a large sum may also overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def _identify(path: Path) -> tuple[int, ...]:
    """Properties that change when a file is rewritten; empty where there is none, which `read_card` reports."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


Weights = NetworkWeights | ModelFile


def find_weights(given: "Weights | VGG | Model") -> Weights:
    """The weights of a network or of a model in memory; weights are returned unchanged."""
    if isinstance(given, NetworkWeights | ModelFile):
        return given
    network = getattr(given, "network", None)
    if network is None:
        return NetworkWeights(cast("VGG", given))
    card = cast("Model", given).card
    return NetworkWeights(
        network,
        activation=card.activation,
        activation_ranges=card.activation_ranges,
        pixels=card.preprocessing.crop_pixels,
    )
