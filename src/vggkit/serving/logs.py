"""Structured logs: a JSON object a line, written by a thread; what cannot be written is counted and dropped.

No image, no token and no name of a file is logged.
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import Full, Queue
from types import MappingProxyType
from typing import Any, Final

from vggkit.errors import BadOutput

NAME: Final = "vggkit.serving"
MOST_WAITING: Final = 10_000
"""Lines that wait to be written; where a disk or a pipe is slower than that, further ones are dropped."""


class JsonLines(logging.Formatter):
    """A record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, event and the record's fields."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": record.process,
        }
        values |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            values["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(values, ensure_ascii=True, default=str)


class Log:
    """The service's log, and the one of its libraries. Close it to write what waits.

    Args:
        file: Where lines are appended; None: standard output.

    Raises BadOutput where the file cannot be opened.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.lost = 0
        self._is_closed = False
        self._on_lost: Callable[[], None] = lambda: None
        try:
            stream = sys.stdout if file is None else open(file, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as problem:
            raise BadOutput(f"{file}: cannot be written ({problem.strerror or problem})") from problem
        self._stream = stream
        written = _Written(stream, self._count_lost)
        written.setFormatter(JsonLines())
        queue: Queue[logging.LogRecord] = Queue(MOST_WAITING)
        self._handler = _Queued(queue, self._count_lost)
        self._listener = QueueListener(queue, written)
        self._loggers = [logging.getLogger(name) for name in (NAME, "uvicorn.error")]
        self._before = [(each.level, each.propagate) for each in self._loggers]
        for each in self._loggers:
            each.addHandler(self._handler)
            each.setLevel(logging.INFO if each.name == NAME else logging.WARNING)
            each.propagate = False
        self._listener.start()

    def count_lost(self, called: Callable[[], None]) -> None:
        """Call this for each line that could not be written."""
        self._on_lost = called

    def write(self, event: str, fields: Mapping[str, object] = MappingProxyType({})) -> None:
        """Log an event with its fields."""
        self._loggers[0].info(event, extra={"fields": fields})

    def write_problem(
        self, event: str, fields: Mapping[str, object], *, problem: BaseException | None = None
    ) -> None:
        """Log what went wrong with its fields and, of a bug, where it was raised."""
        self._loggers[0].error(event, exc_info=problem, extra={"fields": fields})

    def close(self) -> None:
        """Write what waits, and leave the loggers as they were."""
        if self._is_closed:
            return
        self._is_closed = True
        self._listener.stop()
        for each, (level, propagate) in zip(self._loggers, self._before, strict=True):
            each.removeHandler(self._handler)
            each.setLevel(level)
            each.propagate = propagate
        if self._stream is not sys.stdout:
            try:
                self._stream.close()
            except OSError:  # the disk is full, and what waited is lost
                self._count_lost()

    def _count_lost(self) -> None:
        self.lost += 1
        self._on_lost()


class _Queued(QueueHandler):
    def __init__(self, queue: "Queue[logging.LogRecord]", on_lost: Callable[[], None]) -> None:
        super().__init__(queue)
        self._on_lost = on_lost

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # it is formatted in this process

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except Full:
            self._on_lost()


class _Written(logging.StreamHandler[Any]):
    def __init__(self, stream: Any, on_lost: Callable[[], None]) -> None:
        super().__init__(stream)
        self._on_lost = on_lost

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Called for a full disk or a closed pipe."""
        self._on_lost()
