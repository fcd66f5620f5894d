"""Computation by OpenVINO on processors: the graph is built from the configuration and the weights.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

import importlib
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import GraphBuilder, Sides, bound_trunk, can_overflow
from vggkit.engines.info import EngineInfo
from vggkit.engines.model_weights import Weights, find_weights
from vggkit.engines.openvino_graph import Node, OpenVINOOperations
from vggkit.engines.outputs import (
    Output,
    Precision,
    Ranges,
    check_batch,
    check_precision,
    list_reads,
    plan_outputs,
)
from vggkit.engines.stream import NamedEngine
from vggkit.errors import BadConfiguration, MissingExtra
from vggkit.hardware import computes_bf16, count_threads, multiplies_bytes
from vggkit.models.configuration import Configuration

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

TOGETHER: Final = 8
"""Images that one request takes at most: more gain nothing, and their maps leave the caches."""
MOST_CACHED: Final = 8
"""Largest number of compiled models, the last ones used: each size of images has its own."""
PROCESSORS_A_STREAM: Final = 4
"""With fewer images than one for so many processors, all processors work on one image after another."""

Haste = Literal["LATENCY", "THROUGHPUT"]


class OpenVINOEngine(NamedEngine):
    """Runs a VGG on the processor, with a copy of its current weights. Threads may share it.

    A single image has all processors; of several, requests of a few each run side by side. A model is
    compiled when images of its size come, which takes a tenth of a second: less than a compiled one would
    take to be read (docs/decisions/engines.md). For an image whose values overflow
    in some layer all outputs are NaN: OpenVINO's ReLU turns NaN into 0, and the result would look valid.

    Args:
        weights: A VGG, or a ModelFile, which needs no torch.
        output: The output for each image, or several names.
        precision: bf16 is several times as fast where the processor multiplies bfloat16, and float32 elsewhere;
            what follows the last product, such as statistics of a map, is computed in float32 all the same.
            int8 is as fast again, and rounds coarsely: weights to 8 bits where the processor sums products of
            bytes without saturation, elsewhere to 7. Each of several outputs is then computed in a separate pass.
        activation_ranges: The result of `measure_ranges`, for int8.
        as_read: In int8, compute several outputs in one pass. What a convolution or matrix reads is then given as
            it reads it, rounded to 256 steps. For outputs that such layers read, and for logits and features.

    Raises UnknownName, BadConfiguration, MissingExtra without OpenVINO, and BadCheckpoint.
    """

    def __init__(
        self,
        weights: "Weights | VGG",
        *,
        output: Output | Sequence[Output] = "logits",
        precision: Precision = "fp32",
        activation_ranges: Ranges | None = None,
        as_read: bool = False,
    ) -> None:
        check_precision(precision, activation_ranges)
        if precision == "int8":
            _check_ranges(find_weights(weights).configuration, activation_ranges or {})
        self._ranges: Ranges = activation_ranges or {}
        self._as_read = as_read
        self._source = find_weights(weights)
        self._configuration = self._source.configuration
        self._plan = plan_outputs(self._configuration, output)
        self.outputs = self._plan.names
        # A file comes from the disk while OpenVINO is imported.
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._source.read, self._plan.keys)
            self._openvino = import_openvino()
            reading.result()
        # Between products of bytes bfloat16 is a twentieth faster.
        self._kind = "bf16" if precision != "fp32" and computes_bf16("cpu") else "f32"
        bits = 8 if multiplies_bytes() else 7
        self.info = EngineInfo(
            name="openvino",
            precision="int8" if precision == "int8" else "bf16" if self._kind == "bf16" else "fp32",
            device="cpu",
            version=self._openvino.__version__,
            weight_bits=bits if precision == "int8" else None,
        )
        # If the output of a product is read twice, OpenVINO's rounding loses the operation after it.
        several = (
            self._plan.computed if precision == "int8" and len(self._plan.computed) > 1 and not as_read else ()
        )
        self._alone = {
            name: OpenVINOEngine(
                self._source, output=name, precision=precision, activation_ranges=activation_ranges
            )
            for name in several
        }
        self._models: dict[tuple[Sides, Haste, bool], _Compiled] = {}
        self._few = False
        self._bound: float | None = None
        self._choosing = Lock()

    def compute(self, batch: NDArray[np.float32]) -> dict[Output, NDArray[np.float32]]:
        """Every output by its name, of one pass."""
        check_batch(self._configuration, batch)
        if self._alone:
            alone = {name: each.run(batch) for name, each in self._alone.items()}
            return self._plan.finish(alone, self._source.activation)
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        with self._choosing:
            model = self._choose_model(batch)
        found = model.run(batch)
        return self._plan.finish(dict(zip(self._plan.computed, found, strict=True)), self._source.activation)

    def _choose_model(self, batch: NDArray[np.float32]) -> "_Compiled":
        size = batch.shape[2], batch.shape[3]
        if self._bound is None:  # rounded to bytes, values are within their ranges
            read = self._source.read(self._plan.keys) if not self._ranges else {}
            self._bound = bound_trunk(self._configuration, self._plan, read) if read else 0.0
        watched = can_overflow(self._bound, batch)
        key = size, self._choose_haste(size, len(batch), watched), watched
        model = self._models.pop(key, None) or self._compile(*key)
        self._models[key] = model  # in the order of their last use
        while len(self._models) > MOST_CACHED:
            del self._models[next(iter(self._models))]
        return model

    def _choose_haste(self, size: Sides, count: int, watched: bool) -> Haste:
        """Few images in one request with all processors, or many in several."""
        before, self._few = self._few, count * PROCESSORS_A_STREAM < max(count_threads(), 2 * PROCESSORS_A_STREAM)
        there = [haste for (sides, haste, watches) in self._models if (sides, watches) == (size, watched)]
        # The last, smaller batch is not worth a separate model with its own copy of the weights.
        rest = there == ["THROUGHPUT"] and not before
        return "LATENCY" if self._few and not rest else "THROUGHPUT"

    def _compile(self, size: Sides, haste: Haste, watched: bool) -> "_Compiled":
        openvino = self._openvino
        shape = openvino.PartialShape([-1, self._configuration.in_channels, *size])
        images = openvino.opset13.parameter(shape, openvino.Type.f32)
        operations = OpenVINOOperations(openvino, self._ranges, self._plan.computed, as_read=self._as_read)
        weights = self._source.read(self._plan.keys)
        builder = GraphBuilder[Node](self._configuration, self._plan, weights, operations, watch_trunk=watched)
        nodes = [*builder.build(images, size).values(), *operations.list_sums()]
        results = [openvino.opset13.result(node) for node in nodes]
        options = {"PERFORMANCE_HINT": haste, "INFERENCE_PRECISION_HINT": self._kind}
        model = _open_core(os.getpid()).compile_model(openvino.Model(results, [images]), "CPU", options)
        return _Compiled(model, len(self._plan.computed))


class _Compiled:
    """A compiled model; requests of each call run side by side, and calls of several threads too."""

    def __init__(self, model: Any, outputs: int) -> None:
        self._model, self._outputs = model, outputs
        self._side_by_side: int = model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")

    def run(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Each output of the batch; NaN for an image whose sums are not finite."""
        each = min(TOGETHER, math.ceil(len(batch) / self._side_by_side))
        starts = range(0, len(batch), each)
        # Not OpenVINO's queue: its callbacks wait for the interpreter, and its end for its callbacks.
        requests = [self._model.create_infer_request() for _ in range(min(self._side_by_side, len(starts)))]
        found: list[list[NDArray[np.float32]]] = []
        for number, first in enumerate(starts):
            request = requests[number % len(requests)]
            if number >= len(requests):
                found.append(self._finish(request))
            request.start_async({0: batch[first : first + each]}, share_inputs=True)
        for number in range(len(found), len(starts)):
            found.append(self._finish(requests[number % len(requests)]))
        whole = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        given, sums = whole[: self._outputs], whole[self._outputs :]
        for values in sums:
            lost = ~np.isfinite(values).all(axis=1)
            for output in given:
                output[lost] = np.nan
        return given

    def _finish(self, request: Any) -> list[NDArray[np.float32]]:
        request.wait()
        return [request.get_output_tensor(place).data.copy() for place in range(len(self._model.outputs))]


