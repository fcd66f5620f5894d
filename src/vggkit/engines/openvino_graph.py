"""The operations of a VGG as nodes of OpenVINO's graph, in float32 or marked to be rounded to int8.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import LIMIT, Sides, Values
from vggkit.engines.outputs import Output, Ranges
from vggkit.errors import BadInput
from vggkit.hardware import count_threads, multiplies_bytes
from vggkit.models.configuration import Pooling

LARGEST: Final = 127
"""Of int8 weights, in steps of their channel."""


LARGEST_OF_7_BITS: Final = 63
"""Without VNNI two products of an unsigned byte and a weight are summed in 16 bits, which holds 2 × 255 × 63."""


_ROUNDED_TOGETHER: Final = 100_000
"""Weights that are rounded at once: they stay in the caches."""


Node = Any
"""A node of OpenVINO's graph; its modules are imported where they are used."""


class OpenVINOOperations:
    """The operations of a VGG as nodes of OpenVINO's graph."""

    def __init__(
        self, openvino: ModuleType, activation_ranges: Ranges, outputs: Sequence[Output], *, as_read: bool
    ) -> None:
        self.openvino, self.ops, self._ranges = openvino, openvino.opset13, activation_ranges
        self._outputs, self._as_read = outputs, as_read
        self._rounded: set[Output] = set()
        self._sums: list[Node] = []

    def list_sums(self) -> list[Node]:
        """One output (N, S) of sums that are finite if all watched values are; none if no values are watched."""
        return [self.ops.concat(self._sums, 1)] if self._sums else []

    def convolve(self, maps: Node, weight: Values, bias: Values | None, padding: int, reads: str | None) -> Node:
        pads = [padding, padding]
        maps, kernels = self._narrow(maps, weight, reads)
        maps = self.ops.convolution(maps, kernels, [1, 1], pads, pads, [1, 1])
        return maps if bias is None else self.ops.add(maps, self.keep(bias.reshape(1, -1, 1, 1)))

    def scale(self, maps: Node, factor: Values, shift: Values) -> Node:
        factor, shift = factor.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)
        return self.ops.add(self.ops.multiply(maps, self.keep(factor)), self.keep(shift))

    def rectify(self, values: Node, watched: bool) -> Node:
        if watched:
            # ReLU's values, but for NaN, of which ReLU makes zero here.
            zero = np.float32(0)
            self._watch(self.ops.select(self.ops.less(values, zero), zero, values))
        return self.ops.relu(values)

    def normalize_responses(self, maps: Node, watched: bool) -> Node:
        if watched:
            self._watch(self.ops.multiply(maps, maps))
        # As in `models.layers`: alpha is divided by the window here too.
        return self.ops.lrn(maps, np.array([1]), alpha=5 * 1e-4, beta=0.75, bias=2.0, size=5)

    def pool(self, maps: Node, pooling: Pooling, gives: str) -> Node:
        if pooling == "max":
            # The largest of rounded values is the largest, rounded; and bytes are a quarter to write and to read.
            if gives in self._ranges and (self._as_read or gives not in self._outputs):
                maps = self._round(maps, gives)
                self._rounded.add(gives)
            return self.ops.max_pool(maps, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        return self.ops.avg_pool(maps, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)

    def give(self, values: Node, name: str) -> Node:
        # Rounded before both read it: where the output of a product is read twice, once of them rounded, OpenVINO
        # loses the operation after the product.
        if self._as_read and name in self._ranges and name not in self._rounded:
            self._rounded.add(name)
            return self._round(values, name)
        return values

    def fit(self, maps: Node, sides: Sides, wanted: Sides) -> Node:
        return self.ops.adaptive_avg_pool(maps, np.array(wanted))

    def average_windows(self, maps: Node, places: Sides) -> Node:
        return self.ops.avg_pool(maps, [1, 1], [0, 0], [0, 0], list(places), exclude_pad=True)

    def flatten(self, maps: Node) -> Node:
        return self.ops.reshape(maps, np.array([0, -1]), special_zero=True)

    def connect(self, rows: Node, weight: Values, bias: Values | None, reads: str | None) -> Node:
        rows, matrix = self._narrow(rows, weight, reads)
        rows = self.ops.matmul(rows, matrix, False, True)
        return rows if bias is None else self.ops.add(rows, self.keep(bias[None]))

    def average(self, maps: Node) -> Node:
        return self.ops.reduce_mean(maps, np.array([2, 3]))

    def summarize(self, maps: Node, epsilon: float) -> Node:
        ops, sides = self.ops, np.array([2, 3])
        mean = ops.reduce_mean(maps, sides, keep_dims=True)
        variance = ops.reduce_mean(ops.squared_difference(maps, mean), sides)
        deviation = ops.sqrt(ops.add(variance, np.float32(epsilon)))
        return ops.concat([ops.squeeze(mean, sides), deviation], 1)

    def _watch(self, magnitudes: Node) -> None:
        # Rounded to bytes nothing overflows, and what a product gives must not be read twice there.
        if not self._ranges:
            rows = self.ops.multiply(self.flatten(magnitudes), np.float32(2**-40))  # the sum itself is to be finite
            self._sums.append(self.ops.reduce_sum(rows, np.array([1]), keep_dims=True))

    def _narrow(self, values: Node, weight: Values, reads: str | None) -> tuple[Node, Node]:
        """Both sides of a product, marked to be rounded to bytes where the range of the input is known.

        One step for each output channel, and one for the whole input, with zero on a step.
        """
        if reads is None or reads not in self._ranges:
            return values, self.keep(weight)
        if reads not in self._rounded:
            values = self._round(values, reads)
        largest = LARGEST if multiplies_bytes() else LARGEST_OF_7_BITS
        rounded, steps = _round_weights(weight, largest)
        reach = max(map(abs, self._ranges[reads])) * largest * float(steps.max()) * (weight.size // len(weight))
        if not reach < LIMIT:
            raise BadInput(
                f"what reads {reads} has weights that are not numbers, or so large that sums overflow: int8 would "
                "hide it. Take an earlier checkpoint, or train it again at a lower learning rate"
            )
        factors = self.ops.convert(self.keep(rounded), self.openvino.Type.f32)
        return values, self.ops.multiply(factors, self.keep(steps))

    def _round(self, values: Node, name: str) -> Node:
        """Values marked to be rounded to 256 steps of the range of that name, with zero on a step."""
        low, high = self._ranges[name]
        step = max(high - low, 1e-12) / 255
        zero = round(-low / step)
        ends = np.float32(-zero * step), np.float32((255 - zero) * step)
        return self.ops.fake_quantize(values, *ends, *ends, 256)

    def keep(self, value: NDArray[Any]) -> Node:
        """A constant that is the array itself."""
        return self.openvino.op.Constant(np.ascontiguousarray(value), shared_memory=True)


def _round_weights(weight: Values, largest: int) -> tuple[NDArray[np.int8], Values]:
    """Bytes from -largest to largest, and the step of each output channel, of which they are multiples."""
    axes = tuple(range(1, weight.ndim))
    rounded = np.empty(weight.shape, np.int8)
    steps = np.empty((len(weight), *(1 for _ in axes)), np.float32)

    def fill(rows: slice) -> None:
        part = weight[rows]
        most = np.maximum(part.max(axis=axes, keepdims=True), -part.min(axis=axes, keepdims=True))
        steps[rows] = most.clip(1e-12) / largest
        if np.isfinite(most).all():  # otherwise the steps are not finite
            rounded[rows] = np.rint(part * (1 / steps[rows]))

    rows_together = max(1, _ROUNDED_TOGETHER * len(weight) // weight.size)
    with ThreadPoolExecutor(count_threads(), thread_name_prefix="rounding") as pool:
        list(pool.map(fill, (slice(n, n + rows_together) for n in range(0, len(weight), rows_together))))
    return rounded, steps
