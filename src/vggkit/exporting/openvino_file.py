"""OpenVINO's IR: the engine's graph between the preparation of images and the softmax or sigmoid.

No torch here. Shape letters: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import GraphBuilder
from vggkit.engines.model_weights import Weights
from vggkit.engines.openvino import import_openvino
from vggkit.engines.openvino_graph import Node, OpenVINOOperations
from vggkit.engines.outputs import plan_outputs
from vggkit.errors import BadOutput
from vggkit.exporting.image_steps import ImageSteps
from vggkit.exporting.plan import FITTED, INPUT, ExportPlan
from vggkit.images.resizing import Interpolation
from vggkit.task import Activation

Number = Any
"""A node that gives one int64."""


def write_openvino(weights: Weights, plan: ExportPlan, target: Path) -> None:
    """Write the .xml and, beside it, the .bin with the weights; raises MissingExtra and BadOutput."""
    openvino = import_openvino()
    model = _build(openvino, weights, plan)
    try:
        openvino.save_model(model, target, compress_to_fp16=plan.precision == "fp16")
    except RuntimeError as problem:
        raise BadOutput(
            f"{target.name}: cannot be written; is the disk full? ({str(problem).splitlines()[0]})"
        ) from problem


def open_openvino(path: Path) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], str]:
    """A function that computes the first output of images (N, H, W, C), and the runtime's name and version."""
    openvino = import_openvino()
    # The default is bfloat16 on processors that support it.
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: model({INPUT: images})[0], f"OpenVINO {openvino.__version__.partition('-')[0]}"


def _build(openvino: ModuleType, weights: Weights, plan: ExportPlan) -> Any:
    operations = OpenVINOImageOperations(openvino, {}, plan.outputs, as_read=False)
    shape = [-1 if isinstance(side, str) else side for side in plan.input_shape]
    images = openvino.opset13.parameter(openvino.PartialShape(shape), openvino.Type.u8)
    images.friendly_name = INPUT
    images.output(0).tensor.names = {INPUT}
    steps = ImageSteps(plan, operations)
    maps = steps.fit(images)
    found = {FITTED: maps}
    if plan.outputs != (FITTED,):
        network_plan = plan_outputs(plan.configuration, [name for name in plan.outputs if name != FITTED])
        values = weights.read(network_plan.keys)
        builder = GraphBuilder[Node](plan.configuration, network_plan, values, operations)
        found |= builder.build(steps.normalize(maps), (plan.crop_pixels,) * 2)
        if "probabilities" in plan.outputs:
            found["probabilities"] = operations.activate(found["logits"], plan.card.activation)
    results = []
    for name in plan.outputs:
        results.append(openvino.opset13.result(found[name]))
        results[-1].output(0).tensor.names = {name}
    model = openvino.Model(results, [images], "vgg")
    for key, value in plan.to_metadata({"openvino": openvino.__version__}).items():
        model.set_rt_info(value, ["vggkit", key])
    return model


class OpenVINOImageOperations(OpenVINOOperations):
    """Nodes of OpenVINO that prepare images."""

    def arrange(self, images: Node) -> Node:
        return self.ops.transpose(images, np.array([0, 3, 1, 2]))

    def measure(self, maps: Node) -> tuple[Number, Number]:
        shape = self.ops.shape_of(maps, "i64")
        height, width = (self.ops.gather(shape, self._number(axis), np.array(0)) for axis in (2, 3))
        return height, width

    def add(self, number: Number, other: Number | int) -> Number:
        return self.ops.add(number, self._number(other))

    def subtract(self, number: Number | int, other: Number) -> Number:
        return self.ops.subtract(self._number(number), other)

    def multiply(self, number: Number, factor: Number | int) -> Number:
        return self.ops.multiply(number, self._number(factor))

    def divide(self, number: Number, by: Number | int) -> Number:
        return self.ops.divide(number, self._number(by))

    def smaller(self, number: Number, other: Number | int) -> Number:
        return self.ops.minimum(number, self._number(other))

    def larger(self, number: Number, other: Number | int) -> Number:
        return self.ops.maximum(number, self._number(other))

    def resize(self, maps: Node, sides: tuple[Number | int, Number | int], interpolation: Interpolation) -> Node:
        sizes = self.ops.concat([self._number(side) for side in sides], 0)
        return self.ops.interpolate(maps, sizes, f"{interpolation}_pillow", "sizes", axes=np.array([2, 3]))

    def widen(self, maps: Node) -> Node:
        return self.ops.convert(maps, "f32")

    def pad(self, maps: Node, before: tuple[Number, Number], after: tuple[Number, Number]) -> Node:
        none = self.keep(np.array([0, 0]))
        ends = (self.ops.concat([none, *each], 0) for each in (before, after))
        return self.ops.pad(maps, *ends, "constant", np.float32(0))

    def cut(self, maps: Node, first: tuple[Number, Number], side: int, channels: int) -> Node:
        starts = self.ops.concat([*first], 0)
        ends = self.ops.add(starts, self._number(side))
        part = self.ops.slice(maps, starts, ends, np.array([1, 1]), np.array([2, 3]))
        return self.ops.reshape(part, np.array([0, channels, side, side]), special_zero=True)

    def reverse(self, maps: Node) -> Node:
        return self.ops.gather(maps, np.array([2, 1, 0]), np.array(1))

    def weigh(self, maps: Node, weights: tuple[float, ...], shift: float, divisor: float) -> Node:
        kernel = self.keep(np.array(weights, np.float32).reshape(1, -1, 1, 1))
        summed = self.ops.convolution(maps, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        return self.ops.floor(self.ops.divide(self.ops.add(summed, np.float32(shift)), np.float32(divisor)))

    def shift(self, maps: Node, values: tuple[float, ...]) -> Node:
        return self.ops.add(maps, self.keep(np.array(values, np.float32).reshape(1, -1, 1, 1)))

    def divide_by(self, maps: Node, values: tuple[float, ...]) -> Node:
        return self.ops.divide(maps, self.keep(np.array(values, np.float32).reshape(1, -1, 1, 1)))

    def activate(self, logits: Node, activation: Activation) -> Node:
        if activation.temperature != 1:
            logits = self.ops.divide(logits, np.float32(activation.temperature))
        return self.ops.sigmoid(logits) if activation.task == "multi-label" else self.ops.softmax(logits, 1)

    def _number(self, number: Number | int) -> Number:
        return self.keep(np.array([number])) if isinstance(number, int) else number
