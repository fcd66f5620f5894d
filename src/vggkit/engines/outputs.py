"""The outputs of a network by name, and how much of it must be computed for them. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph, Step
from vggkit.task import Activation

Rows = NDArray[np.float32]
Output = str
"""`logits`; `probabilities`, their softmax (or sigmoid) at a Classifier's temperature; `features`, what the last
fully connected layer reads; `statistics`, the mean and standard deviation of each channel of the trunk's last map;
or a layer's name, such as conv3_2, relu3_3, pool5, fc6, relu6, fc7."""
Precision = Literal["fp32", "bf16", "int8"]
"""The precision of the computation; only OpenVINO computes in int8."""
WantedPrecision = Literal["fp32", "bf16", "int8", "auto"]
"""auto: bf16 where the device multiplies it natively, else fp32."""
Ranges = Mapping[Output, tuple[float, float]]
"""Smallest and largest input of each convolution and matrix, by its name."""
ROWS: Final = ("logits", "probabilities", "features", "statistics")
"""Outputs that every network has, with a row of values for each image."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The computation for the requested outputs."""

    names: tuple[Output, ...]
    """The outputs that are returned, in this order."""
    computed: tuple[Output, ...]
    """The outputs that the network computes for them, in this order."""
    keys: tuple[str, ...]
    """State-dict keys of the weights that this needs."""

    def finish(self, computed: Mapping[Output, Rows], activation: Activation) -> dict[Output, Rows]:
        """The requested outputs, from the computed ones."""
        found = dict(computed)
        if "probabilities" in self.names:
            found["probabilities"] = activation(computed["logits"]).astype(np.float32)
        return {name: found[name] for name in self.names}


def list_outputs(configuration: Configuration) -> list[Output]:
    """Every name that can be requested: rows first, then the layers in order.

    `fc6` is a layer's own result and `relu6` what follows of it. Layers of the trunk give maps
    (N, C, H, W); those of the head rows (N, F), and maps where the head slides (`dense`).
    """
    return [*ROWS, *Graph(configuration).names]


def plan_outputs(configuration: Configuration, output: Output | Sequence[Output]) -> Plan:
    """The plan for one output or several; raises UnknownName with the nearest name, and BadInput for none."""
    names = (output,) if isinstance(output, str) else tuple(dict.fromkeys(output))
    graph = Graph(configuration)
    known = [*ROWS, *graph.names]
    if not names:
        raise BadInput(f"an engine computes one output or several of {', '.join(known)}; none was requested")
    for name in names:
        if name not in known:
            raise UnknownName.of("layer or output of this network", name, known)
    computed = tuple(dict.fromkeys("logits" if name == "probabilities" else name for name in names))
    keys = tuple(key for step in select_steps(graph, computed) for key in step.weights)
    return Plan(names, computed, keys)


def select_steps(graph: Graph, computed: Sequence[Output]) -> tuple[Step, ...]:
    """The steps that these outputs need: from the first one to the deepest."""
    last = graph.configuration.fully_connected[-1]
    modules = (f"classifier.{last.index}", f"classifier.{last.index}.0")
    ends = {step.name: number for number, step in enumerate(graph.steps, start=1)}
    ends |= {
        "logits": len(graph.steps),
        "features": next(number for number, step in enumerate(graph.steps) if step.module in modules),
        "statistics": len(graph.trunk),
    }
    return graph.steps[: max(ends[name] for name in computed)]


def list_reads(configuration: Configuration) -> list[Output]:
    """Names of what convolutions and matrices read, the images first.

    Statistics of a pool head are none of them: its matrix is small, and what it reads is wide.
    """
    graph = Graph(configuration)
    steps = graph.trunk if configuration.head == "pool" else graph.steps
    return [step.reads for step in steps if step.kind in ("conv", "fc") and step.reads is not None]


def check_batch(configuration: Configuration, batch: NDArray[np.float32]) -> None:
    """Raise BadInput where a batch cannot be images (N, C, H, W) of this network."""
    channels, least = configuration.in_channels, configuration.minimum_side
    if batch.ndim != 4 or not len(batch) or batch.shape[1] != channels or min(batch.shape[2:]) < least:
        raise BadInput(
            f"an engine of this network takes images (N, {channels}, H, W), one at least and each of "
            f"{least} pixels a side or more; got {batch.shape}"
        )


def check_precision(precision: Precision, activation_ranges: Ranges | None) -> None:
    """Raise UnknownName for an unknown precision, BadConfiguration for int8 without ranges or the reverse."""
    if precision not in get_args(Precision):
        raise UnknownName.of("precision", precision, get_args(Precision))
    if precision == "int8" and not activation_ranges:
        raise BadConfiguration(
            "int8 needs the activation ranges of the network's layers, and this Classifier has none. "
            "vggkit bench MODEL IMAGES --keep-ranges measures them on a few hundred images and stores them in the "
            "file (in Python: engines.activation_ranges.measure_ranges, then Classifier.keep_ranges)"
        )
    if precision != "int8" and activation_ranges:
        raise BadConfiguration(f"activation ranges are for precision int8; got them with {precision}")
