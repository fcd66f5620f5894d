"""Progress of long work on standard error: a live bar in a terminal, a line now and then in a file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from rich.console import Console
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

SECONDS_BETWEEN_LINES: Final = 10.0
"""How often a file or a pipe hears of the progress."""


@contextmanager
def only_our_errors() -> Iterator[None]:
    """Keep what C libraries write to standard error away from it: libtiff's complaints would tear the bar."""
    try:
        is_ours = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # closed, or somebody's own
        is_ours = False
    if not is_ours:
        yield
        return
    before, kept = sys.stderr, os.dup(2)
    before.flush()
    with open(kept, "w", encoding=before.encoding, errors="backslashreplace", buffering=1) as ours:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = before
            ours.flush()
            os.dup2(kept, 2)


class _Rate(ProgressColumn):
    """How many a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g} {self.unit}" if task.speed else "")


class ProgressLine:
    """One bar whose work changes; messages stand above it. Silent where it was asked to be.

    Args:
        quiet: Show nothing.
        rate: What is done a second, such as `images/s`; empty: no rate is shown.
    """

    def __init__(self, *, quiet: bool = False, rate: str = "") -> None:
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *([_Rate(rate)] if rate else []),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._rate = rate
        self._written = time.monotonic()
        self._begun = ("", 0, self._written)
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.print(message, markup=False) if self._progress.live.is_started else self.console.print(
            message, markup=False
        )

    def show(self, what: str, done: int, total: int | None) -> None:
        """Set the bar: what is being done, how much of it, and of how much where that is known."""
        if not self.console.is_terminal:
            self._write(what, done, total)
        task = self._progress.tasks[0]
        if task.description != what or done < task.completed:
            self._progress.reset(self._task, description=what, total=total, visible=True)
        self._progress.update(self._task, completed=done, total=total)

    def _write(self, what: str, done: int, total: int | None) -> None:
        """A line now and then, with what is left at the pace since this work began."""
        now = time.monotonic()
        if self._begun[0] != what or done < self._begun[1]:
            self._begun = (what, done, now)
        if now - self._written <= SECONDS_BETWEEN_LINES:
            return
        self._written = now
        said = f"{what}: {done}" + (f" of {total}" if total is not None else "")
        _, before, since = self._begun
        if self._rate and done > before and now > since:
            pace = (done - before) / (now - since)
            left = f", {(total - done) / pace:.0f} s left" if total is not None else ""
            said = f"{said}, {pace:.3g} {self._rate}{left}"
        self.say(said)
