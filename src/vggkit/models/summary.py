"""A table of a VGG's layers: shapes, parameters, multiply-adds, memory and receptive fields.

Arithmetic on a `Configuration`; nothing is built and torch is not imported.

Shape letters: C channels, H and W pixels, K classes; no N, everything is for one image.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from vggkit.arguments import plain_number
from vggkit.errors import BadInput
from vggkit.models.configuration import Configuration
from vggkit.models.configure import demand_configuration
from vggkit.models.graph import Graph
from vggkit.notebook import write_html

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

LayerKind = Literal["input", "conv", "bn", "lrn", "pool", "adaptive pool", "statistics", "fc", "mean"]

FLOAT32_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSummary:
    """One row of the table. ReLU works in place and dropout is absent in inference: they have no row."""

    name: str
    """`conv3_2`, `pool3`, `fc6` as in the literature; `fc6.0` and `fc6.1` are the two factors of
    a low-rank layer; `input`, `avgpool`, `mean` and `mean+std` lie between trunk and logits."""
    kind: LayerKind
    """The operation: `adaptive pool` brings the map to the head's grid, `statistics` are the pool
    head's, and `mean` averages the dense head's scores."""
    output_shape: tuple[int, ...]
    """(C, H, W), or (features,) behind the trunk; without the batch."""
    parameters: int
    """Trained values; 2·C for batch norm."""
    multiply_adds: int
    """Multiplications with an addition, in convolutions and fully connected layers only, biases not
    counted: torchvision's convention, 1 of them being 2 FLOP."""
    activation_bytes: int
    """Size of its output in float32, for one image."""
    receptive_field_pixels: int | None
    """Side of the square of the image that one output value depends on, padding included; None:
    the whole image."""
    parameter_share: float
    """Its share of all parameters, in [0, 1]."""
    multiply_add_share: float
    """Its share of all multiply-adds, in [0, 1]."""


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
    """The result of `summarize`: one row for each layer, and their sums."""

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

    def __repr__(self) -> str:
        height, width = self.input_pixels
        return f"Summary({self.description}, {height}×{width} pixels, {self.totals.parameters:,} parameters)"

    def __str__(self) -> str:
        """The table, 80 characters wide, in ASCII, as any file takes it."""
        from vggkit.reports.tables import draw_summary
        from vggkit.reports.terminal import write_plainly

        return write_plainly(draw_summary(self))

    def __rich__(self) -> object:
        """The table that `rich.print` and the shell show."""
        from vggkit.reports.tables import draw_summary

        return draw_summary(self)

    def _repr_html_(self) -> str:
        rows = [
            (
                layer.name,
                " × ".join(map(str, layer.output_shape)),
                f"{layer.parameters:,}",
                f"{layer.multiply_adds:,}",
                f"{layer.activation_bytes:,}",
                "all" if layer.receptive_field_pixels is None else layer.receptive_field_pixels,
            )
            for layer in self.layers
        ]
        totals = self.totals
        rows.append(
            (
                "total",
                "",
                f"{totals.parameters:,}",
                f"{totals.multiply_adds:,}",
                f"{totals.activation_bytes:,}",
                "",
            )
        )
        header = ("layer", "output", "parameters", "multiply-adds", "memory (bytes)", "receptive field (pixels)")
        height, width = self.input_pixels
        return write_html(f"{self.description}, {height} × {width} pixels", rows, header=header, most=None)


def summarize(
    model: "Configuration | VGG | str",
    *,
    input: tuple[int, int] = (224, 224),  # noqa: A002
) -> Summary:
    """Shapes, parameters, multiply-adds, memory and receptive fields, layer by layer; printed, it is a table.

    Args:
        model: A name of `list_models`, a Configuration, or an object that has one, such as a VGG or a
            Classifier. Nothing is built.
        input: Height and width of the image in pixels.

    Raises UnknownName for a name that no model has, and BadInput where the image is smaller than the network's
    `minimum_side`, or not two whole numbers.

    >>> summarize("vgg11")
    Summary(vgg11, 1,000 classes, 224×224 pixels, 132,863,336 parameters)
    >>> print(summarize("vgg11", input=(64, 64)))  # doctest: +ELLIPSIS
    vgg11, 1,000 classes, 64x64 pixels
    ...
    """
    configuration, sides = demand_configuration(model, "summarize"), _check(input)
    graph = Graph(configuration, input_pixels=sides)
    steps = [step for step in graph.steps if step.kind not in ("relu", "flatten")]
    parameters, multiply_adds = (
        sum(step.parameters for step in steps),
        sum(step.multiply_adds for step in steps),
    )
    image = (configuration.in_channels, *sides)
    first = LayerSummary(
        name="input",
        kind="input",
        output_shape=image,
        parameters=0,
        multiply_adds=0,
        activation_bytes=FLOAT32_BYTES * math.prod(image),
        receptive_field_pixels=1,
        parameter_share=0.0,
        multiply_add_share=0.0,
    )
    rows = [
        LayerSummary(
            name=f"{step.name}.1" if step.factor == 1 else step.name,
            kind="adaptive pool" if step.kind == "adaptive_pool" else cast(LayerKind, step.kind),
            output_shape=step.output_shape,
            parameters=step.parameters,
            multiply_adds=step.multiply_adds,
            activation_bytes=FLOAT32_BYTES * math.prod(step.output_shape),
            receptive_field_pixels=step.receptive_field,
            parameter_share=step.parameters / parameters,
            multiply_add_share=step.multiply_adds / multiply_adds,
        )
        for step in steps
    ]
    layers = (first, *rows)
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


def _check(sides: object) -> tuple[int, int]:
    """Height and width; raises BadInput where they are not two whole numbers."""
    found = tuple(map(plain_number, sides)) if isinstance(sides, tuple | list) else ()
    if len(found) != 2 or not all(type(side) is int for side in found):
        raise BadInput(f"input must be height and width in whole pixels, such as (224, 224); got {sides!r}")
    return found


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
