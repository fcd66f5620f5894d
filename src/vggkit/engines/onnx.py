"""Computation by ONNX Runtime on processors: the graph is built from the configuration and the weights.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import GraphBuilder, Sides
from vggkit.engines.info import EngineInfo
from vggkit.engines.model_weights import Weights, find_weights
from vggkit.engines.onnx_graph import ONNXOperations
from vggkit.engines.outputs import Output, check_batch, plan_outputs
from vggkit.engines.stream import NamedEngine
from vggkit.errors import MissingExtra
from vggkit.hardware import count_threads

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

TOGETHER: Final = 8
"""Images that are computed together at most: more gain nothing, and their maps leave the caches."""
MOST_CACHED: Final = 4
"""Largest number of open sessions, the last ones used: each size of images has its own."""


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
            self._onnx, self._runtime = import_onnx()
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
        return self._plan.finish(dict(zip(self._plan.computed, outputs, strict=True)), self._source.activation)

    def _find_session(self, size: Sides) -> Any:
        session = self._sessions.pop(size, None) or self._open_session(size)
        self._sessions[size] = session  # in the order of their last use
        while len(self._sessions) > MOST_CACHED:
            del self._sessions[next(iter(self._sessions))]
        return session

    def _open_session(self, size: Sides) -> Any:
        operations = ONNXOperations(self._onnx)
        images = operations.add_input("images", ["N", self._configuration.in_channels, *size])
        builder = GraphBuilder(self._configuration, self._plan, self._source.read(self._plan.keys), operations)
        model = operations.build(builder.build(images, size))
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = count_threads()
        options.log_severity_level = 3  # errors only; warnings about our own model are of no use to users
        constants = operations.large_constants
        values = [self._runtime.OrtValue.ortvalue_from_numpy(value) for value in constants.values()]
        options.add_external_initializers(list(constants), values)
        return self._runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def import_onnx() -> tuple[ModuleType, ModuleType]:
    """The packages; ONNX Runtime sends no telemetry."""
    try:
        import onnx
        import onnxruntime
    except ImportError as problem:
        raise MissingExtra.of("onnx and onnxruntime", "computing with ONNX Runtime", "onnx") from problem
    onnxruntime.disable_telemetry_events()
    return onnx, onnxruntime
