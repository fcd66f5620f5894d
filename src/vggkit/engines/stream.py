"""Images in, rows out, in order: threads decode while the engine computes.

Shape letters: N images, C channels, H and W pixels, K classes, F features.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.info import EngineInfo
from vggkit.errors import BadImage
from vggkit.hardware import count_threads
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing

Given = TypeVar("Given")
Known = TypeVar("Known")
Rows = NDArray[np.float32]


class Engine(Protocol):
    """Any object that computes a row for each preprocessed image."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows (N, K) or (N, F) of images (N, C, H, W), or maps, as requested."""


class NamedEngine(Engine, Protocol):
    """An engine that can give several outputs of an image in one pass; `engines.outputs` names them."""

    info: EngineInfo
    """Library, version, precision and device."""
    outputs: tuple[str, ...]
    """The names of the inputs."""

    @abstractmethod
    def compute(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Every output by its name, of one pass: rows (N, F), or maps (N, C, H, W)."""

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output of preprocessed images (N, C, H, W): a row or a map of each."""
        return self.compute(batch)[self.outputs[0]]


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """The outputs of the engine for one image, or why there are none."""

    image: ImageSample
    """The image."""
    output: Rows | None
    """The engine's row for it, such as logits (K,), all finite; None where there is a problem."""
    problem: str | None = None
    """The reason why it cannot be read, or that values overflow; it begins with the image's path."""
    overflows: bool = False
    """Whether the image was read, and what the engine gave is not finite."""


def stream_results(
    engine: Engine,
    preprocessing: Preprocessing,
    images: Iterable[ImageSample],
    *,
    batch_size: int = 32,
    decoders: int | None = None,
) -> Iterator[StreamResult]:
    """A result for each image, in order; never more than three batches of images are in memory.

    An image that cannot be read, or whose values overflow, gets the reason in place of an output. `decoders`
    threads decode; None: as many as there are processors.
    """

    def prepare(image: ImageSample) -> tuple[list[NDArray[np.float32]], str | None]:
        try:
            return [preprocessing.see(image)], None
        except BadImage as problem:
            return [], str(problem)

    for image, problem, rows in stream_rows(engine, images, prepare, batch_size=batch_size, decoders=decoders):
        overflow = None if problem else describe_overflow(rows[0])
        if overflow is not None:
            yield StreamResult(image, None, f"{image.path}: {overflow}", overflows=True)
        else:
            yield StreamResult(image, None if problem else rows[0], problem)


def stream_rows(
    engine: Engine,
    given: Iterable[Given],
    prepare: Callable[[Given], tuple[Sequence[NDArray[np.float32]], Known]],
    *,
    batch_size: int = 32,
    decoders: int | None = None,
) -> Iterator[tuple[Given, Known, Rows]]:
    """Prepares items, runs the engine on their inputs, and yields each item in order, with its rows.

    Args:
        engine: Computes in the caller's thread.
        given: Things to prepare, such as images.
        prepare: Called in threads; gives an item's inputs (C, H, W), none or several, and its metadata.
            What it raises reaches the caller.
        batch_size: Things that go through the engine together; twice as many are prepared meanwhile.
        decoders: Threads; None: as many as there are processors.
    """
    waiting = iter(given)
    with ThreadPoolExecutor(decoders or count_threads(), thread_name_prefix="decode") as pool:
        ahead: deque[tuple[Given, Future[tuple[Sequence[NDArray[np.float32]], Known]]]] = deque()
        try:
            while True:
                for thing in islice(waiting, 2 * batch_size - len(ahead)):
                    ahead.append((thing, pool.submit(prepare, thing)))
                if not ahead:
                    return
                taken = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
                prepared = [(thing, *future.result()) for thing, future in taken]
                inputs = [each for _, several, _ in prepared for each in several]
                outputs = engine.run(np.stack(inputs)) if inputs else np.empty((0, 0), np.float32)
                first = 0
                for thing, several, known in prepared:
                    yield thing, known, outputs[first : first + len(several)]
                    first += len(several)
        finally:
            for _, future in ahead:
                future.cancel()
