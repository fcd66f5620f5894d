"""Computation by ONNX Runtime on processors: the graph is built from the configuration and the weights.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import GraphBuilder, Sides, Values
from vggkit.engines.info import EngineInfo
from vggkit.engines.model_weights import Weights, find_weights
from vggkit.engines.outputs import Output, check_batch, plan_outputs
from vggkit.engines.stream import NamedEngine
from vggkit.errors import MissingExtra
from vggkit.hardware import count_threads
from vggkit.models.configuration import Pooling

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

TOGETHER: Final = 8
"""Images that are computed together at most: more gain nothing, and their maps leave the caches."""
MOST_CACHED: Final = 4
"""Largest number of open sessions, the last ones used: each size of images has its own."""
OPSET: Final = 18
IR_VERSION: Final = 9
_PLACE: Final = "weights"
"""The place of the weights that the ONNX model names; they are handed over in memory."""
_LEAST_BYTES: Final = 1024


class ONNXEngine(NamedEngine):
    """Runs a VGG with ONNX Runtime on the processor, in float32: it has no bfloat16 there. Threads may share it.

    Args:
        weights: A VGG, or a ModelFile, which needs no torch.
        output: The output for each image, or several names.

    Raises UnknownName, MissingExtra without onnx and onnxruntime, and BadCheckpoint.
    """

    def __init__(self, weights: "Weights | VGG", *, output: Output | Sequence[Output] = "logits") -> None:
        self._source = find_weights(weights)
        self._configuration = self._source.configuration
        self._plan = plan_outputs(self._configuration, output)
        self.outputs = self._plan.names
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._source.read, self._plan.keys)
            self._onnx, self._runtime = _import_onnx()
            reading.result()
        self.info = EngineInfo(name="onnx", precision="fp32", device="cpu", version=self._runtime.__version__)
        self._sessions: dict[Sides, Any] = {}
        self._choosing = Lock()

    def compute(self, batch: NDArray[np.float32]) -> dict[Output, NDArray[np.float32]]:
        """Every output by its name, of one pass."""
        check_batch(self._configuration, batch)
        with self._choosing:
            session = self._find_session((batch.shape[2], batch.shape[3]))
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        parts = [
            session.run(None, {"images": batch[first : first + TOGETHER]})
            for first in range(0, len(batch), TOGETHER)
        ]
        outputs = (np.concatenate(each) for each in zip(*parts, strict=True))
        return self._plan.finish(dict(zip(self._plan.computed, outputs, strict=True)), self._source.temperature)

    def _find_session(self, size: Sides) -> Any:
        session = self._sessions.pop(size, None) or self._open_session(size)
        self._sessions[size] = session  # in the order of their last use
        while len(self._sessions) > MOST_CACHED:
            del self._sessions[next(iter(self._sessions))]
        return session

    def _open_session(self, size: Sides) -> Any:
        operations = _Operations(self._onnx)
        builder = GraphBuilder(self._configuration, self._plan, self._source.read(self._plan.keys), operations)
        found = builder.build("images", size)
        model = operations.build(found, ["N", self._configuration.in_channels, *size])
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = count_threads()
        options.log_severity_level = 3  # errors only; warnings about our own model are of no use to users
        constants = operations.initializers
        values = [self._runtime.OrtValue.ortvalue_from_numpy(value) for value in constants.values()]
        options.add_external_initializers(list(constants), values)
        return self._runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


class _Operations:
    """Nodes of ONNX, known by the names of what they give."""

    def __init__(self, onnx: ModuleType) -> None:
        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}

    @property
    def initializers(self) -> dict[str, Values]:
        """The constants that the model only names; those of shapes, such as axes, are in the model itself."""
        return {name: value for name, value in self._constants.items() if value.nbytes >= _LEAST_BYTES}

    def build(self, outputs: Mapping[Output, str], shape: Sequence[int | str]) -> Any:
        """The model of all nodes, for images of that shape."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [f"output {name}"]))
        graph = helper.make_graph(
            self._nodes,
            "vgg",
            [helper.make_tensor_value_info("images", kind, shape)],
            [helper.make_tensor_value_info(f"output {name}", kind, None) for name in outputs],
            [self._describe(name, value) for name, value in self._constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="vggkit")

    def convolve(self, maps: str, weight: Values, bias: Values | None, padding: int, reads: str | None) -> str:
        given = [maps, self._keep(weight)] + ([] if bias is None else [self._keep(bias)])
        return self._add("Conv", given, pads=[padding] * 4)

    def scale(self, maps: str, factor: Values, shift: Values) -> str:
        scaled = self._add("Mul", [maps, self._keep(factor.reshape(1, -1, 1, 1))])
        return self._add("Add", [scaled, self._keep(shift.reshape(1, -1, 1, 1))])

    def rectify(self, values: str, watched: bool) -> str:
        # Values that are not finite pass its ReLU and its pooling, so no extra output is needed.
        return self._add("Relu", [values])

    def normalize_responses(self, maps: str, watched: bool) -> str:
        # As in `models.layers`: alpha is divided by the window here too.
        return self._add("LRN", [maps], alpha=5 * 1e-4, beta=0.75, bias=2.0, size=5)

    def pool(self, maps: str, pooling: Pooling, gives: str) -> str:
        kind = "MaxPool" if pooling == "max" else "AveragePool"
        return self._add(kind, [maps], kernel_shape=[2, 2], strides=[2, 2])

    def fit(self, maps: str, sides: Sides, wanted: Sides) -> str:
        # ONNX has no adaptive pooling; for known sides it is a product from the left and one from the right.
        down, across = (_average_ranges(*pair) for pair in zip(sides, wanted, strict=True))
        return self._add("MatMul", [self._add("MatMul", [self._keep(down), maps]), self._keep(across.T)])

    def average_windows(self, maps: str, places: Sides) -> str:
        return self._add("AveragePool", [maps], kernel_shape=list(places), strides=[1, 1])

    def flatten(self, maps: str) -> str:
        return self._add("Flatten", [maps], axis=1)

    def connect(self, rows: str, weight: Values, bias: Values | None, reads: str | None) -> str:
        given = [rows, self._keep(weight)] + ([] if bias is None else [self._keep(bias)])
        return self._add("Gemm", given, transB=1)

    def average(self, maps: str) -> str:
        return self._add("ReduceMean", [maps, self._sides()], keepdims=0)

    def summarize(self, maps: str, epsilon: float) -> str:
        mean = self._add("ReduceMean", [maps, self._sides()], keepdims=1)
        apart = self._add("Sub", [maps, mean])
        variance = self._add("ReduceMean", [self._add("Mul", [apart, apart]), self._sides()], keepdims=0)
        deviation = self._add("Sqrt", [self._add("Add", [variance, self._keep(np.array([epsilon], np.float32))])])
        return self._add("Concat", [self._add("Flatten", [mean], axis=1), deviation], axis=1)

    def _sides(self) -> str:
        return self._keep(np.array([2, 3], np.int64))

    def _add(self, kind: str, given: list[str], **attributes: Any) -> str:
        name = f"{kind} {len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, given, [name], **attributes))
        return name

    def _keep(self, value: NDArray[Any]) -> str:
        name = f"constant {len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(value)
        return name

    def _describe(self, name: str, value: NDArray[Any]) -> Any:
        """A constant: small ones whole, others without their values."""
        if value.nbytes < _LEAST_BYTES:
            return self._onnx.numpy_helper.from_array(value, name)
        proto = self._onnx.TensorProto
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


def _import_onnx() -> tuple[ModuleType, ModuleType]:
    """The packages; ONNX Runtime sends no telemetry."""
    try:
        import onnx
        import onnxruntime
    except ImportError as problem:
        raise MissingExtra.of("onnx and onnxruntime", "computing with ONNX Runtime", "onnx") from problem
    onnxruntime.disable_telemetry_events()
    return onnx, onnxruntime
