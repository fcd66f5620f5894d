"""Several processes of the service at one port: each that ends or hangs is replaced."""

import socket
import time
from collections.abc import Callable
from typing import Final

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from vggkit.errors import BadConfiguration
from vggkit.serving.logs import Log
from vggkit.serving.metrics import counting_together
from vggkit.serving.options import ServeOptions
from vggkit.serving.process import AppFactory, make_config

HUNG_SECONDS: Final = 20
"""Time in which a worker must respond to its supervisor; a new one imports its modules before."""
LEAST_SECONDS: Final = 2.0
"""A worker that ended sooner is not replaced before this time."""


class Supervisor(Multiprocess):
    """Keeps worker processes running.

    Args:
        config: How they serve.
        sockets: Where they listen.
        log: Gets a line for each that ends.
        on_end: Called with the number of each process that ended.
    """

    def __init__(
        self, config: Config, sockets: list[socket.socket], log: Log, on_end: Callable[[int], None]
    ) -> None:
        super().__init__(config, sockets)
        self._log, self._on_end = log, on_end
        self._started: dict[int, float] = {}
        self._is_tried = False
        self.failed = False
        """Whether the first workers could not start."""

    def keep_subprocess_alive(self) -> None:
        """Called by uvicorn twice a second: replace the workers that ended."""
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            started = self._started.setdefault(place, time.monotonic())
            if process.is_alive(timeout=HUNG_SECONDS):
                self._is_tried = self._is_tried or process.is_ready(timeout=HUNG_SECONDS)
                continue
            process.kill()
            process.join()
            if process.exitcode == STARTUP_FAILURE and not self._is_tried:
                self.failed = True
                self.should_exit.set()
                return
            if time.monotonic() - started < LEAST_SECONDS:
                continue  # at the next look, or the one after it
            self._log.write_problem("worker ended", {"worker": process.pid, "exit_code": process.exitcode})
            if process.pid is not None:
                self._on_end(process.pid)
            self.processes[place] = replacement = Process(self.config, self.sockets)
            replacement.start()
            self._started[place] = time.monotonic()


def serve_in_workers(options: ServeOptions, listening: socket.socket) -> None:
    """Serve in several processes until SIGTERM or Ctrl-C; raises BadConfiguration where they cannot start."""
    log = Log(options.log_file)
    try:
        with counting_together() as count_ended:
            config = make_config(AppFactory(options), options, is_factory=True)
            supervisor = Supervisor(config, [listening], log, count_ended)
            supervisor.run()
    finally:
        log.close()
    if supervisor.failed:
        raise BadConfiguration("no worker could start; the log says why")
