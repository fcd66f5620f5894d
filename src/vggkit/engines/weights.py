"""Where an engine takes its weights from: a network in memory, or a Classifier's file without torch."""

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadCheckpoint
from vggkit.networks.card import Card, read_card
from vggkit.networks.configurations import Configuration
from vggkit.networks.locating import locate_model

if TYPE_CHECKING:
    from vggkit.networks.vgg import VGG

Values = NDArray[np.float32]
READERS: Final = 2
"""Threads that read a file; more were not faster."""
_PART_BYTES: Final = 32 * 2**20
_DTYPES: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class NetworkWeights:
    """The weights of a network in memory, as they are when they are read."""

    def __init__(self, network: "VGG") -> None:
        self._network = network

    @property
    def configuration(self) -> Configuration:
        """What the network is."""
        return self._network.configuration

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """The values of these keys, not copied where they are float32 on the CPU."""
        state = self._network.state_dict()
        return {key: state[key].detach().cpu().float().contiguous().numpy() for key in keys}

    def load_network(self) -> "VGG":
        """The network itself."""
        return self._network


class ModelFile:
    """A Classifier's file, of which no more is read than is needed, and nothing with torch.

    Opening reads the header. Weights are read, not mapped: who wrote over a mapped file would change the
    answers or end the process.

    Args:
        path: What `load` takes: a file, a run's folder, or `hf://owner/name`.

    Raises BadCheckpoint where it is not a whole file of a Classifier; from the hub BadDownload and
    MissingExtra too.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = locate_model(path)
        self._identity = _identify(self.path)
        self.card: Card = read_card(self.path)
        self._start, self._entries = self._read_header()
        expected = self.configuration.state_shapes()
        found = {key: tuple(entry["shape"]) for key, entry in self._entries.items()}
        if found != expected:
            wrong = sorted(key for key in expected.keys() | found if expected.get(key) != found.get(key))
            raise BadCheckpoint(
                f"{self.path}: its weights do not fit its own configuration ({', '.join(wrong[:4])} …)"
            )

    @property
    def configuration(self) -> Configuration:
        """What the network is."""
        return self.card.configuration

    def read(self, keys: Sequence[str]) -> dict[str, Values]:
        """The values of these keys in float32; raises BadCheckpoint where they cannot be read or are not finite."""
        raw = {key: self._allot(key) for key in keys}
        parts = [part for key in keys for part in self._divide(key, raw[key])]
        with ThreadPoolExecutor(READERS, thread_name_prefix="weights") as pool:
            deque(pool.map(lambda part: self._fill(*part), parts), maxlen=0)
            found = dict(zip(keys, pool.map(self._widen, keys, raw.values()), strict=True))
        if _identify(self.path) != self._identity:
            raise BadCheckpoint(f"{self.path}: was changed while it was read; ask again")
        return found

    def load_network(self) -> "VGG":
        """The network in PyTorch, read as `load` does."""
        from vggkit.networks.classifier import Classifier

        return Classifier.load(self.path).network

    def _read_header(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """Where the values begin, and type, shape and place of each; `read_card` found the header whole."""
        with open(self.path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
        entries.pop("__metadata__", None)
        return 8 + size, entries

    def _allot(self, key: str) -> NDArray[Any]:
        entry = self._entries[key]
        if entry["dtype"] not in _DTYPES:
            raise BadCheckpoint(f"{self.path}: {key} is of type {entry['dtype']}; save it as F32 where it was made")
        return np.empty(entry["shape"], _DTYPES[entry["dtype"]])

    def _divide(self, key: str, raw: NDArray[Any]) -> list[tuple[int, memoryview]]:
        """Places in the file, and what is to be filled from there: one matrix has three quarters of VGG11."""
        first = self._start + self._entries[key]["data_offsets"][0]
        whole = raw.reshape(-1).data.cast("B")
        return [(first + start, whole[start : start + _PART_BYTES]) for start in range(0, len(whole), _PART_BYTES)]

    def _fill(self, place: int, target: memoryview) -> None:
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(place)
                while target:
                    got = file.readinto(target)
                    if not got:
                        raise BadCheckpoint(f"{self.path}: breaks off; copy or download it again")
                    target = target[got:]
        except OSError as problem:
            raise BadCheckpoint(f"{self.path}: cannot be read ({problem.strerror or problem})") from problem

    def _widen(self, key: str, raw: NDArray[Any]) -> Values:
        """The values in float32, all of them finite."""
        if raw.dtype == np.uint16:  # bfloat16 is the upper half of float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        wide: Values = raw.astype(np.float32, copy=False)
        # A sum is finite only where all of it is, and found much sooner; a large one may overflow by itself.
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(wide.sum()) and not np.isfinite(wide).all():
                raise BadCheckpoint(
                    f"{self.path}: {key} holds values that are not finite; take an earlier checkpoint"
                )
        return wide


def _identify(path: Path) -> tuple[int, ...]:
    """What a file has no more when it was written again; of none, what `read_card` then complains of."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


Weights = NetworkWeights | ModelFile


def find_weights(given: "Weights | VGG") -> Weights:
    """The weights of a network, or what is weights already."""
    return given if isinstance(given, NetworkWeights | ModelFile) else NetworkWeights(given)
