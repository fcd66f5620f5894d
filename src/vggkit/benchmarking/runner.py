"""Who runs in a bench: every engine in every precision, each in a process of its own, turn by turn.

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
from vggkit.engines.info import EngineName
from vggkit.engines.outputs import Precision, Ranges
from vggkit.engines.overflow import describe_overflow
from vggkit.engines.select import resolve_choice
from vggkit.errors import VggkitError
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import choose_device, computes_bf16, find_available_memory, has_accelerator
from vggkit.inference.bulk import OnProgress

SPARE_BYTES: Final = 500_000_000
"""What a process takes besides weights, about."""
COPIES: Final = 3
"""Of the weights in a process: the mapped file, and what an engine makes of it, twice while it does."""

Values = NDArray[np.float32]


@dataclass(slots=True)
class Contender:
    """An engine in a precision on a device, and what has come of it."""

    engine: EngineName
    precision: Precision
    device: str
    problem: str | None = None
    """Why it does not run."""
    process: EngineProcess | None = None
    rounds: Rounds = field(default_factory=Rounds)
    start_seconds: float = 0.0
    memory: tuple[int | None, int | None] = (None, None)
    """Bytes of the process, and of a GPU."""
    too_many: set[int] = field(default_factory=set)
    """Numbers of images that it cannot take together."""
    logits: Values | None = None
    """(N, K) of the images that all are shown."""


def list_contenders(device: str, *, problem: str | None = None) -> list[Contender]:
    """Whoever may run; the first is what others are compared with.

    Args:
        device: `auto`: all devices there are; or one of them.
        problem: Why there are no ranges for int8.
    """
    found = []
    for place in list_devices(device):
        name = "processor" if place == "cpu" else "GPU"
        slow = None if computes_bf16(place) else f"this {name} has no fast bfloat16"
        found += [Contender("pytorch", "fp32", place), Contender("pytorch", "bf16", place, slow)]
        if place == "cpu":
            found += [
                Contender("onnx", "fp32", place),
                Contender("openvino", "fp32", place),
                Contender("openvino", "bf16", place, slow),
                Contender("openvino", "int8", place, problem),
            ]
    return found


def list_devices(device: str) -> list[str]:
    """Names of the devices that are meant; raises BadInput for one that is not there."""
    if device == "cpu" or (device == "auto" and not has_accelerator()):
        return ["cpu"]
    other = str(choose_device(device))
    return list(dict.fromkeys(["cpu", other])) if device == "auto" else [other]


@contextmanager
def start_processes(
    contenders: Sequence[Contender], *, model: Path, images: Path, ranges: Ranges
) -> Iterator[None]:
    """While it lasts, those that may run can be asked.

    Args:
        contenders: All.
        model: A Classifier's file.
        images: An .npy that they are shown, (N, C, H, W).
        ranges: For int8.
    """
    with ExitStack() as running:
        for each in contenders:
            if each.problem is None:
                choice = EngineChoice(
                    model=str(model),
                    engine=each.engine,
                    precision=each.precision,
                    device=each.device,
                    ranges=ranges if each.precision == "int8" else {},
                    images=str(images),
                )
                each.process = running.enter_context(EngineProcess(choice))
        yield


def run_rounds(
    contenders: Sequence[Contender],
    sizes: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    folder: Path,
    on_progress: OnProgress,
) -> None:
    """Each answers the images; then each has a turn in each round, in an order of the round's own.

    Who fails has a problem from then on. Where memory is short a process ends with its turn, and another
    takes the next one.
    """
    total = (1 + rounds) * sum(each.process is not None for each in contenders)
    done = 0
    for number in range(1 + rounds):
        order = list(contenders)
        if number:
            np.random.default_rng(number).shuffle(order)
        for each in order:
            if each.process is None:
                continue
            done += 1
            if each.problem is not None:
                continue
            on_progress(f"round {number} of {rounds}" if number else "first answers", done - 1, total)
            try:
                if not number:
                    each.start_seconds = each.process.start()
                    each.logits = each.process.answer(folder / "logits.npy")
                    each.problem = describe_overflow(each.logits)
                for size in sizes if number else ():
                    _time(each, each.process, size, seconds)
                if number == rounds:
                    each.memory = each.process.find_memory()
            except VggkitError as problem:
                each.problem = str(problem)
            if each.problem is not None or _is_short(each.process):
                each.process.rest()


def _time(contender: Contender, process: EngineProcess, size: int, seconds: float) -> None:
    """A turn with so many images; where they are too many for it, it goes on without them."""
    if size in contender.too_many:
        return
    try:
        contender.rounds.add(size, process.time(size, seconds))
    except VggkitError:
        process.rest()
        if size == 1:
            raise
        contender.too_many.add(size)
        contender.rounds.passes.pop(size, None)


def _is_short(process: EngineProcess) -> bool:
    """Whether memory may not do for another process."""
    available = find_available_memory()
    need = COPIES * Path(process.choice.model).stat().st_size + SPARE_BYTES
    return available is not None and available < need


def describe(contenders: Sequence[Contender], device: str) -> tuple[EngineTimings, ...]:
    """The records, fastest first."""
    place, *taken = resolve_choice(device)
    auto = (*taken, str(place))
    found = []
    for each in contenders:
        own = each.engine, each.precision, each.device
        found.append(_describe_one(each, contenders[0], is_auto=own == auto))
    return tuple(sorted(found, key=lambda timings: -timings.speed))


def _describe_one(contender: Contender, exact: Contender, *, is_auto: bool) -> EngineTimings:
    about = EngineTimings(
        engine=contender.engine,
        precision=contender.precision,
        device=contender.device,
        is_auto=is_auto,
        is_reference=contender is exact,
        problem=contender.problem,
    )
    if contender.problem is not None:
        return about
    speeds, best = contender.rounds.find_speeds(), contender.rounds.find_best()
    times: Spread | None = None
    if exact.problem is None:
        peer = exact.rounds.find_speeds()[exact.rounds.find_best()]
        times = Spread.of([own / other for own, other in zip(speeds[best], peer, strict=True)])
    return replace(
        about,
        latency_p50_seconds=Spread.of(contender.rounds.find_latencies(0.5)),
        latency_p95_seconds=Spread.of(contender.rounds.find_latencies(0.95)),
        images_per_second={size: Spread.of(found) for size, found in speeds.items()},
        best_batch_size=best,
        times_reference=times,
        start_seconds=contender.start_seconds,
        peak_memory_bytes=contender.memory[0],
        device_memory_bytes=contender.memory[1],
        agreement=_compare(contender, exact),
    )


def _compare(contender: Contender, exact: Contender) -> Agreement | None:
    """None where there is nothing else to compare with."""
    if contender is exact or contender.logits is None or exact.logits is None:
        return None
    own, other = contender.logits.astype(np.float64), exact.logits.astype(np.float64)
    same = int((own.argmax(axis=1) == other.argmax(axis=1)).sum())
    error = float(np.sqrt(np.mean((own - other) ** 2)) / max(other.std(), 1e-12))
    return Agreement(len(own), same, proportion_interval(same, len(own)), error)
