"""A file's tensors under the canonical keys, for any dialect; each is read when it is accessed."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vggkit.errors import BadCheckpoint
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG
from vggkit.weights.dialects import Place, Source, from_layout, list_zero_biases
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identify import IdentifiedFile


class CanonicalWeights(Mapping[str, Tensor]):
    """The tensors of an open file as a mapping by the canonical keys of a network; nothing is held.

    Keys of the file that are not this network's keep their own names.

    Args:
        file: The open file.
        identified: The identification of the file.
        configuration: The network that is expected; None: the one that was found.
    """

    def __init__(
        self, file: WeightFile, identified: IdentifiedFile, configuration: Configuration | None = None
    ) -> None:
        self._file = file
        self.sources = dict(identified.sources)
        """The source of each canonical tensor, for any shape."""
        if configuration is not None:
            positions = identified.positions_for(configuration)
            self.sources = dict(positions.locate(configuration)) if positions else {}
        wanted = configuration or identified.identification.configuration
        zeros = list_zero_biases(wanted, self.sources) if wanted else ()
        self.zeros = {key: self.sources[f"{key.removesuffix('bias')}weight"] for key in zeros}
        """The biases that the file's convolutions do not have, each with the weight beside it."""
        used = {key for source in self.sources.values() for key in source.keys}
        self._others = tuple(key for key in file.entries if key not in used and key not in self.sources)

    def __getitem__(self, key: str) -> Tensor:
        if key in self.sources:
            source = self.sources[key]
            return self._multiply(source) if source.product else self._read(source.place)
        if key in self.zeros:
            dtype: torch.dtype = getattr(torch, self._file.entries[self.zeros[key].place.key].dtype)
            return torch.zeros(self.zeros[key].shape[0], dtype=dtype)
        if key in self._others:
            return self._file.read(key)
        raise KeyError(key)

    def find_shape(self, key: str) -> tuple[int, ...] | None:
        """The shape under that key without reading the values; None where there is none."""
        if key in self.sources:
            return self.sources[key].shape
        if key in self.zeros:
            return self.zeros[key].shape[:1]
        return self._file.entries[key].shape if key in self._others else None

    def _read(self, place: Place) -> Tensor:
        return from_layout(self._file.read(place.key), place)

    def _multiply(self, source: Source) -> Tensor:
        """The matrix, or the bias, of several layers with nothing between them, as of one layer."""
        dtype: torch.dtype = getattr(torch, self._file.entries[source.place.key].dtype)
        (weight, bias), *further = source.product
        if not source.is_bias:
            matrix = self._read(weight).double()
            for place, _ in further:
                matrix = self._read(place).double() @ matrix
            return matrix.to(dtype)
        carried = self._read(bias).double() if bias is not None else None
        for weight, bias in further:
            if carried is not None:
                carried = self._read(weight).double() @ carried
            if bias is not None:
                own = self._read(bias).double()
                carried = own if carried is None else carried + own
        assert carried is not None, source.keys
        return carried.to(dtype)

    def __contains__(self, key: object) -> bool:
        return key in self.sources or key in self.zeros or key in self._others

    def __iter__(self) -> Iterator[str]:
        yield from self.sources
        yield from self.zeros
        yield from self._others

    def __len__(self) -> int:
        return len(self.sources) + len(self.zeros) + len(self._others)


def build_network(file: WeightFile, identified: IdentifiedFile) -> VGG:
    """The network that a file was found to hold, float32, in evaluation mode; a missing head has no values.

    Raises BadCheckpoint where the trunk is not whole, or only some of the head's tensors are there.
    """
    found = identified.identification
    configuration = found.configuration
    if configuration is None:
        raise BadCheckpoint(f"{file.path}: is {found.verdict}")
    weights = CanonicalWeights(file, identified)
    sources = (*identified.sources, *weights.zeros)
    lacking = [
        key
        for key in configuration.state_shapes()
        if key not in sources
        and not key.endswith("num_batches_tracked")
        and (key.startswith("features.") or found.head is not None)
    ]
    if lacking:
        shown = ", ".join(lacking[:4]) + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else "")
        raise BadCheckpoint(f"{file.path}: {found.verdict}; its network cannot be built without {shown}")
    with torch.device("meta"):
        network = VGG(configuration)
    for key in sources:
        value = weights[key]
        value = value.contiguous().to(torch.float32 if value.is_floating_point() else value.dtype)
        network.load_state_dict({key: value}, strict=False, assign=True)
    return network.eval().requires_grad_(False)
