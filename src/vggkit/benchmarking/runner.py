"""Runs a bench: every engine in every precision, each in a separate process, in turn.

Shape letters: N images, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit.benchmarking.processes import EngineChoice, EngineProcess
from vggkit.benchmarking.timings import Agreement, EngineTimings, Rounds, Spread
from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.info import EngineName
from vggkit.engines.outputs import Precision, Ranges
from vggkit.engines.select import resolve_choice
from vggkit.errors import VggkitError
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import choose_device, computes_bf16, find_available_memory, has_accelerator
from vggkit.inference.bulk import OnProgress

SPARE_BYTES: Final = 500_000_000
"""Approximate memory of a process besides its weights."""
COPIES: Final = 3
"""Copies of the weights in a process: the mapped file, and the engine's own, twice while it compiles."""

Values = NDArray[np.float32]


@dataclass(slots=True)
class EngineRun:
    """An engine in a precision on a device, and its measurements."""

    engine: EngineName
    precision: Precision
    device: str
    problem: str | None = None
    """The reason why it does not run."""
    process: EngineProcess | None = None
    rounds: Rounds = field(default_factory=Rounds)
    start_seconds: float = 0.0
    memory: tuple[int | None, int | None] = (None, None)
    """Bytes of the process, and of a GPU."""
    too_many: set[int] = field(default_factory=set)
    """Batch sizes that it has no memory for."""
    logits: Values | None = None
    """(N, K) of the images that all compute."""


def list_runs(device: str, *, problem: str | None = None) -> list[EngineRun]:
    """All engines and precisions; the first is the reference that others are compared with.

    Args:
        device: `auto`: all devices there are; or one of them.
        problem: Why there are no activation ranges for int8.
    """
    found = []
    for place in list_devices(device):
        name = "processor" if place == "cpu" else "GPU"
        slow = None if computes_bf16(place) else f"this {name} has no fast bfloat16"
        found += [EngineRun("pytorch", "fp32", place), EngineRun("pytorch", "bf16", place, slow)]
        if place == "cpu":
            found += [
                EngineRun("onnx", "fp32", place),
                EngineRun("ncnn", "fp32", place),
                EngineRun("openvino", "fp32", place),
                EngineRun("openvino", "bf16", place, slow),
                EngineRun("openvino", "int8", place, problem),
            ]
    return found


def list_devices(device: str) -> list[str]:
    """Names of the requested devices; raises BadInput for one that does not exist."""
    if device == "cpu" or (device == "auto" and not has_accelerator()):
        return ["cpu"]
    other = str(choose_device(device))
    return list(dict.fromkeys(["cpu", other])) if device == "auto" else [other]


@contextmanager
def start_processes(
    runs: Sequence[EngineRun], *, model: Path, images: Path, activation_ranges: Ranges
) -> Iterator[None]:
    """Processes for those that can run, while the context lasts.

    Args:
        runs: All.
        model: A Classifier's file.
        images: An .npy that they read, (N, C, H, W).
        activation_ranges: For int8.
    """
    with ExitStack() as running:
        for each in runs:
            if each.problem is None:
                choice = EngineChoice(
                    model=str(model),
                    engine=each.engine,
                    precision=each.precision,
                    device=each.device,
                    activation_ranges=activation_ranges if each.precision == "int8" else {},
                    images=str(images),
                )
                each.process = running.enter_context(EngineProcess(choice))
        yield


def run_rounds(
    runs: Sequence[EngineRun],
    sizes: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Each computes the images; then each has a turn in each round, in a random order.

    A run that fails has a problem from then on. Where memory is short a process ends with its turn, and another
    one takes the next turn.
    """
    total = (1 + rounds) * sum(each.process is not None for each in runs)
    done = 0
    for number in range(1 + rounds):
        order = list(runs)
        if number:
            np.random.default_rng(number).shuffle(order)
        for each in order:
            if each.process is None:
                continue
            done += 1
            if each.problem is not None:
                continue
            on_progress(f"round {number} of {rounds}" if number else "first results", done - 1, total)
            try:
                if not number:
                    each.start_seconds = each.process.start()
                    each.logits = each.process.compute(folder / "logits.npy")
                    each.problem = describe_overflow(each.logits)
                for size in sizes if number else ():
                    _time(each, each.process, size, seconds)
                if number == rounds:
                    each.memory = each.process.find_memory()
            except VggkitError as problem:
                each.problem = str(problem)
            if each.problem is not None or _is_short(each.process):
                each.process.end()


def _time(run: EngineRun, process: EngineProcess, size: int, seconds: float) -> None:
    """A turn with batches of that size; a size that it has no memory for is left out from then on."""
    if size in run.too_many:
        return
    try:
        run.rounds.add(size, process.time(size, seconds))
    except VggkitError:
        process.end()
        if size == 1:
            raise
        run.too_many.add(size)
        run.rounds.passes.pop(size, None)


def _is_short(process: EngineProcess) -> bool:
    """Whether memory may be too small for another process."""
    available = find_available_memory()
    need = COPIES * Path(process.choice.model).stat().st_size + SPARE_BYTES
    return available is not None and available < need


def describe(runs: Sequence[EngineRun], device: str, *, pixels: int) -> tuple[EngineTimings, ...]:
    """The records, fastest first; of images of so many pixels a side."""
    place, *auto = resolve_choice(device, pixels=pixels)
    _, *default = resolve_choice(device, precision="fp32", pixels=pixels)
    found = []
    for each in runs:
        own, is_there = [each.engine, each.precision], each.device == str(place)
        timings = _describe_one(each, runs[0])
        found.append(
            replace(timings, is_auto=is_there and own == auto, is_python_default=is_there and own == default)
        )
    return tuple(sorted(found, key=lambda timings: -timings.speed))


def _describe_one(run: EngineRun, reference: EngineRun) -> EngineTimings:
    about = EngineTimings(
        engine=run.engine,
        precision=run.precision,
        device=run.device,
        is_reference=run is reference,
        problem=run.problem,
    )
    if run.problem is not None:
        return about
    speeds, best = run.rounds.find_speeds(), run.rounds.find_best()
    times: Spread | None = None
    if reference.problem is None:
        peer = reference.rounds.find_speeds()[reference.rounds.find_best()]
        times = Spread.of([own / other for own, other in zip(speeds[best], peer, strict=True)])
    return replace(
        about,
        latency_p50_seconds=Spread.of(run.rounds.find_latencies(0.5)),
        latency_p95_seconds=Spread.of(run.rounds.find_latencies(0.95)),
        images_per_second={size: Spread.of(found) for size, found in speeds.items()},
        best_batch_size=best,
        times_reference=times,
        start_seconds=run.start_seconds,
        peak_memory_bytes=run.memory[0],
        device_memory_bytes=run.memory[1],
        agreement=compare_logits(run, reference),
    )


def compare_logits(run: EngineRun, reference: EngineRun) -> Agreement | None:
    """How well its predictions agree; None for the reference, and where one of the two has none."""
    if run is reference or run.logits is None or reference.logits is None:
        return None
    own, other = run.logits.astype(np.float64), reference.logits.astype(np.float64)
    same = int((own.argmax(axis=1) == other.argmax(axis=1)).sum())
    error = float(np.sqrt(np.mean((own - other) ** 2)) / max(other.std(), 1e-12))
    return Agreement(len(own), same, proportion_interval(same, len(own)), error)
