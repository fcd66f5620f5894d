"""ONNX files: the engine's graph between the preparation of images and the softmax or sigmoid.

No torch here. Shape letters: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggkit._version import __version__
from vggkit.engines.graph_builder import GraphBuilder, Values
from vggkit.engines.model_weights import Weights
from vggkit.engines.onnx import import_onnx
from vggkit.engines.onnx_graph import ONNXOperations
from vggkit.engines.outputs import plan_outputs
from vggkit.errors import BadConfiguration
from vggkit.exporting.heatmap import HEATMAP, add_heatmap, list_needs
from vggkit.exporting.image_steps import ImageSteps
from vggkit.exporting.plan import FITTED, INPUT, ExportPlan
from vggkit.hardware import count_threads
from vggkit.images.resizing import Interpolation
from vggkit.task import Activation

MOST_BYTES = 2**31 - 2**20
"""The limit of protobuf, ONNX's file format, less some room for the graph."""
Number = str
"""The name of a tensor of one int64."""


def write_onnx(weights: Weights, plan: ExportPlan, target: Path) -> None:
    """Write the file; raises BadConfiguration for a network above 2 GiB, MissingExtra and OSError."""
    onnx, _ = import_onnx()
    target.write_bytes(_build(onnx, weights, plan).SerializeToString())


def open_onnx(path: Path) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], str]:
    """A function that computes the first output of images (N, H, W, C), and the runtime's name and version."""
    _, runtime = import_onnx()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = count_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0], f"onnxruntime {runtime.__version__}"


def _build(onnx: ModuleType, weights: Weights, plan: ExportPlan) -> Any:
    """The model, as a ModelProto."""
    operations = ONNXImageOperations(onnx, stored=plan.precision)
    images = operations.add_input(INPUT, plan.input_shape, kind="UINT8")
    steps = ImageSteps(plan, operations)
    maps = steps.fit(images)
    found = {FITTED: maps}
    wanted = [name for name in plan.outputs if name not in (FITTED, HEATMAP)]
    if HEATMAP in plan.outputs:
        wanted = list(dict.fromkeys([*wanted, *list_needs(plan.configuration)]))
    network_plan = plan_outputs(plan.configuration, wanted or "logits")
    if plan.outputs != (FITTED,):
        values = weights.read(network_plan.keys)
        if (
            sum(value.nbytes for value in values.values()) // {"fp32": 1, "fp16": 2, "int8": 4}[plan.precision]
            > MOST_BYTES
        ):
            raise BadConfiguration("an ONNX file holds 2 GiB, and this network is larger; name a .xml file")
        builder = GraphBuilder(plan.configuration, network_plan, values, operations)
        found |= builder.build(steps.normalize(maps), (plan.crop_pixels,) * 2)
        if "probabilities" in plan.outputs:
            found["probabilities"] = operations.activate(found["logits"], plan.card.activation)
        if HEATMAP in plan.outputs:
            found[HEATMAP] = add_heatmap(operations, weights, found)
    model = operations.build(
        {name: found[name] for name in plan.outputs},
        shapes={"probabilities": ("N", plan.configuration.num_classes), FITTED: ("N", "C", "H", "W")}
        | {HEATMAP: ("N", "h", "w")},
        whole=True,
    )
    versions = {"onnx": onnx.__version__}
    onnx.helper.set_model_props(model, plan.to_metadata(versions))
    model.producer_version = __version__
    return model


