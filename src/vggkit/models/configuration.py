"""A VGG as a value: a `Configuration` describes it completely, and the paper's six are rows of a table.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv 1409.1556, table 1. No torch here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, Self, cast, get_args

from vggkit.arguments import is_number, plain_number
from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.layer_records import FullyConnected, Kind, Layer

Head = Literal["fc", "dense", "pool"]
Pooling = Literal["max", "average"]
Statistics = Literal["mean", "mean+std"]
Scheme = Literal["kaiming", "glorot", "paper", "dirac"]
"""The schemes of random weights; `initialization.initialize` explains each."""
STD_EPSILON: Final = 1e-5
"""Added to a variance: a channel that is constant over the map has no deviation to differentiate."""
BATCH_NORM_EPSILON: Final = 1e-5
"""Added to the variance of a batch norm: PyTorch's, as no file states another."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Everything about a VGG but its weights; equal configurations have equal state-dict keys and shapes.

    State-dict keys follow one rule for every head. Trunk: `features.<i>.weight|bias` (and
    `running_mean|running_var|num_batches_tracked` with batch norm), `i` counting every layer,
    as in torchvision. Head: `classifier.<3j>.weight|bias` for the j-th fully connected layer,
    ReLU and dropout holding the places between, so the paper's head is `classifier.0|3|6`, as in
    torchvision, and a `pool` head without hidden layers is `classifier.0`. The `dense` head holds
    the same matrices under the same keys as `fc`. A layer of rank r is two factors:
    `classifier.<3j>.0.weight` (r, in) and `classifier.<3j>.1.weight|bias` (out, r).

    Raises BadConfiguration for a network that cannot exist.
    """

    blocks: tuple[tuple[int, ...], ...]
    """Output channels of each convolution, block by block; a 2×2 pool ends each block."""
    kernels: tuple[tuple[int, ...], ...] | None = None
    """Kernel side of each convolution, shaped as `blocks`; None: all 3. Padding keeps the map's size."""
    batch_norm: bool = False
    """Batch normalisation between each convolution and its ReLU."""
    lrn_after: tuple[str, ...] = ()
    """ReLUs followed by local response normalisation, such as `relu1_1` (the paper's A-LRN)."""
    pooling: Pooling = "max"
    """The pooling at the end of a block: the paper's max, or average, as Gatys et al. prefer for style."""
    until: str | None = None
    """The last layer of the trunk, such as `relu3_4`; None: all of it. A cut trunk takes the pool head."""
    head: Head = "fc"
    """fc: the paper's layers on the map pooled to grid×grid. dense: the same layers from the same
    weights slid over the map as convolutions, scores averaged (paper, section 3.2). pool:
    statistics of each channel over the map."""
    grid: int = 7
    """Side of the map that the fc and dense heads read."""
    statistics: Statistics = "mean"
    """The statistics of each channel that the pool head reads: its mean, or mean and standard deviation."""
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the fully connected layers before the last one."""
    ranks: tuple[int | None, ...] | None = None
    """Rank of each fully connected layer, the last one too; None: full."""
    dropout: float = 0.5
    """Chance in [0, 1) that a number is dropped in training: after each hidden layer, and for the
    pool head before the first layer."""
    num_classes: int = 1000
    """Classes, the length of the logits."""
    in_channels: int = 3
    """Channels of the images."""

    def __post_init__(self) -> None:
        _freeze_sequences(self)
        _check(self)
        _normalize(self)

    @property
    def model(self) -> str:
        """Name of the table's row with this trunk before any cut (`vgg11_bn`), or `custom`."""
        for name, row in MODELS.items():
            same = (row.blocks, row.kernels, row.batch_norm, row.lrn_after)
            if same == (self.blocks, self.kernels, self.batch_norm, self.lrn_after):
                return name
        return "custom"

    @property
    def trunk(self) -> tuple[Layer, ...]:
        """The layers of `features` in order, up to and with `until`."""
        return tuple(self._walk_trunk())

    def _walk_trunk(self) -> Iterator[Layer]:
        for layer in _walk_blocks(self):
            yield layer
            if layer.name == self.until:
                return

    @property
    def fully_connected(self) -> tuple[FullyConnected, ...]:
        """The fully connected layers of `classifier` in order."""
        widths = (self.head_features, *self.hidden, self.num_classes)
        ranks = self.ranks or (None,) * (len(widths) - 1)
        return tuple(
            FullyConnected(f"fc{6 + j}", 3 * j, widths[j], widths[j + 1], rank) for j, rank in enumerate(ranks)
        )

    @property
    def trunk_channels(self) -> int:
        """Channels of the map that leaves the trunk."""
        return self.trunk[-1].out_channels

    @property
    def head_features(self) -> int:
        """Numbers the head's first layer reads for one image."""
        if self.head == "pool":
            return self.trunk_channels * (2 if self.statistics == "mean+std" else 1)
        return self.trunk_channels * self.grid**2

    @property
    def minimum_side(self) -> int:
        """Smallest height and width in pixels that leave a map behind the last pool: 32 when uncut."""
        return 1 << sum(layer.kind == "pool" for layer in self.trunk)

    @property
    def parameters(self) -> int:
        """Number of trained values; the running statistics of batch norm are not among them."""
        sizes = (math.prod(shape) for key, shape in self.state_shapes().items() if not _is_statistic(key))
        return sum(sizes)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key of the state dict in order with its shape, known without building the network."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in self.trunk:
            key, width = f"features.{layer.index}", (layer.out_channels,)
            if layer.kind == "conv":
                shapes[f"{key}.weight"] = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
                shapes[f"{key}.bias"] = width
            elif layer.kind == "bn":
                for name in ("weight", "bias", "running_mean", "running_var"):
                    shapes[f"{key}.{name}"] = width
                shapes[f"{key}.num_batches_tracked"] = ()
        for fc in self.fully_connected:
            key = f"classifier.{fc.index}"
            if fc.rank is None:
                shapes[f"{key}.weight"] = (fc.out_features, fc.in_features)
                shapes[f"{key}.bias"] = (fc.out_features,)
            else:
                shapes[f"{key}.0.weight"] = (fc.rank, fc.in_features)
                shapes[f"{key}.1.weight"] = (fc.out_features, fc.rank)
                shapes[f"{key}.1.bias"] = (fc.out_features,)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON or YAML: every field by its name, tuples as lists."""
        return cast(dict[str, Any], _listed(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` gave; raises BadConfiguration for anything else."""
        if not isinstance(values, Mapping):
            raise BadConfiguration(f"a configuration is a mapping of its fields, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadConfiguration(str(UnknownName.of("field of a configuration", name, known)))
        if "blocks" not in values:
            raise BadConfiguration("a configuration needs `blocks`, the widths of its convolutions")
        return cls(**values)


def find_configuration(name: str) -> Configuration:
    """The table's row of that name; raises UnknownName with the nearest one."""
    if name not in MODELS:
        raise UnknownName.of("model", name, MODELS)
    return MODELS[name]


def list_models() -> list[str]:
    """Names of the paper's networks and their batch-norm variants."""
    return list(MODELS)


def layer_names(configuration: Configuration) -> list[str]:
    """Names that `until=` takes for this network: the whole trunk's layers, then the hidden ones of an FC head."""
    names = [layer.name for layer in _walk_blocks(configuration)]
    if configuration.head != "pool":
        names += [name for fc in configuration.fully_connected[:-1] for name in (fc.name, fc.relu)]
    return names


def _walk_blocks(configuration: Configuration) -> Iterator[Layer]:
    """Every layer of the uncut trunk."""
    channels, index = configuration.in_channels, 0
    for block, widths in enumerate(configuration.blocks, start=1):
        for position, width in enumerate(widths, start=1):
            place = f"{block}_{position}"
            kernel = configuration.kernels[block - 1][position - 1] if configuration.kernels else 3
            kinds: list[Kind] = ["conv", "bn", "relu"] if configuration.batch_norm else ["conv", "relu"]
            if f"relu{place}" in configuration.lrn_after:
                kinds.append("lrn")
            for kind in kinds:
                reads = channels if kind == "conv" else width
                yield Layer(f"{kind}{place}", kind, index, reads, width, kernel if kind == "conv" else 1)
                index += 1
            channels = width
        yield Layer(f"pool{block}", "pool", index, channels, channels, 2)
        index += 1


def last_pool(configuration: Configuration) -> str:
    """The name of the last pool of the uncut trunk."""
    return f"pool{len(configuration.blocks)}"


def _freeze_sequences(configuration: Configuration) -> None:
    """Lists, as JSON and YAML give them, become tuples, and NumPy's numbers Python's."""

    def frozen(value: object) -> object:
        return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else plain_number(value)

    for field in fields(configuration):
        object.__setattr__(configuration, field.name, frozen(getattr(configuration, field.name)))


def _normalize(configuration: Configuration) -> None:
    """Give equal networks equal fields: kernels that are all 3 become None, as do ranks that are all None and an
    `until` that is the last layer; `lrn_after` is sorted.
    """
    if configuration.kernels is not None and all(side == 3 for block in configuration.kernels for side in block):
        object.__setattr__(configuration, "kernels", None)
    if configuration.ranks is not None and all(rank is None for rank in configuration.ranks):
        object.__setattr__(configuration, "ranks", None)
    if configuration.until == last_pool(configuration):
        object.__setattr__(configuration, "until", None)
    object.__setattr__(configuration, "lrn_after", tuple(sorted(set(configuration.lrn_after))))


def _check(configuration: Configuration) -> None:
    """Raise BadConfiguration, naming the field, for what cannot be built."""
    c = configuration
    _demand(_is_nested(c.blocks), "blocks", c.blocks, "one tuple of positive widths for each block")
    if c.kernels is not None:
        shaped = _is_nested(c.kernels) and [len(k) for k in c.kernels] == [len(b) for b in c.blocks]
        odd = shaped and all(side % 2 == 1 for block in c.kernels for side in block)
        _demand(odd, "kernels", c.kernels, "odd sides, one for each convolution of `blocks`")
    _demand(isinstance(c.batch_norm, bool), "batch_norm", c.batch_norm, "true or false")
    for name, choices in (("head", Head), ("pooling", Pooling), ("statistics", Statistics)):
        allowed = get_args(choices)
        _demand(getattr(c, name) in allowed, name, getattr(c, name), f"one of {', '.join(allowed)}")
    _demand(_are_positive(c.hidden), "hidden", c.hidden, "positive widths")
    if c.ranks is not None:
        fits = isinstance(c.ranks, tuple) and len(c.ranks) == len(c.hidden) + 1
        fits = fits and all(rank is None or _is_positive(rank) for rank in c.ranks)
        _demand(fits, "ranks", c.ranks, f"{len(c.hidden) + 1} ranks or None, one for each layer of the head")
    for name in ("grid", "num_classes", "in_channels"):
        _demand(_is_positive(getattr(c, name)), name, getattr(c, name), "a whole number of 1 or more")
    _demand(is_number(c.dropout) and 0 <= c.dropout < 1, "dropout", c.dropout, "a chance of 0 or more and below 1")
    _demand(isinstance(c.lrn_after, tuple), "lrn_after", c.lrn_after, "a tuple of ReLUs' names")
    names = [layer.name for layer in _walk_blocks(c)]
    relus = [name for name in names if name.startswith("relu")]
    for name in c.lrn_after:
        if name not in relus:
            raise BadConfiguration(f"lrn_after: {UnknownName.of('ReLU of this network', name, relus)}")
    if c.until is not None:
        if c.until not in names:
            problem = UnknownName.of("layer to cut after", c.until, layer_names(c))
            raise BadConfiguration(f"until must be a layer of this network; {problem}")
        whole = c.until == last_pool(c)
        _demand(whole or c.head == "pool", "head", c.head, f"'pool' where the trunk is cut (until={c.until!r})")


def _demand(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise BadConfiguration(f"{name} must be {rule}; got {value!r}")


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_positive(values: object) -> bool:
    return isinstance(values, tuple) and all(_is_positive(value) for value in values)


def _is_nested(value: object) -> bool:
    return isinstance(value, tuple) and value != () and all(block != () and _are_positive(block) for block in value)


def _is_statistic(key: str) -> bool:
    return key.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked")


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _table() -> dict[str, Configuration]:
    """The paper's table 1; `_bn` is torchvision's variant, which the paper does not have."""
    widths = (64, 128, 256, 512, 512)

    def row(*depths: int) -> Configuration:
        return Configuration(blocks=tuple((width,) * depth for width, depth in zip(widths, depths, strict=True)))

    a, b, d, e = row(1, 1, 2, 2, 2), row(2, 2, 2, 2, 2), row(2, 2, 3, 3, 3), row(2, 2, 4, 4, 4)
    return {
        "vgg11": a,
        "vgg11_lrn": replace(a, lrn_after=("relu1_1",)),
        "vgg11_bn": replace(a, batch_norm=True),
        "vgg13": b,
        "vgg13_bn": replace(b, batch_norm=True),
        "vgg16_c": replace(d, kernels=((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))),
        "vgg16": d,
        "vgg16_bn": replace(d, batch_norm=True),
        "vgg19": e,
        "vgg19_bn": replace(e, batch_norm=True),
    }


MODELS: Mapping[str, Configuration] = _table()
PAPER_LETTERS: Mapping[str, str] = {
    "vgg11": "A",
    "vgg11_lrn": "A-LRN",
    "vgg13": "B",
    "vgg16_c": "C",
    "vgg16": "D",
    "vgg19": "E",
}
