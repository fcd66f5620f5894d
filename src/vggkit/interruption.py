"""Ctrl-C and the system's wish to end the process: long work stops where its state is whole, to be gone on with."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from vggkit.errors import Stopped

ASKING: Final = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """What was heard. Code that can stop at a good moment sets `patient` meanwhile, and asks `find_stop`."""

    def __init__(self) -> None:
        self.patient = False
        self._heard = 0

    def find_stop(self) -> int:
        """The signal that asks to stop, or 0."""
        return self._heard

    def hear(self, number: int, _: FrameType | None) -> None:
        """Take note of a signal; a second one, or one to somebody who is not patient, ends at once."""
        if self._heard or not self.patient:
            raise Stopped(number)
        self._heard = number


@contextmanager
def hear_signals(find_command: Callable[[], str] = lambda: "") -> Iterator[Signals]:
    """While it lasts, hear requests to stop, and clean up on the way out.

    What ends it carries the command that goes on, as it is found then. Only a process's main thread hears
    signals; in another nobody asks.
    """
    signals = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, signals.hear) for number in ASKING}
    try:
        yield signals
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped) and stop.command:
            raise
        raise Stopped(getattr(stop, "signal_number", signal.SIGINT), find_command()) from stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