class ONNXImageOperations(ONNXOperations):
    """Nodes of ONNX that prepare images."""

    def arrange(self, images: str) -> str:
        return self._add_node("Transpose", [images], perm=[0, 3, 1, 2])

    def measure(self, maps: str) -> tuple[Number, Number]:
        shape = self._add_node("Shape", [maps])
        height, width = (self._add_node("Gather", [shape, self._number(axis)], axis=0) for axis in (2, 3))
        return height, width

    def add(self, number: Number, other: Number | int) -> Number:
        return self._add_node("Add", [number, self._number(other)])

    def subtract(self, number: Number | int, other: Number) -> Number:
        return self._add_node("Sub", [self._number(number), other])

    def multiply(self, number: Number, factor: Number | int) -> Number:
        return self._add_node("Mul", [number, self._number(factor)])

    def divide(self, number: Number, by: Number | int) -> Number:
        return self._add_node("Div", [number, self._number(by)])

    def smaller(self, number: Number, other: Number | int) -> Number:
        return self._add_node("Min", [number, self._number(other)])

    def larger(self, number: Number, other: Number | int) -> Number:
        return self._add_node("Max", [number, self._number(other)])

    def resize(self, maps: str, sides: tuple[Number | int, Number | int], interpolation: Interpolation) -> str:
        # ONNX Runtime misrounds `scales`. By default it repeats the border outside the image, which is up to 16
        # levels off there; with `exclude_outside` the result for bytes is Pillow's within a level or two.
        mode = {"bilinear": "linear", "bicubic": "cubic"}[interpolation]
        ahead = self._add_node("Slice", [self._add_node("Shape", [maps]), *map(self._number, (0, 2))])
        sizes = self._add_node("Concat", [ahead, *map(self._number, sides)], axis=0)
        return self._add_node(
            "Resize",
            [maps, "", "", sizes],
            mode=mode,
            antialias=1,
            exclude_outside=1,
            cubic_coeff_a=-0.5,
            coordinate_transformation_mode="half_pixel",
        )

    def widen(self, maps: str) -> str:
        return self._add_node("Cast", [maps], to=self.onnx.TensorProto.FLOAT)

    def pad(self, maps: str, before: tuple[Number, Number], after: tuple[Number, Number]) -> str:
        pads = self._add_node("Concat", [*before, *after], axis=0)
        return self._add_node("Pad", [maps, pads, "", self.keep(np.array([2, 3]))])

    def cut(self, maps: str, first: tuple[Number, Number], side: int, channels: int) -> str:
        starts = self._add_node("Concat", [*first], axis=0)
        ends = self._add_node("Add", [starts, self._number(side)])
        part = self._add_node("Slice", [maps, starts, ends, self.keep(np.array([2, 3]))])
        return self._add_node("Reshape", [part, self.keep(np.array([0, channels, side, side]))])

    def reverse(self, maps: str) -> str:
        return self._add_node("Gather", [maps, self.keep(np.array([2, 1, 0]))], axis=1)

    def weigh(self, maps: str, weights: tuple[float, ...], shift: float, divisor: float) -> str:
        kernel = np.array(weights, np.float32).reshape(1, -1, 1, 1)
        summed = self._add_node("Conv", [maps, self.keep(kernel), self.keep(np.array([shift], np.float32))])
        return self._add_node("Floor", [self._add_node("Div", [summed, self.keep(np.array(divisor, np.float32))])])

    def shift(self, maps: str, values: tuple[float, ...]) -> str:
        return self._add_node("Add", [maps, self.keep(np.array(values, np.float32).reshape(1, -1, 1, 1))])

    def divide_by(self, maps: str, values: tuple[float, ...]) -> str:
        return self._add_node("Div", [maps, self.keep(np.array(values, np.float32).reshape(1, -1, 1, 1))])

    def activate(self, logits: str, activation: Activation) -> str:
        if activation.temperature != 1:
            logits = self._add_node("Div", [logits, self.keep(np.array(activation.temperature, np.float32))])
        if activation.task == "multi-label":
            return self._add_node("Sigmoid", [logits])
        return self._add_node("Softmax", [logits], axis=1)

    def choose_largest(self, logits: str) -> str:
        return self._add_node("ArgMax", [logits], axis=1, keepdims=0)

    def take_rows(self, matrix: Values, places: str) -> str:
        return self._add_node("Gather", [self.keep_weight(matrix), places])

    def apply(self, rows: str, matrix: Values) -> str:
        return self._add_node("MatMul", [rows, self.keep_weight(matrix)])

    def gate(self, rows: str, by: str) -> str:
        is_open = self._add_node(
            "Greater", [self._add_node("Flatten", [by], axis=1), self.keep(np.array(0, np.float32))]
        )
        return self._add_node("Mul", [rows, self._add_node("Cast", [is_open], to=self.onnx.TensorProto.FLOAT)])

    def combine(self, maps: str, rows: str) -> str:
        weighted = self._add_node("Mul", [maps, self._add_node("Unsqueeze", [rows, self._sides()])])
        return self._add_node("ReduceSum", [weighted, self.keep(np.array([1]))], keepdims=0)

    def _number(self, number: Number | int) -> Number:
        return self.keep(np.array([number])) if isinstance(number, int) else number
