"""Bulk jobs on the machines of a Ray cluster: Ray Data runs actors, each of which holds the model.

Ray computes a task again when the process or the machine that had it is lost, and so may compute it twice. A job is
therefore divided into chunks of fixed identity, first and last row and a digest of the images: the result of a
chunk is written whole, by this process, and that of a repeated one takes its place. Batches begin where they do in
one process, so the values are the same.
"""

import logging
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from vggkit.engines.info import EngineInfo
from vggkit.errors import BadConfiguration, MissingExtra, Stopped, VggkitError
from vggkit.images.dataset import ImageSample
from vggkit.images.omissions import Reading
from vggkit.images.sources.open_dataset import gather_images
from vggkit.inference.bulk import BulkResult, Job, run_job, skip_done, transpose
from vggkit.inference.bulk_work import BulkWork, OpenedWork
from vggkit.inference.chunks import ChunkName, Chunks, pack_chunk
from vggkit.inference.fingerprint import ImageDigest
from vggkit.interruption import Signals

CHUNK_ROWS: Final = 512
"""Rows of a chunk, about: a whole number of batches."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What an actor occupies, and how many there are."""

    cpus: float
    gpus: float
    actors: int


@contextmanager
def connect() -> Iterator[None]:
    """Ray for the duration of the body: the cluster of RAY_ADDRESS, one that runs here, or else a new one here.

    A connection that the caller made stays. Raises MissingExtra without Ray.
    """
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise MissingExtra.of("ray", "on=ray", "ray") from problem
    was_connected = ray.is_initialized()
    if not was_connected:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        with _quiet():
            yield
    finally:
        context.enable_progress_bars = bars
        if not was_connected:
            ray.shutdown()


def find_engine(work: BulkWork, *, device: str) -> EngineInfo:
    """The engine that computes on the cluster, which need not be this machine's; raises what opening it does."""
    import ray

    needed = _divide_cluster(device)
    describe = ray.remote(_describe).options(num_cpus=needed.cpus, num_gpus=needed.gpus, max_retries=2)
    found: EngineInfo | VggkitError = ray.get(describe.remote(work, str(Path.cwd())))
    if isinstance(found, VggkitError):
        raise found
    return found


def run_job_on_ray(job: Job, work: BulkWork, *, device: str) -> BulkResult:
    """As `run_job`, computed by the cluster; raises BadOutput, and what images or the actors raise.

    Args:
        job: The specification.
        work: What is computed, which the actors open.
        device: Where: `auto` and `cuda` take the cluster's GPUs, if it has any.
    """
    return run_job(job, write_chunks=partial(_write_chunks, work=work, device=device))


def _write_chunks(
    job: Job, chunks: Chunks, signals: Signals, reading: Reading, *, work: BulkWork, device: str
) -> int:
    """Let the cluster compute the chunks that are missing; returns how many rows were computed before."""
    import ray.data

    digest = ImageDigest()
    images = gather_images(job.images, columns=job.columns, reading=reading)
    done = skip_done(chunks, images, digest)
    contiguous = chunks.list_names()
    planned = dict(_plan(images, digest, first=done, rows=_count_rows(job.batch_size)))
    found = chunks.keep({*contiguous, *planned}) - contiguous
    done += sum(name.stop - name.first for name in found)
    total = max((name.stop for name in {*contiguous, *planned}), default=0)
    spec = pickle.dumps((work, job.engine, dict(job.kinds), str(Path.cwd())))
    missing = [
        {"first": name.first, "stop": name.stop, "digest": name.digest, "images": packed, "spec": spec}
        for name, packed in planned.items()
        if name not in found
    ]
    planned.clear()
    n_already_done = done
    job.on_progress("computing", done, total)
    if not missing:
        return n_already_done
    needed = _divide_cluster(device)
    actors = min(needed.actors, len(missing))
    computed = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
        _Actor,
        batch_size=1,
        batch_format="numpy",
        num_cpus=needed.cpus,
        num_gpus=needed.gpus,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
    )
    missing.clear()
    signals.defers_signals = True
    for row in computed.iter_rows():
        if row["problem"]:
            raise pickle.loads(row["problem"])  # noqa: S301 (made by our own actor)
        chunks.put(ChunkName(row["first"], row["stop"], row["digest"]), row["data"])
        done += row["stop"] - row["first"]
        job.on_progress("computing", done, total)
        if number := signals.find_stop():
            raise Stopped(number)
    signals.defers_signals = False
    return n_already_done


