"""Two computations at the same time, each on half of the processors.

Layers of few places, and many small steps, divide badly between processors: two passes side by side take less
time than one after the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")


def compute_side_by_side(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of both, on a CPU.

    `first` runs in a thread of its own, without gradients, and outside of contexts such as autocast; `second` in
    this one. Without a second thread of torch they run one after the other.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        with torch.no_grad():
            found = first()
        return found, second()

    def run() -> First:
        torch.set_num_threads(threads // 2)  # of this thread
        with torch.no_grad():
            return first()

    other = _find_thread(os.getpid()).submit(run)
    torch.set_num_threads(threads - threads // 2)
    try:
        result = second()
    finally:
        # The number is also that of threads that begin later: set last, when the other has set its own.
        other.exception()
        torch.set_num_threads(threads)
    return other.result(), result


@cache
def _find_thread(process: int) -> ThreadPoolExecutor:
    """The other thread, kept: what torch prepares for each layer, it prepares for each thread.

    A process that was forked does not have its parent's threads.
    """
    return ThreadPoolExecutor(1, f"vggkit-{process}")
