"""Computation by ncnn on processors, in float32 with Winograd's convolution: the graph is built from the
configuration and the weights.

No torch here. Shape letters: N images, C channels, H and W pixels, F features.
"""

import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import GraphBuilder, Sides, bound_trunk, can_overflow
from vggkit.engines.info import EngineInfo
from vggkit.engines.model_weights import Weights, find_weights
from vggkit.engines.ncnn_graph import Blob, NCNNOperations, NetLayers
from vggkit.engines.outputs import Output, check_batch, plan_outputs
from vggkit.engines.stream import NamedEngine
from vggkit.errors import MissingExtra
from vggkit.hardware import count_threads

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

MOST_CACHED: Final = 6
"""Largest number of nets, the last ones used; images of most sizes share them."""
MOST_SIZES: Final = 64
"""Largest number of sizes of images whose nets are known."""
PROCESSORS_AN_IMAGE: Final = 4
"""With fewer images than one for so many processors, all processors work on one image after another."""
WINOGRAD_GAIN: Final = 2e6
"""The largest value within Winograd's F(6, 3), in multiples of a bound of the convolution's values: the sums of
magnitudes in a row of its transforms are 15 of the input, 1.25 of kernels and 69 of the output, each twice."""

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Net:
    """ncnn's text of a net, and what is taken from it: the values, and their names in the text."""

    text: str
    values: tuple[Blob, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Program:
    """What is computed for images of one size."""

    each: _Net
    """Of one image."""
    joined: Blob | None
    """The value of it that the second net reads, of all images."""
    together: _Net
    outputs: tuple[Blob, ...]
    """The plan's outputs."""
    watched: tuple[Blob, ...]
    """Values that are not finite where one overflowed."""
    direct: bool
    """Whether sums are as large as the results: Winograd's are larger, and overflow earlier."""


class NCNNEngine(NamedEngine):
    """Runs a VGG with ncnn on the processor, in float32. Threads may share it.

    A single image has all processors; several are computed side by side, each by one thread, and fully connected
    layers compute all of them together, so that their weights are read once. Images of every size share a net. For
    an image whose values overflow in some layer all outputs are NaN.

    Args:
        weights: A VGG, or a ModelFile, which needs no torch.
        output: The output for each image, or several names.

    Raises UnknownName, MissingExtra without ncnn, and BadCheckpoint.
    """

    def __init__(self, weights: "Weights | VGG", *, output: Output | Sequence[Output] = "logits") -> None:
        self._source = find_weights(weights)
        self._configuration = self._source.configuration
        self._plan = plan_outputs(self._configuration, output)
        self.outputs = self._plan.names
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._source.read, self._plan.keys)
            self._ncnn = import_ncnn()
            reading.result()
        self.info = EngineInfo(name="ncnn", precision="fp32", device="cpu", version=self._ncnn.__version__)
        self._programs: dict[tuple[Sides, bool, bool], _Program] = {}
        self._nets: dict[tuple[str, bool, bool], Any] = {}
        self._bound: float | None = None
        self._choosing = Lock()

    def compute(self, batch: NDArray[np.float32]) -> dict[Output, NDArray[np.float32]]:
        """Every output by its name, of one pass."""
        check_batch(self._configuration, batch)
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        with self._choosing:
            program, nets, few = self._choose(batch)
        side_by_side = 1 if few else min(count_threads(), len(batch))
        # New threads for each call: those of OpenMP belong to the thread that began them, and in a forked process
        # its first thread would wait for some that are not there.
        with ThreadPoolExecutor(side_by_side, thread_name_prefix="ncnn") as pool:
            found = _compute(self._ncnn, nets[0], program.each, batch, pool)
            if program.joined is not None and program.together.values:
                rows = found[program.joined].reshape(len(batch), -1)
                given = rows if few else np.ascontiguousarray(rows.T)[None, :, None]
                of_rows = _compute(self._ncnn, nets[1], program.together, given, pool)
                found |= {blob: values if few else values[0, :, 0].T for blob, values in of_rows.items()}
        lost = np.zeros(len(batch), bool)
        for blob in program.watched:
            lost |= ~np.isfinite(found[blob].reshape(len(batch), -1)).all(axis=1)
        computed = {name: found[blob] for name, blob in zip(self._plan.computed, program.outputs, strict=True)}
        for values in computed.values():
            values[lost] = np.nan
        return self._plan.finish(computed, self._source.activation)

    def _choose(self, batch: Rows) -> tuple[_Program, list[Any], bool]:
        """What is computed, by which nets, and whether all processors work on one image after another."""
        if self._bound is None:
            self._bound = bound_trunk(self._configuration, self._plan, self._source.read(self._plan.keys))
        # Nothing but the number of images decides it: the two ways sum in another order.
        few = len(batch) * PROCESSORS_AN_IMAGE < max(count_threads(), 2 * PROCESSORS_AN_IMAGE)
        key = (batch.shape[2], batch.shape[3]), can_overflow(self._bound * WINOGRAD_GAIN, batch), few
        operations = None
        if key not in self._programs:
            self._programs[key], operations = self._build(*key)
            if len(self._programs) > MOST_SIZES:
                del self._programs[next(iter(self._programs))]
        program = self._programs[key]
        nets = []
        for described, is_first in ((program.each, True), (program.together, False)):
            place = described.text, few, program.direct
            net = self._nets.pop(place, None) if described.values else None
            if net is None and described.values:
                operations = operations or self._build(*key)[1]
                net = _load(
                    self._ncnn,
                    described.text,
                    (operations.each if is_first else operations.together).list_weights(),
                    threads=count_threads() if few or not is_first else 1,
                    packed=is_first or not few,
                    direct=program.direct,
                )
            if net is not None:
                self._nets[place] = net  # in the order of their last use
            nets.append(net)
        while len(self._nets) > MOST_CACHED:
            del self._nets[next(iter(self._nets))]
        return program, nets, few

    def _build(self, size: Sides, watched: bool, few: bool) -> tuple[_Program, NCNNOperations]:
        operations = NCNNOperations(several=not few)
        weights = self._source.read(self._plan.keys)
        builder = GraphBuilder[Blob](self._configuration, self._plan, weights, operations, watch_trunk=watched)
        outputs = tuple(builder.build(operations.images, size).values())
        wanted = dict.fromkeys([*outputs, *operations.watched])
        joined = [] if operations.joined is None else [operations.joined]
        program = _Program(
            each=_describe(operations.each, [*(blob for blob in wanted if not blob.together), *joined]),
            joined=operations.joined,
            together=_describe(operations.together, [blob for blob in wanted if blob.together]),
            outputs=outputs,
            watched=tuple(operations.watched),
            direct=watched,
        )
        return program, operations


