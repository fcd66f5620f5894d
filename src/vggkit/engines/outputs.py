"""What can be asked of a network by name, and how much of it must be computed for that. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadConfiguration, BadInput, UnknownName
from vggkit.models.configuration import Configuration, FullyConnected, Layer
from vggkit.weights.card import INPUT_RANGE

Rows = NDArray[np.float32]
Output = str
"""`logits`; `probabilities`, their softmax at a Classifier's temperature; `features`, what the last fully connected
layer reads; `statistics`, the mean and standard deviation of each channel of the trunk's last map; or a layer's
name, such as conv3_2, relu3_3, pool5, fc6, relu6, fc7."""
Precision = Literal["fp32", "bf16", "int8"]
"""What is computed in; int8 is OpenVINO's alone."""
WantedPrecision = Literal["fp32", "bf16", "int8", "auto"]
"""auto: bf16 where the device multiplies it by itself, else fp32."""
Ranges = Mapping[Output, tuple[float, float]]
"""The least and the largest value of what a convolution or a matrix reads, by its name."""
ROWS: Final = ("logits", "probabilities", "features", "statistics")
"""What every network has, a row for each image."""
IMAGES: Final = INPUT_RANGE
"""The name of what the first convolution reads."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is computed for the outputs that were asked for, and no more."""

    names: tuple[Output, ...]
    """What is given, in this order."""
    drawn: tuple[Output, ...]
    """What is computed for it in the network, in this order."""
    trunk: tuple[Layer, ...]
    """The layers of the trunk that are computed."""
    fully_connected: tuple[FullyConnected, ...]
    """The layers of the head that are computed."""
    keys: tuple[str, ...]
    """State-dict keys of their weights."""

    def give(self, found: Mapping[Output, Rows], temperature: float) -> dict[Output, Rows]:
        """What was asked for, of what was computed."""
        asked = dict(found)
        if "probabilities" in self.names:
            asked["probabilities"] = softmax(found["logits"], temperature).astype(np.float32)
        return {name: asked[name] for name in self.names}


def list_outputs(configuration: Configuration) -> list[Output]:
    """Every name that can be asked for: rows first, then the layers in order.

    `fc6` is a layer's own result and `relu6` what follows of it. Layers of the trunk give maps
    (N, C, H, W); those of the head rows (N, F), and maps where the head slides (`dense`).
    """
    return [*ROWS, *(layer.name for layer in configuration.trunk), *_name_head(configuration)]


def plan_outputs(configuration: Configuration, output: Output | Sequence[Output]) -> Plan:
    """The plan for one output or several; raises UnknownName with the nearest name, and BadInput for none."""
    names = (output,) if isinstance(output, str) else tuple(dict.fromkeys(output))
    known = list_outputs(configuration)
    if not names:
        raise BadInput(f"an engine must be asked for an output: one or several of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UnknownName.of("layer or output of this network", name, known)
    drawn = tuple(dict.fromkeys("logits" if name == "probabilities" else name for name in names))
    order = [layer.name for layer in configuration.trunk]
    whole = any(name not in order for name in drawn)
    deepest = len(order) if whole else 1 + max(order.index(name) for name in drawn)
    trunk, layers = configuration.trunk[:deepest], configuration.fully_connected
    head = layers[: max(_count_layers(name, layers) for name in drawn)]
    parts = {f"features.{layer.index}" for layer in trunk} | {f"classifier.{fc.index}" for fc in head}
    keys = tuple(
        key
        for key in configuration.state_shapes()
        if ".".join(key.split(".")[:2]) in parts and not key.endswith("num_batches_tracked")
    )
    return Plan(names, drawn, trunk, head, keys)


def _name_head(configuration: Configuration) -> list[Output]:
    *hidden, last = configuration.fully_connected
    return [*(name for fc in hidden for name in (fc.name, find_relu(fc))), last.name]


def find_relu(fc: FullyConnected) -> Output:
    """The name of the ReLU behind a layer of the head: relu6 of fc6."""
    return fc.name.replace("fc", "relu")


def _count_layers(name: Output, layers: tuple[FullyConnected, ...]) -> int:
    """How many layers of the head a name needs."""
    if name in ("logits", "features"):
        return len(layers) - (name == "features")
    return next((count for count, fc in enumerate(layers, start=1) if name in (fc.name, find_relu(fc))), 0)


def list_reads(configuration: Configuration) -> list[Output]:
    """Names of what convolutions and matrices read, the images first.

    Statistics of a pool head are none of them: its matrix is small, and what it reads is wide.
    """
    trunk = configuration.trunk
    names = [
        IMAGES,
        *(before.name for before, layer in pairwise(trunk) if layer.kind == "conv"),
    ]
    if configuration.head != "pool":
        names += [trunk[-1].name, *(find_relu(fc) for fc in configuration.fully_connected[:-1])]
    return names


def softmax(logits: Rows, temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (..., K) of logits (..., K) divided by a temperature; NaN where one of the K is not finite."""
    finite = np.isfinite(logits).all(axis=-1, keepdims=True)
    wide = np.where(finite, logits, np.nan).astype(np.float64) / temperature
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def check_batch(configuration: Configuration, batch: NDArray[np.float32]) -> None:
    """Raise BadInput where a batch cannot be images (N, C, H, W) of this network."""
    channels, least = configuration.in_channels, configuration.minimum_side
    if batch.ndim != 4 or not len(batch) or batch.shape[1] != channels or min(batch.shape[2:]) < least:
        raise BadInput(
            f"an engine of this network takes images (N, {channels}, H, W), one at least and each of "
            f"{least} pixels a side or more; got {batch.shape}"
        )


def check_precision(precision: Precision, ranges: Ranges | None) -> None:
    """Raise UnknownName for a precision that is none, BadConfiguration for int8 without ranges or the reverse."""
    if precision not in get_args(Precision):
        raise UnknownName.of("precision", precision, get_args(Precision))
    if precision == "int8" and not ranges:
        raise BadConfiguration(
            "int8 must be told between which values the network's layers lie, and this Classifier does not say. "
            "vggkit bench MODEL IMAGES --keep-ranges finds that on a few hundred images and keeps it in the "
            "file (in Python: engines.ranges.measure_ranges, then Classifier.keep_ranges)"
        )
    if precision != "int8" and ranges:
        raise BadConfiguration(f"ranges are for precision int8; got them with {precision}")
