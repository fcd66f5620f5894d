"""The bounded micro-batcher: images of several requests pass through the engine together, in one thread.

An image is admitted, decoded by a thread of a small pool, and put into a queue. The engine's thread takes the
oldest image and those behind it that the same model computes, and computes them at once. It waits for more, a few
milliseconds at most, only while images are being decoded: a single client never waits for others.

Shape letters: C channels, H and W pixels.
"""

import asyncio
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vggkit.serving.refusals import Refusal

STUCK_SECONDS: Final = 120.0
"""Time after which a batch that is still computed counts as stuck."""

Computed = TypeVar("Computed")


class Computes(Protocol):
    """What a batch is given to: a loaded model."""

    @abstractmethod
    def compute(self, inputs: NDArray[np.float32], wanted: Sequence[Any]) -> Sequence[object]:
        """A result for each input (N, C, H, W); `wanted` says for each what it consists of."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Generic[Computed]):
    """One image on its way through the batcher; made and read in the event loop."""

    model: Computes
    """What computes it."""
    prepare: Callable[[], NDArray[np.float32]]
    """Reads and decodes the image, in a thread; its errors become the job's."""
    wanted: Any
    """What the result consists of."""
    deadline: float
    """When nobody waits any more, on the monotonic clock."""
    loop: asyncio.AbstractEventLoop
    """The loop that waits for it."""
    future: "asyncio.Future[Computed]"
    """Its result; cancelled where nobody waits for it any more."""
    input: NDArray[np.float32] | None = None
    """(C, H, W), between decoding and computing."""

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it; read by the threads."""
        return not self.future.cancelled() and time.monotonic() < self.deadline


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch that was computed, for the metrics."""

    images: int
    seconds: float


class Batcher:
    """Decodes in a few threads and computes in one.

    Args:
        max_batch: Images that are computed together, at most.
        max_wait_ms: Milliseconds that the first of them waits for others that are being decoded.
        max_queue: Images that wait or are computed, at most.
        decoders: Threads that decode.
        on_batch: Called with each computed batch, in the engine's thread.
        on_queue: Called with the change of the number of images that wait or are computed, in any thread.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_wait_ms: float,
        max_queue: int,
        decoders: int,
        on_batch: Callable[[BatchRecord], None] = lambda _: None,
        on_queue: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._max_batch, self._max_wait, self.max_queue = max_batch, max_wait_ms / 1000, max_queue
        self._on_batch, self._on_queue = on_batch, on_queue
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._changed = threading.Condition()
        self._queue: deque[Job[Any]] = deque()
        self._decoding = 0
        self._admitted = 0
        self._ended = False
        self._computing_since: float | None = None
        self._thread = threading.Thread(target=self._compute_batches, name="engine", daemon=True)
        self._thread.start()

    @property
    def admitted(self) -> int:
        """Images that wait or are computed."""
        return self._admitted

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs, and is not stuck in a batch."""
        since = self._computing_since
        return self._thread.is_alive() and (since is None or time.monotonic() - since < STUCK_SECONDS)

    def submit(self, jobs: Sequence[Job[Any]]) -> None:
        """Admit the images of a request, all of them or none; raises Refusal, 503, where the queue is full."""
        with self._changed:
            if self._ended:
                raise Refusal(503, "not_ready", "the service is stopping; send the request to another one")
            if self._admitted + len(jobs) > self.max_queue:
                raise Refusal.overloaded(
                    f"the service is busy: {self._admitted} images wait, and {self.max_queue} may (--max-queue); "
                    "try again in a second"
                )
            self._admitted += len(jobs)
            self._decoding += len(jobs)
        self._on_queue(len(jobs))
        for job in jobs:
            self._decoders.submit(self._decode, job)

    def run_in_thread(self, called: Callable[[], Computed]) -> "asyncio.Future[Computed]":
        """Call a function in one of the decoding threads, such as for a large body or an image of a map."""
        return asyncio.get_running_loop().run_in_executor(self._decoders, called)

    def close(self) -> None:
        """End the threads; images that still wait get an error."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._decoders.shutdown(wait=True, cancel_futures=True)
        self._thread.join(STUCK_SECONDS)

    def _decode(self, job: Job[Any]) -> None:
        problem: Exception | None = None
        if job.is_wanted:
            try:
                job.input = job.prepare()
            except Exception as error:  # it is the job's, and not the thread's
                problem = error
        with self._changed:
            self._decoding -= 1
            if job.input is not None:
                self._queue.append(job)
            self._changed.notify()
        if job.input is None:
            self._hand_back([job], [problem])

    def _compute_batches(self) -> None:
        while True:
            with self._changed:
                self._computing_since = None
                while not self._queue and not self._ended:
                    self._changed.wait()
                if self._ended and not self._queue:
                    return
                self._wait_for_more()
                batch, dropped = self._take_batch()
                self._computing_since = time.monotonic()
            if dropped:
                self._hand_back(dropped, [None] * len(dropped))
            if batch:
                self._compute(batch)

    def _wait_for_more(self) -> None:
        """Wait while the batch is not full and images are being decoded, but no longer than was permitted."""
        until = time.monotonic() + self._max_wait
        while self._decoding and len(self._queue) < self._max_batch and not self._ended:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _take_batch(self) -> tuple[list[Job[Any]], list[Job[Any]]]:
        """The oldest image and others of its model in order, and those that nobody waits for."""
        batch: list[Job[Any]] = []
        dropped: list[Job[Any]] = []
        kept: deque[Job[Any]] = deque()
        while self._queue and len(batch) < self._max_batch:
            job = self._queue.popleft()
            if not job.is_wanted:
                dropped.append(job)
            elif batch and (job.model is not batch[0].model or job.input.shape != batch[0].input.shape):  # type: ignore[union-attr]
                kept.append(job)
            else:
                batch.append(job)
        self._queue.extendleft(reversed(kept))
        return batch, dropped

    def _compute(self, batch: list[Job[Any]]) -> None:
        started = time.monotonic()
        results: Sequence[Any]
        try:
            inputs = np.stack([job.input for job in batch if job.input is not None])
            results = batch[0].model.compute(inputs, [job.wanted for job in batch])
        except Exception as problem:  # the next batch may be computed all the same
            results = [problem] * len(batch)
        self._on_batch(BatchRecord(len(batch), time.monotonic() - started))
        self._hand_back(batch, results)

    def _hand_back(self, jobs: Sequence[Job[Any]], results: Sequence[Any]) -> None:
        """Give each job its result or its problem, in the event loop; None where nobody waits any more."""
        with self._changed:
            self._admitted -= len(jobs)
        self._on_queue(-len(jobs))
        with suppress(RuntimeError):  # the event loop has ended
            jobs[0].loop.call_soon_threadsafe(_finish, list(zip(jobs, results, strict=True)))


def _finish(pairs: Sequence[tuple[Job[Any], Any]]) -> None:
    for job, result in pairs:
        job.input = None
        if job.future.done():
            continue
        if result is None:
            job.future.cancel()
        elif isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
