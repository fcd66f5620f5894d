"""The operations of a VGG as nodes of an ONNX model, for the engine and for exported files.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import Sides, Values
from vggkit.engines.outputs import Output
from vggkit.models.configuration import Pooling

StoredWeights = Literal["fp32", "fp16", "int8"]
"""How the weights are stored in a file."""
OPSET: Final = 18
IR_VERSION: Final = 9
_PLACE: Final = "weights"
"""The place of the large constants that a model only names; they are handed over in memory."""
_LEAST_BYTES: Final = 1024


class ONNXOperations:
    """Nodes of ONNX, known by the names of their outputs.

    Args:
        onnx: The package.
        stored: How kernels and matrices are stored: in float32, in float16, or in int8 with a scale for each of
            their outputs. They are computed with in float32.
    """

    def __init__(self, onnx: ModuleType, *, stored: StoredWeights = "fp32") -> None:
        self.onnx, self._stored = onnx, stored
        self._weights: dict[int, tuple[Values, str]] = {}
        self._inputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}

    @property
    def large_constants(self) -> dict[str, NDArray[Any]]:
        """The constants that a model need only name; those of shapes, such as axes, are always in the model."""
        return {name: value for name, value in self._constants.items() if value.nbytes >= _LEAST_BYTES}

    def add_input(self, name: str, shape: Sequence[int | str], *, kind: str = "FLOAT") -> str:
        """An input of the model; sides that have a name in place of a number may have any size."""
        element = getattr(self.onnx.TensorProto, kind)
        self._inputs.append(self.onnx.helper.make_tensor_value_info(name, element, shape))
        return name

    def build(
        self,
        outputs: Mapping[Output, str],
        *,
        shapes: Mapping[Output, Sequence[int | str]] = MappingProxyType({}),
        whole: bool = False,
    ) -> Any:
        """The model of all nodes.

        Args:
            outputs: The node of each output.
            shapes: Their shapes, where these are to be stated.
            whole: Hold all constants, as a file does; else `large_constants` are only named.
        """
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "vgg",
            self._inputs,
            [helper.make_tensor_value_info(name, kind, shapes.get(name)) for name in outputs],
            [self._describe(name, value, whole=whole) for name, value in self._constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vggkit")

    def convolve(self, maps: str, weight: Values, bias: Values | None, padding: int, reads: str | None) -> str:
        given = [maps, self.keep_weight(weight)] + ([] if bias is None else [self.keep(bias)])
        return self._add_node("Conv", given, pads=[padding] * 4)

    def scale(self, maps: str, factor: Values, shift: Values) -> str:
        scaled = self._add_node("Mul", [maps, self.keep(factor.reshape(1, -1, 1, 1))])
        return self._add_node("Add", [scaled, self.keep(shift.reshape(1, -1, 1, 1))])

    def rectify(self, values: str, watched: bool) -> str:
        # Values that are not finite pass its ReLU and its pooling, so no extra output is needed.
        return self._add_node("Relu", [values])

    def normalize_responses(self, maps: str, watched: bool) -> str:
        # As in `models.layers`: alpha is divided by the window here too.
        return self._add_node("LRN", [maps], alpha=5 * 1e-4, beta=0.75, bias=2.0, size=5)

    def pool(self, maps: str, pooling: Pooling, gives: str) -> str:
        kind = "MaxPool" if pooling == "max" else "AveragePool"
        return self._add_node(kind, [maps], kernel_shape=[2, 2], strides=[2, 2])

    def give(self, values: str, name: str) -> str:
        return values

    def fit(self, maps: str, sides: Sides, wanted: Sides) -> str:
        # ONNX has no adaptive pooling; for known sides it is a product from the left and one from the right.
        down, across = (_average_ranges(*pair) for pair in zip(sides, wanted, strict=True))
        return self._add_node("MatMul", [self._add_node("MatMul", [self.keep(down), maps]), self.keep(across.T)])

    def average_windows(self, maps: str, places: Sides) -> str:
        return self._add_node("AveragePool", [maps], kernel_shape=list(places), strides=[1, 1])

    def flatten(self, maps: str) -> str:
        return self._add_node("Flatten", [maps], axis=1)

    def connect(self, rows: str, weight: Values, bias: Values | None, reads: str | None) -> str:
        given = [rows, self.keep_weight(weight)] + ([] if bias is None else [self.keep(bias)])
        return self._add_node("Gemm", given, transB=1)

    def average(self, maps: str) -> str:
        return self._add_node("ReduceMean", [maps, self._sides()], keepdims=0)

    def summarize(self, maps: str, epsilon: float) -> str:
        mean = self._add_node("ReduceMean", [maps, self._sides()], keepdims=1)
        apart = self._add_node("Sub", [maps, mean])
        variance = self._add_node("ReduceMean", [self._add_node("Mul", [apart, apart]), self._sides()], keepdims=0)
        deviation = self._add_node(
            "Sqrt", [self._add_node("Add", [variance, self.keep(np.array([epsilon], np.float32))])]
        )
        return self._add_node("Concat", [self._add_node("Flatten", [mean], axis=1), deviation], axis=1)

    def _sides(self) -> str:
        return self.keep(np.array([2, 3], np.int64))

    def _add_node(self, kind: str, given: list[str], **attributes: Any) -> str:
        """The name of a new node's output."""
        name = f"{kind} {len(self._nodes)}"
        self._nodes.append(self.onnx.helper.make_node(kind, given, [name], **attributes))
        return name

    def keep(self, value: NDArray[Any]) -> str:
        """The name of a constant."""
        name = f"constant {len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(value)
        return name

    def keep_weight(self, weight: Values) -> str:
        """The name of a kernel or a matrix (out, …) in float32; the same array is stored once."""
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight, self._store(weight)
        return self._weights[id(weight)][1]

    def _store(self, weight: Values) -> str:
        match self._stored:
            case "fp32":
                return self.keep(weight)
            case "fp16":
                return self._add_node(
                    "Cast", [self.keep(weight.astype(np.float16))], to=self.onnx.TensorProto.FLOAT
                )
            case "int8":
                largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
                scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
                levels = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
                return self._add_node("DequantizeLinear", [self.keep(levels), self.keep(scale)], axis=0)

    def _describe(self, name: str, value: NDArray[Any], *, whole: bool) -> Any:
        """A constant with its values, or where it is large without them."""
        if whole or value.nbytes < _LEAST_BYTES:
            return self.onnx.numpy_helper.from_array(value, name)
        proto = self.onnx.TensorProto
        described = proto(name=name, data_type=proto.FLOAT, dims=value.shape, data_location=proto.EXTERNAL)
        described.external_data.add(key="location", value=_PLACE)
        return described


def _average_ranges(length: int, wanted: int) -> Values:
    """The matrix (wanted, length) that averages as adaptive pooling does."""
    matrix = np.zeros((wanted, length), np.float32)
    for place in range(wanted):
        first, last = place * length // wanted, math.ceil((place + 1) * length / wanted)
        matrix[place, first:last] = 1 / (last - first)
    return matrix
