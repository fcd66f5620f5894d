"""Dialects of a checkpoint: the keys and tensor layouts under which different libraries store the same network.

The canonical keys are our own state dict's, which are torchvision's; every map starts from them.
No torch here but the tensors that `to_layout` and `from_layout` are given.

Shape letters: O and I channels (or numbers) out and in, H and W pixels of a window, C channels of
the map that the head reads, G its side.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import Configuration
from vggkit.models.layer_records import FullyConnected, Layer

if TYPE_CHECKING:
    from torch import Tensor

Dialect = Literal["torchvision", "timm", "keras", "caffe", "blocks", "explicit"]
"""torchvision: `features.3.weight`, `classifier.0.weight`; the canonical keys themselves.
timm: torchvision's trunk; the head is `pre_logits.fc1`, `pre_logits.fc2` (convolutions) and `head.fc`.
keras: `block2_conv1/kernel`, `fc1`, `fc2`, `predictions`; kernels HWIO, fc1 reads the map in HWC order.
caffe: `conv2_1/weights`, `fc6`, `fc7`, `fc8`; Caffe's own blobs, OIHW.
blocks: `features.2.conv1.weight`, the pools at odd positions; `classifier` as in torchvision.
explicit: `conv2_1.weight`, `fc1.weight`; no `features` and no `classifier`."""

Layout = Literal["same", "hwio", "io", "hwc_io", "oihw", "fc_hwio"]
"""The layout of a tensor in the file, where the canonical one is (O, I, H, W) or the matrix (O, I).
same: as it is. hwio: a kernel as (H, W, I, O). io: a matrix as (I, O). hwc_io: the head's first
matrix as (I, O), I counted in HWC order of the map, not CHW. oihw: a matrix as the convolution
(O, C, G, G), with the same numbers in the same order. fc_hwio: that convolution as (G, G, C, O)."""


class Shaped(Protocol):
    """An entry of a file: the metadata of a tensor, without its values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as it lies in the file."""


@dataclass(frozen=True, slots=True)
class Place:
    """The key and layout of one tensor in a dialect."""

    key: str
    """Its key in the file."""
    layout: Layout = "same"
    """Its layout there."""
    grid: int = 1
    """G: side of the map that a matrix reads; 1 for all but the first one of an fc head."""

    def shape_of(self, canonical: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of the tensor whose canonical shape is given."""
        match self.layout:
            case "same":
                return canonical
            case "hwio":
                out, into, height, width = canonical
                return (height, width, into, out)
            case "io" | "hwc_io":
                return canonical[::-1]
            case "oihw" | "fc_hwio":
                out, into = canonical
                channels = into // self.grid**2
                kernel = (out, channels, self.grid, self.grid)
                return kernel if self.layout == "oihw" else (self.grid, self.grid, channels, out)


@dataclass(frozen=True, slots=True)
class Source:
    """The source of one canonical tensor."""

    place: Place
    """Its key in the file and how it lies there."""
    shape: tuple[int, ...]
    """Its canonical shape, for any network."""
    product: tuple[tuple[Place, Place | None], ...] = ()
    """Kernels and biases of the matrices, in order, that one layer was made of; empty: it lies there as it is."""
    is_bias: bool = False
    """Of such a layer: whether this is its bias."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key in the file that it is made of."""
        parts = [place.key for pair in self.product for place in pair if place is not None]
        return (self.place.key, *(key for key in parts if key != self.place.key))


