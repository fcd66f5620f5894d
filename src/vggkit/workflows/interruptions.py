"""Ctrl-C and the system's wish to end the process, heard between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ASKING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def hear_signals() -> Iterator[Callable[[], int]]:
    """While it lasts, give a function that says which signal asks to stop, or 0; a second one ends at once.

    Only a process's main thread hears signals; in another nothing asks.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def hear(number: int, _: FrameType | None) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in ASKING}
    try:
        yield lambda: heard[0] if heard else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
