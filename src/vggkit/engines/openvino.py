"""A network as OpenVINO runs it on processors: the graph is built from the configuration and the weights.

Shape letters: N pictures, C channels, H and W pixels, K classes, F features.
"""

import importlib
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vggkit.engines.pytorch import Output, Precision
from vggkit.errors import MissingExtra
from vggkit.networks.configurations import Configuration, FullyConnected, Layer
from vggkit.networks.vgg import STD_EPSILON, VGG

TOGETHER: Final = 8
"""Pictures that one request takes at most: more gain nothing, and their maps leave the caches."""
_PRECISIONS: Final = {"fp32": "f32", "bf16": "bf16"}

Node = Any
"""A node of OpenVINO's graph; its modules are imported where they are used."""


class OpenVINOEngine:
    """Runs a VGG on the processor with the weights as they are now; the network stays as it is.

    Several requests run side by side, a few pictures each, which was measured to be as fast as or faster
    than all processors on one request. A model is compiled for each size of the pictures, in a tenth of a
    second for a trunk, so nothing of it is kept on the disk.

    Args:
        network: The VGG.
        output: What is given of each picture.
        precision: bf16 is several times as fast where the processor multiplies bfloat16; what follows the
            last product, such as statistics of a map, is computed in float32 all the same.

    Raises MissingExtra without OpenVINO.
    """

    def __init__(self, network: VGG, *, output: Output = "logits", precision: Precision = "fp32") -> None:
        self._openvino = _import_openvino()
        self._configuration, self._output, self._precision = network.configuration, output, precision
        self._weights = _fold_norms(network)
        self._queues: dict[tuple[int, int], Any] = {}

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """A row, as `output` says, of each of preprocessed pictures (N, C, H, W)."""
        size = batch.shape[2], batch.shape[3]
        if size not in self._queues:
            self._queues[size] = self._compile(size)
        queue = self._queues[size]
        found: dict[int, NDArray[np.float32]] = {}
        queue.set_callback(lambda request, first: found.update({first: request.get_output_tensor(0).data.copy()}))
        each = min(TOGETHER, math.ceil(len(batch) / len(queue)))
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        for first in range(0, len(batch), each):
            queue.start_async({0: batch[first : first + each]}, first, share_inputs=True)
        queue.wait_all()
        return np.concatenate([found[first] for first in sorted(found)])

    def _compile(self, size: tuple[int, int]) -> Any:
        openvino = self._openvino
        graph = _Graph(openvino, self._configuration, self._weights)
        model = graph.build(size, self._output)
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._precision],
        }
        return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", options))