def _describe(layers: NetLayers, values: Sequence[Blob]) -> _Net:
    values = tuple(dict.fromkeys(values))
    text, names = layers.write([blob.name for blob in values])
    return _Net(text, values, tuple(names))


def _load(
    ncnn: ModuleType, text: str, weights: Sequence[NDArray[np.generic]], *, threads: int, packed: bool, direct: bool
) -> Any:
    """A net; ncnn copies the weights, or stores what its algorithms make of them.

    `packed`: weights are stored in the order that maps need, which takes twice the time; a row gains nothing by it.
    """
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_packing_layout = packed
    net.opt.use_winograd_convolution = not direct
    # Otherwise matrices are kept in float16.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.openmp_blocktime = 0
    failed = net.load_param_mem(text)
    with ThreadPoolExecutor(1) as pool:  # a new thread, as in `compute`
        failed = failed or pool.submit(net.load_model, _make_reader(ncnn, weights)).result()
    assert not failed, "ncnn does not read what was written for it"
    return net


def _make_reader(ncnn: ModuleType, weights: Sequence[NDArray[np.generic]]) -> Any:
    """An object from which ncnn reads these arrays, one after another, without a copy of all of them between."""
    find_name, find_place = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    find_name.argtypes, find_name.restype = [ctypes.py_object], ctypes.c_char_p
    find_place.argtypes, find_place.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    waiting = iter(weights)

    class Reader(ncnn.DataReader):  # type: ignore[name-defined, misc]
        def read(self, place: object, size: int) -> int:
            values = np.ascontiguousarray(next(waiting))
            assert values.nbytes == size, f"ncnn reads {size} bytes, and the next array has {values.nbytes}"
            ctypes.memmove(find_place(place, find_name(place)), values.ctypes.data, size)
            return size

    return Reader()


def _compute(
    ncnn: ModuleType, net: Any, described: _Net, inputs: Rows, pool: ThreadPoolExecutor
) -> dict[Blob, Rows]:
    """The values of a net for each input, in the threads of a pool.

    An input is an image (C, H, W), the row (F,) of one, or the rows of several as maps (F, 1, N).
    """
    found = pool.map(lambda each: _extract(ncnn, net, described.names, each), inputs)
    return dict(zip(described.values, map(np.stack, zip(*found, strict=True)), strict=True))


def _extract(ncnn: ModuleType, net: Any, names: Sequence[str], given: Rows) -> list[Rows]:
    extractor = net.create_extractor()
    extractor.input(net.input_indexes()[0], ncnn.Mat(given))
    found = []
    for name in names:
        failed, values = extractor.extract(name)
        assert not failed, f"ncnn does not give {name}"
        found.append(np.array(values))
    return found


def import_ncnn() -> ModuleType:
    """The package, with threads of its own that do not wait actively.

    Otherwise OpenMP's threads wait for each other in a loop, which beside other work on the machine took three
    times as long; and where torch was imported first, the dynamic linker would give ncnn torch's threads.
    """
    spec = importlib.util.find_spec("ncnn")
    if spec is None:
        raise MissingExtra.of("ncnn", "computing with ncnn", "ncnn")
    if "ncnn" not in sys.modules and sys.platform.startswith("linux"):
        own = importlib.machinery.PathFinder.find_spec("ncnn.ncnn", spec.submodule_search_locations)
        if own is not None and own.origin is not None:
            _load_library(own.origin)
    return importlib.import_module("ncnn")


def _load_library(path: str) -> None:
    """The library with its own OpenMP, which reads the environment when it is loaded."""
    given = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW | getattr(os, "RTLD_DEEPBIND", 0))
    except OSError:
        pass  # the import that follows says what is wrong
    finally:
        if given is None:
            del os.environ["OMP_WAIT_POLICY"]
