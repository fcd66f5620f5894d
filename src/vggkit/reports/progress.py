"""Progress and messages of long work on standard error: a live bar in a terminal, one line that changes in a
notebook, a line now and then in a file. Messages go to the logger `vggkit` too.
"""

import importlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vggkit.escaping import escape_controls
from vggkit.reports.terminal import break_between_words, is_terminal, open_terminal

SECONDS_BETWEEN_LINES: Final = 10.0
"""Seconds between lines of progress in a file or a pipe."""
SECONDS_BETWEEN_UPDATES: Final = 0.25
"""Seconds between updates in a notebook."""
LOGGER: Final = logging.getLogger("vggkit")
"""Receives every message, quiet or not; without handlers it writes nothing, as messages are printed already."""
LOGGER.addHandler(logging.NullHandler())


@contextmanager
def only_our_errors() -> Iterator[None]:
    """Discard what C libraries write to standard error: libtiff's warnings would break the progress bar."""
    try:
        is_ours = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # closed, or somebody's own
        is_ours = False
    if not is_ours:
        yield
        return
    before, duplicate = sys.stderr, os.dup(2)
    before.flush()
    with open(duplicate, "w", encoding=before.encoding, errors="backslashreplace", buffering=1) as ours:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = before
            ours.flush()
            os.dup2(duplicate, 2)


class _Rate(ProgressColumn):
    """Number a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} {self.unit}" if task.speed else "")


class _Count(MofNCompleteColumn):
    """How much is done and of how much; nothing for a task that is not counted."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(f"{int(task.completed):,}" if task.completed else "", style="progress.download")
        return super().render(task)


class _Left(TimeRemainingColumn):
    """How long it will take, where the number of all is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else Text("left ").append_text(super().render(task))


def is_heard_there(level: int) -> bool:
    """Whether somebody's handler writes the logger's messages of this level to the terminal already."""
    terminals = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    logger: logging.Logger | None = LOGGER if LOGGER.isEnabledFor(level) else None
    while logger is not None:
        for handler in logger.handlers:
            stream = getattr(getattr(handler, "console", handler), "file", None) or getattr(handler, "stream", None)
            if handler.level <= level and any(stream is each for each in terminals if each is not None):
                return True
        logger = logger.parent if logger.propagate else None
    return False


def find_notebook() -> Any:
    """IPython's module of displays where this process is a notebook's; else None. Nothing is imported for it."""
    shell = sys.modules.get("IPython")
    try:
        running = shell.get_ipython() if shell is not None else None
    except AttributeError:
        return None
    # A notebook has a kernel; IPython's shell is a terminal.
    return importlib.import_module("IPython.display") if hasattr(running, "kernel") else None


class ProgressLine:
    """One progress bar for successive tasks; messages are printed above it.

    Every message goes to the logger `vggkit`, too. Where a handler of it writes to this terminal already, the
    message is not printed a second time.

    Args:
        quiet: Show no progress and no messages but warnings; the logger receives all of them.
        rate: The unit of the rate, such as `images/s`; empty: no rate is shown.
        silent: Show nothing at all, and send nothing to the logger: another process does, which does the same work.
    """

    def __init__(self, *, quiet: bool = False, rate: str = "", silent: bool = False) -> None:
        self.quiet, self._silent = quiet or silent, silent
        self.console = open_terminal(file=sys.stderr, soft_wrap=True)
        self._notebook, self._display = find_notebook(), None
        # FORCE_COLOR and its like make rich take a file for a terminal; no bar belongs there.
        self._is_live = self.console.is_terminal and is_terminal(sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Count(),
            *([_Rate(rate)] if rate else []),
            TimeElapsedColumn(),
            _Left(),
            console=self.console,
            transient=True,
            disable=self.quiet or not self._is_live,
            # Text that is printed meanwhile goes above the bar, but only where it would break it: results that are
            # written to a file or a pipe stay there.
            redirect_stdout=is_terminal(sys.stdout),
            redirect_stderr=True,
        )
        self._rate = rate
        self._written = time.monotonic()
        self._task_start = ("", 0, self._written)
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._display is not None:
            self._display.update({"text/plain": ""}, raw=True)

    def log(self, message: str) -> None:
        """Print a line above the bar."""
        if self._silent:
            return
        if not self.quiet and not is_heard_there(logging.INFO):
            self._print(message)
        LOGGER.info("%s", escape_controls(message))

    def warn(self, message: str) -> None:
        """Print a line above the bar, quiet or not: an error or a warning."""
        if self._silent:
            return
        if not is_heard_there(logging.WARNING):
            self._print(message)
        LOGGER.warning("%s", escape_controls(message))

    def _print(self, message: str) -> None:
        shown = escape_controls(message)
        for line in break_between_words(shown).split("\n") if self._is_live else [shown]:
            self._progress.print(line) if self._progress.live.is_started else self.console.print(line)

    def show(self, what: str, done: int, total: int | None) -> None:
        """Set the bar: the current task, how much of it is done, and of how much if that is known."""
        if self.quiet:
            return
        what = escape_controls(what)
        if not self._is_live:
            self._write(what, done, total)
        task = self._progress.tasks[0]
        if task.description != what or done < task.completed:
            # A new task: rich keeps the earlier total where the new one is unknown.
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, completed=done, total=total)

    def _write(self, what: str, done: int, total: int | None) -> None:
        """A line at intervals, with the remaining time at the average pace so far."""
        now = time.monotonic()
        if self._task_start[0] != what or done < self._task_start[1]:
            self._task_start = (what, done, now)
        # The end of a task is shown too, since a notebook shows its line until the next task begins.
        is_over = self._notebook is not None and done == total
        between = SECONDS_BETWEEN_LINES if self._notebook is None else SECONDS_BETWEEN_UPDATES
        if now - self._written <= between and not is_over:
            return
        self._written = now
        message = f"{what}: {done}" + (f" of {total}" if total is not None else "")
        if total is None and not done:
            message = what  # nothing that is counted
        _, before, since = self._task_start
        if self._rate and done > before and now > since:
            pace = (done - before) / (now - since)
            left = f", {(total - done) / pace:.0f} s left" if total is not None else ""
            message = f"{message}, {pace:.3g} {self._rate}{left}"
        if self._notebook is None:
            self._print(message)
        elif self._display is None:
            self._display = self._notebook.display({"text/plain": message}, raw=True, display_id=True)
        else:
            self._display.update({"text/plain": message}, raw=True)