def map_keys(configuration: Configuration, dialect: Dialect, *, trunk_only: bool = False) -> dict[str, Place]:
    """For every canonical key of the state dict, in its order, the place of the same tensor in that dialect.

    Args:
        configuration: The network.
        dialect: The way of writing it.
        trunk_only: Leave the head away, as a file of features alone does; any head will do then.

    Raises UnknownName for another dialect, and BadConfiguration where a dialect has no keys for
    this network: pool and low-rank heads are written in torchvision, blocks and explicit only, batch
    norm in these and timm.
    """
    if dialect not in get_args(Dialect):
        raise UnknownName.of("dialect", dialect, get_args(Dialect))
    _check(configuration, dialect, trunk_only)
    modules = _name_modules(configuration, dialect)
    last = f"classifier.{configuration.fully_connected[-1].index}"
    places = {}
    for key, shape in configuration.state_shapes().items():
        root, index, rest = key.split(".", 2)
        if root == "classifier" and trunk_only:
            continue
        module = f"{root}.{index}"
        grid = configuration.grid if module == "classifier.0" and configuration.head != "pool" else 1
        layout = _lay(len(shape), dialect, grid=grid, last=module == last)
        places[key] = Place(f"{modules[module]}{_name_parameter(rest, dialect)}", layout, grid)
    return places


def locate_keys(
    entries: Mapping[str, Shaped], configuration: Configuration, dialect: Dialect
) -> dict[str, Source] | None:
    """For each canonical key of that network its source in a file that is written in that dialect, exactly.

    None where the file lacks a tensor, or has another one, or one of another shape, and where the dialect has no
    keys for the network. Files older than PyTorch 0.4.1 do not count the batches of batch norm, and need not.

    Args:
        entries: The file's tensors.
        configuration: The network.
        dialect: The way of writing it.
    """
    try:
        places = map_keys(configuration, dialect)
    except BadConfiguration:
        return None
    shapes = configuration.state_shapes()
    found = {key: Source(place, shapes[key]) for key, place in places.items() if place.key in entries}
    lacking = any(not key.endswith("num_batches_tracked") for key in places.keys() - found)
    if lacking or len(found) != len(entries):
        return None
    same = all(source.place.shape_of(source.shape) == entries[source.place.key].shape for source in found.values())
    return found if same else None


def list_zero_biases(configuration: Configuration, located: Collection[str]) -> tuple[str, ...]:
    """Canonical keys of the biases that a file leaves out as its convolutions have none (`bias=False`): zeros here.

    Convolutions in front of batch normalisation are often written so. None where any convolution has a bias, as the
    others are missing then.

    Args:
        configuration: The network.
        located: Canonical keys that the file has a tensor for.
    """
    places = [f"features.{layer.index}" for layer in configuration.trunk if layer.kind == "conv"]
    if any(f"{place}.bias" in located for place in places):
        return ()
    return tuple(f"{place}.bias" for place in places if f"{place}.weight" in located)


def rename_keys(configuration: Configuration, dialect: Dialect) -> dict[str, str]:
    """For every canonical key of the state dict, in its order, the same tensor's key in that dialect.

    In torchvision, blocks and explicit the tensors themselves are equal, so that renaming is all
    there is to do: `{renamed[key]: value for key, value in network.state_dict().items()}`. In the
    others some are transposed; `map_keys` gives the mapping.

    Raises what `map_keys` raises.
    """
    return {key: place.key for key, place in map_keys(configuration, dialect).items()}


def _check(configuration: Configuration, dialect: Dialect, trunk_only: bool) -> None:
    """Raise BadConfiguration for what the dialect has no keys for."""

    def refuse(what: str, instead: str) -> None:
        raise BadConfiguration(f"dialect {dialect!r} has no keys for {what}; {instead}")

    ours = "write torchvision, blocks or explicit"
    if dialect in ("torchvision", "blocks", "explicit"):
        return
    if configuration.batch_norm and dialect != "timm":
        refuse("batch normalisation, which its VGG does not have", "write torchvision, timm, blocks or explicit")
    if trunk_only:
        return
    if configuration.head == "pool":
        refuse("a pool head: its VGG has fully connected layers on the whole map", f"{ours}, or the trunk alone")
    if configuration.ranks is not None:
        refuse("low-rank layers, two matrices in place of one", ours)
    if dialect == "timm" and len(configuration.hidden) != 2:
        refuse(f"{len(configuration.hidden)} hidden layers, only for two (pre_logits.fc1 and fc2)", ours)