def _check_ranges(configuration: Configuration, activation_ranges: Ranges) -> None:
    """Raise BadConfiguration where ranges are of another network."""
    names = list_reads(configuration)
    if missing := [name for name in names if name not in activation_ranges]:
        raise BadConfiguration(
            f"the activation ranges are not of this network: {', '.join(missing[:4])} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Measure them again: vggkit bench MODEL IMAGES "
            "--keep-ranges"
        )


def import_openvino() -> ModuleType:
    """OpenVINO without its model converter, which takes a third of the time and sends telemetry.

    `openvino.convert_model` remains available in this process, and is imported at its first use.
    """
    converter = "openvino.tools.ovc"
    new = "openvino" not in sys.modules and converter not in sys.modules
    if new:
        sys.modules[converter] = None  # type: ignore[assignment]  # OpenVINO works without it
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as problem:
        raise MissingExtra.of("openvino", "computing with OpenVINO", "fast") from problem
    finally:
        if new:
            del sys.modules[converter]
    if new and not hasattr(openvino, "convert_model"):
        openvino.__getattr__ = _find_converter  # type: ignore[method-assign]
    return openvino


@cache
def _open_core(process: int) -> Any:
    """OpenVINO's core of this process, for all of its life.

    A core gives the thread that makes it a stack for signal handlers, and takes it away in whatever thread frees
    it: the next signal of the first thread would then end the process.
    """
    return import_openvino().Core()


def _find_converter(name: str) -> Any:
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return importlib.import_module("openvino.tools.ovc").convert_model
