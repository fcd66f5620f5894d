"""An engine in a separate process, controlled over a pipe, to measure its memory and its start-up time.

`serve` is the other end; a line of JSON is a request, a line the reply.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.info import EngineName
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import Precision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import Engine
from vggkit.errors import BadConfiguration, VggkitError
from vggkit.hardware import find_peak_memory

TOGETHER: Final = 8
"""Images that are computed at once."""
FEWEST_PASSES: Final = 5
"""Of single images in a turn; of several at once one is enough."""
START: Final = "import sys; sys.path.append(sys.argv[1]); from vggkit.benchmarking.processes import serve; serve()"
"""The program of the worker process, given the folder of this package."""
REPLY: Final = '{"reply"'
"""The prefix of a reply."""
PATIENCE_SECONDS: Final = 10.0
"""Longest wait for the end of a process that is no longer needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine that a process runs, with its model and images."""

    model: str
    """A Classifier's file."""
    engine: EngineName
    precision: Precision
    device: str
    activation_ranges: Mapping[str, tuple[float, float]]
    """For int8; else none."""
    images: str
    """An .npy of preprocessed images (N, C, H, W)."""


class EngineProcess:
    """The controlling end of the pipe; a context manager that ends the process.

    Args:
        choice: The device, engine and precision.

    Everything raises BadConfiguration with the reason where the process refuses or dies.
    """

    def __init__(self, choice: EngineChoice) -> None:
        self.choice = choice
        self._process: subprocess.Popen[str] | None = None
        self._complaints: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> float:
        """Seconds from the process' start to its first result; 0 where it runs already."""
        if self._process is not None:
            return 0.0
        started = time.perf_counter()
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        package = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(  # noqa: S603 (our own lines)
            # Without the folder that it is started in: a queue.py of somebody's own is not the library's.
            [sys.executable, "-P", "-c", START, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
        )
        self._request(asdict(self.choice))
        return time.perf_counter() - started

    def compute(self, into: Path) -> NDArray[np.float32]:
        """Logits (N, K) of all images, by way of a file."""
        self.start()
        self._request({"compute": str(into)})
        found: NDArray[np.float32] = np.load(into)
        return found

    def time(self, batch_size: int, seconds: float) -> list[float]:
        """Seconds of each pass of a batch of that size, measured for about the given time."""
        self.start()
        found: list[float] = self._request({"time": batch_size, "seconds": seconds})
        return found

    def find_memory(self) -> tuple[int | None, int | None]:
        """Bytes that the process held at most, and those of a GPU."""
        self.start()
        own, device = self._request({"memory": True})
        return own, device

    def end(self) -> None:
        """End the process; the next request starts another one."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait(PATIENCE_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()
        finally:
            process.stdout.close()  # type: ignore[union-attr]
            self._complaints.close()

    def _request(self, request: Mapping[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            # Lines that the interpreter prints before are not replies.
            line = next((line for line in process.stdout if line.startswith(REPLY)), "")
        except OSError:
            line = ""
        if not line:
            raise BadConfiguration(self._describe_end(process))
        found = json.loads(line)
        if found["problem"] is not None:
            raise BadConfiguration(found["problem"])
        return found["reply"]

    def _describe_end(self, process: "subprocess.Popen[str]") -> str:
        code = process.wait()
        self._complaints.seek(0)
        printed = self._complaints.read().strip().splitlines()
        how = f"was ended by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with {code}"
        return f"its process {how}" + (f": {printed[-1][:300]}" if printed else "")


def serve() -> None:
    """Serve the requests on standard input."""
    # Output of libraries must not be mixed with the replies.
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, ours)  # type: ignore[arg-type]


def _serve(requests: io.TextIOBase, replies: io.TextIOBase) -> None:
    """Serve until the requests end."""

    def reply(value: object, problem: str | None = None) -> None:
        replies.write(json.dumps({"reply": value, "problem": problem}) + "\n")
        replies.flush()

    choice = EngineChoice(**json.loads(requests.readline()))
    try:
        engine = choose_engine(
            ModelFile(choice.model),
            choice.device,
            precision=choice.precision,
            activation_ranges=choice.activation_ranges if choice.precision == "int8" else None,
            engine=choice.engine,
        )
        engine.run(_read(choice.images, 0, 1))
    except VggkitError as problem:
        reply(None, str(problem))
        return
    reply(None)
    for line in requests:
        request = json.loads(line)
        if "compute" in request:
            np.save(request["compute"], _compute(engine, choice.images))
            reply(None)
        elif "time" in request:
            reply(_time(engine, choice.images, request["time"], request["seconds"]))
        else:
            reply((find_peak_memory(), _find_device_memory(choice.device)))


def _read(place: str, first: int, count: int) -> NDArray[np.float32]:
    """Some of the images; no others stay mapped, which would count as this process' memory."""
    images = np.load(place, mmap_mode="r")
    return np.array(images[first : first + count])


def _compute(engine: Engine, place: str) -> NDArray[np.float32]:
    count = len(np.load(place, mmap_mode="r"))
    return np.concatenate([engine.run(_read(place, first, TOGETHER)) for first in range(0, count, TOGETHER)])


def _time(engine: Engine, place: str, batch_size: int, seconds: float) -> list[float]:
    """The first pass of a turn does not count: caches are another engine's."""
    found: list[float] = []
    batch = np.take(_read(place, 0, batch_size), range(batch_size), axis=0, mode="wrap")
    engine.run(batch)
    started = time.perf_counter()
    while len(found) < (FEWEST_PASSES if batch_size == 1 else 1) or time.perf_counter() - started < seconds:
        before = time.perf_counter()
        engine.run(batch)
        found.append(time.perf_counter() - before)
    return found


def _find_device_memory(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated())