def _lay(dimensions: int, dialect: Dialect, *, grid: int, last: bool) -> Layout:
    """The layout of a tensor of so many dimensions: 4 a kernel, 2 a matrix."""
    match dialect, dimensions:
        case "keras", 4:
            return "hwio"
        case "keras", 2:
            return "hwc_io" if grid > 1 else "io"
        case "timm", 2:
            return "same" if last else "oihw"
    return "same"


def _name_parameter(rest: str, dialect: Dialect) -> str:
    match dialect, rest:
        case "keras", "weight":
            return "/kernel"
        case "keras", "bias":
            return "/bias"
        case "caffe", "weight":
            return "/weights"
        case "caffe", "bias":
            return "/biases"
    return f".{rest}"


def _name_modules(configuration: Configuration, dialect: Dialect) -> dict[str, str]:
    """Each module's canonical name (`features.3`, `classifier.0`), and its name in that dialect."""
    trunk = {f"features.{layer.index}": layer for layer in configuration.trunk if layer.kind in ("conv", "bn")}
    head = {f"classifier.{fc.index}": fc for fc in configuration.fully_connected}
    return {name: _name_trunk_layer(layer, name, dialect) for name, layer in trunk.items()} | {
        name: _name_connected(fc, j, name, dialect, last=j == len(head))
        for j, (name, fc) in enumerate(head.items(), start=1)
    }


def _name_trunk_layer(layer: Layer, canonical: str, dialect: Dialect) -> str:
    match dialect:
        case "torchvision" | "timm":
            return canonical
        case "caffe" | "explicit":
            return layer.name
    block, position = layer.name.removeprefix(layer.kind).split("_")
    if dialect == "keras":
        return f"block{block}_{layer.kind}{position}"
    # `conv3_2` is `features.4.conv2`: each block is followed by its pool, so blocks have even positions.
    return f"features.{2 * (int(block) - 1)}.{layer.kind}{position}"


def _name_connected(fc: FullyConnected, count: int, canonical: str, dialect: Dialect, *, last: bool) -> str:
    match dialect:
        case "torchvision" | "blocks":
            return canonical
        case "explicit":
            # Hand-written listings count the fully connected layers from 1.
            return f"fc{count}"
        case "caffe":
            return fc.name
        case "keras":
            return "predictions" if last else f"fc{count}"
        case "timm":
            return "head.fc" if last else f"pre_logits.fc{count}"


def to_layout(value: "Tensor", place: Place) -> "Tensor":
    """A canonical tensor, (O, I, H, W) or (O, I) or (O), as it lies at that place; any strides."""
    match place.layout:
        case "same":
            return value
        case "hwio":
            return value.permute(2, 3, 1, 0)
        case "io":
            return value.t()
        case "oihw":
            return _window(value, place)
        case "fc_hwio":
            return _window(value, place).permute(2, 3, 1, 0)
        case "hwc_io":
            return _window(value, place).permute(2, 3, 1, 0).reshape(-1, value.shape[0])


def from_layout(value: "Tensor", place: Place) -> "Tensor":
    """A tensor as it lies at that place, canonical: (O, I, H, W), (O, I) or (O); any strides."""
    match place.layout:
        case "same":
            return value
        case "hwio":
            return value.permute(3, 2, 0, 1)
        case "io":
            return value.t()
        case "oihw":
            return value.flatten(1)
        case "fc_hwio":
            return value.permute(3, 2, 0, 1).flatten(1)
        case "hwc_io":
            out, side = value.shape[1], place.grid
            return value.reshape(side, side, -1, out).permute(3, 2, 0, 1).flatten(1)


def _window(matrix: "Tensor", place: Place) -> "Tensor":
    """The matrix (O, C*G*G), CHW, as a window (O, C, G, G)."""
    return matrix.reshape(matrix.shape[0], -1, place.grid, place.grid)