class _Graph:
    """Builds the model layer by layer; follows `VGG.forward`."""

    def __init__(
        self, openvino: ModuleType, configuration: Configuration, weights: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self.openvino, self.ops = openvino, openvino.opset13
        self.configuration, self.weights = configuration, weights

    def build(self, size: tuple[int, int], output: Output) -> Any:
        """The model for pictures (any number, C, H, W) of that size in pixels."""
        shape = self.openvino.PartialShape([-1, self.configuration.in_channels, *size])
        images = self.ops.parameter(shape, self.openvino.Type.f32)
        maps = images
        for layer in self.configuration.trunk:
            maps = self._add_layer(maps, layer)
        if output == "statistics":
            rows = self._summarize(maps, epsilon=0.0)
        else:
            layers = self.configuration.fully_connected
            rows = self._add_head(maps, layers if output == "logits" else layers[:-1])
        return self.openvino.Model([rows], [images])

    def _constant(self, value: NDArray[np.float32]) -> Node:
        return self.openvino.op.Constant(np.ascontiguousarray(value), shared_memory=True)

    def _add_layer(self, maps: Node, layer: Layer) -> Node:
        ops = self.ops
        match layer.kind:
            case "conv":
                weight, bias = (self.weights[f"features.{layer.index}.{name}"] for name in ("weight", "bias"))
                return self._convolve(maps, weight, bias, padding=layer.kernel // 2)
            case "bn":  # folded into the convolution
                return maps
            case "relu":
                return ops.relu(maps)
            case "lrn":
                # As in `networks.vgg`: alpha is divided by the window here too.
                return ops.lrn(maps, np.array([1]), alpha=5 * 1e-4, beta=0.75, bias=2.0, size=5)
            case "pool" if self.configuration.pooling == "max":
                return ops.max_pool(maps, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
            case "pool":
                return ops.avg_pool(maps, [2, 2], [0, 0], [0, 0], [2, 2], exclude_pad=True)

    def _add_head(self, maps: Node, layers: tuple[FullyConnected, ...]) -> Node:
        """These layers of the head on the trunk's map."""
        configuration, ops = self.configuration, self.ops
        if configuration.head == "pool":
            rows = (
                self._summarize(maps, epsilon=STD_EPSILON)
                if configuration.statistics == "mean+std"
                else ops.reduce_mean(maps, np.array([2, 3]))
            )
            return self._add_layers(rows, layers)
        grid, (height, width) = configuration.grid, _find_sides(maps)
        wanted = (grid, grid) if configuration.head == "fc" else (max(height, grid), max(width, grid))
        if wanted != (height, width):
            maps = ops.adaptive_avg_pool(maps, np.array(wanted))
        if configuration.head == "fc":
            return self._add_layers(ops.reshape(maps, np.array([0, -1]), special_zero=True), layers)
        if layers:
            return ops.reduce_mean(self._slide_layers(maps, layers), np.array([2, 3]))
        places = [wanted[0] - grid + 1, wanted[1] - grid + 1]
        windows = ops.avg_pool(maps, [1, 1], [0, 0], [0, 0], places, exclude_pad=True)
        return ops.reshape(windows, np.array([0, -1]), special_zero=True)

    def _add_layers(self, rows: Node, layers: tuple[FullyConnected, ...]) -> Node:
        for fc in layers:
            for weight, bias in self._list_factors(fc):
                rows = self.ops.matmul(rows, self._constant(weight), False, True)
                if bias is not None:
                    rows = self.ops.add(rows, self._constant(bias[None]))
            rows = self._follow(rows, fc)
        return rows

    def _slide_layers(self, maps: Node, layers: tuple[FullyConnected, ...]) -> Node:
        grid = self.configuration.grid
        for fc in layers:
            for weight, bias in self._list_factors(fc):
                maps = self._convolve(maps, weight.reshape(len(weight), -1, grid, grid), bias, padding=0)
                grid = 1  # only the first layer reads a window
            maps = self._follow(maps, fc)
        return maps

    def _follow(self, rows: Node, fc: FullyConnected) -> Node:
        return rows if fc == self.configuration.fully_connected[-1] else self.ops.relu(rows)

    def _list_factors(self, fc: FullyConnected) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Weight (out, in) and bias of the layer, or of its two factors."""
        key = f"classifier.{fc.index}"
        if fc.rank is None:
            return [(self.weights[f"{key}.weight"], self.weights[f"{key}.bias"])]
        return [
            (self.weights[f"{key}.0.weight"], None),
            (self.weights[f"{key}.1.weight"], self.weights[f"{key}.1.bias"]),
        ]

    def _convolve(
        self, maps: Node, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, *, padding: int
    ) -> Node:
        pads = [padding, padding]
        maps = self.ops.convolution(maps, self._constant(weight), [1, 1], pads, pads, [1, 1])
        return maps if bias is None else self.ops.add(maps, self._constant(bias.reshape(1, -1, 1, 1)))

    def _summarize(self, maps: Node, *, epsilon: float) -> Node:
        """Mean and standard deviation of each channel over the map."""
        ops, sides = self.ops, np.array([2, 3])
        mean = ops.reduce_mean(maps, sides, keep_dims=True)
        variance = ops.reduce_mean(ops.squared_difference(maps, mean), sides)
        deviation = ops.sqrt(ops.add(variance, np.float32(epsilon)))
        return ops.concat([ops.squeeze(mean, sides), deviation], 1)


def _find_sides(maps: Node) -> tuple[int, int]:
    """Height and width of a node's maps, known since the pictures' are."""
    shape = maps.output(0).partial_shape if hasattr(maps, "output") else maps.get_partial_shape()
    return shape[2].get_length(), shape[3].get_length()


def _fold_norms(network: VGG) -> dict[str, NDArray[np.float32]]:
    """The state dict in float32, each batch norm multiplied into the convolution before it."""
    weights = {
        key: value.detach().cpu().float().numpy()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    trunk = network.configuration.trunk
    for conv, norm in pairwise(trunk):
        if norm.kind == "bn":
            module = network.features[norm.index]
            assert isinstance(module, nn.BatchNorm2d)
            scale, shift, mean, variance = (
                weights.pop(f"features.{norm.index}.{name}").astype(np.float64)
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + module.eps)
            kernel, bias = (f"features.{conv.index}.{name}" for name in ("weight", "bias"))
            weights[kernel] = (weights[kernel] * scale[:, None, None, None]).astype(np.float32)
            weights[bias] = ((weights[bias] - mean) * scale + shift).astype(np.float32)
    return weights


def _import_openvino() -> ModuleType:
    """OpenVINO without its reports to its makers, which it would send when it is imported."""
    silent = "openvino_telemetry"
    unset = silent not in sys.modules
    if unset:
        sys.modules[silent] = None  # type: ignore[assignment]  # it takes its own stand-in then
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as problem:
        raise MissingExtra.of("openvino", "computing with OpenVINO", "fast") from problem
    finally:
        if unset:
            del sys.modules[silent]
    return openvino