def _plan(
    images: Iterator[ImageSample], digest: ImageDigest, *, first: int, rows: int
) -> Iterator[tuple[ChunkName, bytes]]:
    """The name of each chunk from a row on, and its images, pickled; chunks end at multiples of `rows`."""
    while True:
        stop = (first // rows + 1) * rows
        taken: list[ImageSample] = []
        for image in images:
            digest.add(image)
            taken.append(image)
            if first + len(taken) == stop:
                break
        if not taken:
            return
        yield ChunkName(first, first + len(taken), digest.hex()), pickle.dumps(taken)
        first += len(taken)


def _count_rows(batch_size: int) -> int:
    return batch_size * max(1, CHUNK_ROWS // batch_size)


def _divide_cluster(device: str) -> Resources:
    """An actor for each GPU, or for each machine's processors, as many as the smallest machine has."""
    import ray

    list_nodes: Callable[[], list[dict[str, Any]]] = ray.nodes
    nodes = [node["Resources"] for node in list_nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device.startswith("cuda") and not gpus:
        raise BadConfiguration(f"device={device}: no machine of the Ray cluster has a GPU; give device cpu")
    if gpus and (device == "auto" or device.startswith("cuda")):
        return Resources(cpus=1, gpus=1, actors=gpus)
    processors = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not processors:
        raise BadConfiguration("no machine of the Ray cluster offers a processor; add one, or give device cuda")
    each = min(processors)
    return Resources(cpus=each, gpus=0, actors=sum(math.floor(count / each) for count in processors))


def _describe(work: BulkWork, folder: str) -> EngineInfo | VggkitError:
    with suppress(OSError):
        os.chdir(folder)
    try:
        return work.open().info
    except VggkitError as problem:
        return _plain(problem)


class _Actor:
    """Holds the model in a process of the cluster, and computes chunks.

    It opens the model for its first chunk, whose row says which: arguments of its constructor would be lost to an
    actor that is started again, where they were on the machine that is lost (Ray's issue 53727).
    """

    def __init__(self) -> None:
        self._opened: OpenedWork | None = None
        self._problem: VggkitError | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        work, expected, kinds, folder = pickle.loads(batch["spec"][0])  # noqa: S301 (from our own process)
        if self._opened is None and self._problem is None:
            self._open(work, expected, folder)
        data, problem = b"", self._problem
        if self._opened is not None and problem is None:
            try:
                images: Sequence[ImageSample] = pickle.loads(batch["images"][0])  # noqa: S301 (likewise)
                rows = [row for _, row in self._opened.compute(iter(images))]
                data = pack_chunk(transpose(rows, kinds))
            except VggkitError as found:
                problem = _plain(found)
        names = {name: [batch[name][0]] for name in ("first", "stop", "digest")}
        return {**names, "data": [data], "problem": [b"" if problem is None else pickle.dumps(problem)]}

    def _open(self, work: BulkWork, expected: EngineInfo, folder: str) -> None:
        with suppress(OSError):  # another machine may lack it
            os.chdir(folder)
        try:
            self._opened = work.open()
        except VggkitError as problem:
            self._problem = _plain(problem)
            return
        if self._opened.info != expected:
            self._problem = BadConfiguration(
                f"the machines of the Ray cluster compute differently: one by {self._opened.info}, another by "
                f"{expected}; install the same versions, or name device, engine and precision"
            )


def _plain(problem: VggkitError) -> VggkitError:
    """The same error without what it came from, which another process may not know."""
    return type(problem)(str(problem))


@contextmanager
def _quiet() -> Iterator[None]:
    """Only errors of Ray's own log."""
    loggers = {each: each.level for each in map(logging.getLogger, ("ray", "ray.data"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
