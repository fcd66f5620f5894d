"""The table a teacher would draw of a VGG: what each layer gives, costs and sees.

Arithmetic on a `Configuration`; nothing is built and torch is not imported.

Shape letters: C channels, H and W pixels, K classes; no N, everything is for one image.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast

from vggkit.arguments import plain_number
from vggkit.errors import BadInput
from vggkit.models.configuration import Configuration, demand_configuration

LayerKind = Literal["input", "conv", "bn", "lrn", "pool", "adaptive pool", "statistics", "fc", "mean"]

FLOAT32_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One row of the table. ReLU works in place and dropout is absent in inference: they have no row."""

    name: str
    """`conv3_2`, `pool3`, `fc6` as the literature says; `fc6.0` and `fc6.1` are the two factors of
    a low-rank layer; `input`, `avgpool`, `mean` and `mean+std` are what stands between trunk and logits."""
    kind: LayerKind
    """What it computes: `adaptive pool` brings the map to the head's grid, `statistics` are the pool
    head's, and `mean` averages the dense head's scores."""
    output_shape: tuple[int, ...]
    """(C, H, W), or (features,) behind the trunk; without the batch."""
    parameters: int
    """Trained values; 2·C for batch norm."""
    multiply_adds: int
    """Multiplications with an addition, in convolutions and fully connected layers only, biases not
    counted: torchvision's convention, 1 of them being 2 FLOP."""
    activation_bytes: int
    """Size of its own output in float32, for one image."""
    receptive_field_pixels: int | None
    """Side of the square of the image that one output value depends on, padding included; None:
    the whole image."""
    parameter_share: float
    """Its part of all parameters, in [0, 1]."""
    multiply_add_share: float
    """Its part of all multiply-adds, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over all rows."""

    parameters: int
    """Trained values."""
    multiply_adds: int
    """For one image."""
    activation_bytes: int
    """Every row's output in float32: what training keeps of one image, more than inference needs at once."""
    weight_bytes: int
    """The parameters in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What `summarize` gives."""

    model: str
    """Name of the table's row with this trunk (`vgg11_bn`), or `custom`."""
    description: str
    """The network in one line: its name, where it is cut, its head and classes."""
    configuration: dict[str, Any]
    """Every field of the Configuration, as its `to_dict` gives them."""
    input_pixels: tuple[int, int]
    """Height and width of the image."""
    layers: tuple[LayerSummary, ...]
    """The rows from the image to the logits."""
    totals: Totals
    """Their sums."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON: every field by its name, tuples as lists."""
        return cast(dict[str, Any], _listed(asdict(self)))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row before the totals are known; a map or a vector is `shape`."""

    name: str
    kind: LayerKind
    shape: tuple[int, ...]
    field: int | None
    parameters: int = 0
    multiply_adds: int = 0


def summarize(configuration: Configuration, *, input: tuple[int, int] = (224, 224)) -> Summary:  # noqa: A002
    """Shapes, parameters, multiply-adds, memory and receptive fields, layer by layer.

    Args:
        configuration: Any VGG; nothing is built.
        input: Height and width of the image in pixels.

    Raises BadInput where the image is smaller than the network's `minimum_side`, or not two
    whole numbers.
    """
    sides = _check(configuration, input)
    rows = list(_walk_trunk(configuration, sides))
    rows += _walk_head(configuration, rows[-1])
    parameters = sum(row.parameters for row in rows)
    multiply_adds = sum(row.multiply_adds for row in rows)
    layers = tuple(
        LayerSummary(
            name=row.name,
            kind=row.kind,
            output_shape=row.shape,
            parameters=row.parameters,
            multiply_adds=row.multiply_adds,
            activation_bytes=FLOAT32_BYTES * math.prod(row.shape),
            receptive_field_pixels=row.field,
            parameter_share=row.parameters / parameters,
            multiply_add_share=row.multiply_adds / multiply_adds,
        )
        for row in rows
    )
    return Summary(
        model=configuration.model,
        description=_describe(configuration),
        configuration=configuration.to_dict(),
        input_pixels=sides,
        layers=layers,
        totals=Totals(
            parameters=parameters,
            multiply_adds=multiply_adds,
            activation_bytes=sum(layer.activation_bytes for layer in layers),
            weight_bytes=FLOAT32_BYTES * parameters,
        ),
    )


def _check(configuration: object, sides: object) -> tuple[int, int]:
    """Height and width; raises BadInput for what is no size of an image for the network."""
    configuration = demand_configuration(configuration, "summarize")
    found = tuple(map(plain_number, sides)) if isinstance(sides, tuple | list) else ()
    if len(found) != 2 or not all(type(side) is int for side in found):
        raise BadInput(f"input must be height and width in whole pixels, such as (224, 224); got {sides!r}")
    height, width = found
    smallest = configuration.minimum_side
    if min(height, width) < smallest:
        raise BadInput(
            f"images must be at least {smallest} pixels high and wide, got {height}×{width}: each pool halves "
            "the map; enlarge the images, or cut the trunk earlier with until="
        )
    return height, width


def _walk_trunk(configuration: Configuration, sides: tuple[int, int]) -> Iterator[_Row]:
    """The image and the layers of `features`."""
    height, width = sides
    # `step`: how many pixels of the image lie between two neighbours on the map.
    field, step = 1, 1
    yield _Row("input", "input", (configuration.in_channels, height, width), field)
    for layer in configuration.trunk:
        if layer.kind == "relu":
            continue
        field += (layer.kernel - 1) * step
        if layer.kind == "pool":
            height, width, step = height // 2, width // 2, step * 2
        shape = (layer.out_channels, height, width)
        match layer.kind:
            case "conv":
                weights = layer.in_channels * layer.out_channels * layer.kernel**2
                yield _Row(layer.name, "conv", shape, field, weights + layer.out_channels, weights * height * width)
            case "bn":
                yield _Row(layer.name, "bn", shape, field, 2 * layer.out_channels)
            case _:
                yield _Row(layer.name, layer.kind, shape, field)


def _walk_head(configuration: Configuration, last: _Row) -> Iterator[_Row]:
    """The layers behind the trunk, whose last row is `last`."""
    channels, height, width = last.shape
    grid = configuration.grid
    match configuration.head:
        case "pool":
            yield _Row(configuration.statistics, "statistics", (configuration.head_features,), None)
            yield from _walk_fully_connected(configuration, positions=(), field=None)
        case "fc":
            if (height, width) != (grid, grid):
                yield _Row("avgpool", "adaptive pool", (channels, grid, grid), None)
            yield from _walk_fully_connected(configuration, positions=(), field=None)
        case "dense":
            field: int | None = None
            if min(height, width) < grid:
                height, width = max(height, grid), max(width, grid)
                yield _Row("avgpool", "adaptive pool", (channels, height, width), None)
            else:
                step = 1 << sum(layer.kind == "pool" for layer in configuration.trunk)
                field = cast(int, last.field) + (grid - 1) * step
            positions = (height - grid + 1, width - grid + 1)
            yield from _walk_fully_connected(configuration, positions=positions, field=field)
            yield _Row("mean", "mean", (configuration.num_classes,), None)


def _walk_fully_connected(
    configuration: Configuration, *, positions: tuple[int, ...], field: int | None
) -> Iterator[_Row]:
    """The layers of `classifier` at each of rows × columns `positions`; () where there is one and no map."""
    times = math.prod(positions)
    for fc in configuration.fully_connected:
        if fc.rank is None:
            factors = [(fc.name, fc.in_features, fc.out_features, fc.out_features)]
        else:
            factors = [
                (f"{fc.name}.0", fc.in_features, fc.rank, 0),
                (f"{fc.name}.1", fc.rank, fc.out_features, fc.out_features),
            ]
        for name, reads, gives, biases in factors:
            weights = reads * gives
            yield _Row(name, "fc", (gives, *positions), field, weights + biases, weights * times)


def _describe(configuration: Configuration) -> str:
    c = configuration
    cut = f" until {c.until}" if c.until else ""
    if c.head != "pool" and 0 < len(c.hidden) < 2:
        cut = f" until fc{5 + len(c.hidden)}"
    head = {"fc": "", "dense": ", dense head", "pool": f", pool head ({c.statistics})"}[c.head]
    ranks = ", low-rank" if c.ranks else ""
    return f"{c.model}{cut}{head}{ranks}, {c.num_classes:,} {'class' if c.num_classes == 1 else 'classes'}"


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
