"""Interruption by Ctrl-C or SIGTERM: long work stops when its state is complete, and can be continued."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from vggkit.errors import Stopped

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Received signals. Code that stops at a suitable moment sets `defers_signals` and calls `find_stop` then."""

    def __init__(self) -> None:
        self.defers_signals = False
        self._received = 0

    def find_stop(self) -> int:
        """The signal that requests to stop, or 0."""
        return self._received

    def receive(self, number: int, _: FrameType | None) -> None:
        """Record a signal; a second one, or one while `defers_signals` is not set, stops at once."""
        if self._received or not self.defers_signals:
            raise Stopped(number)
        self._received = number


@contextmanager
def handle_signals(find_command: Callable[[], str] = lambda: "") -> Iterator[Signals]:
    """Handle requests to stop while the body runs, and restore the handlers afterwards.

    The error carries the command that continues the work, as `find_command` gives it then. Only the main thread of
    a process receives signals; in others nothing is done.
    """
    signals = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signals.receive) for number in STOP_SIGNALS}
    try:
        yield signals
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped) and stop.command:
            raise
        raise Stopped(getattr(stop, "signal_number", signal.SIGINT), find_command()) from stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
