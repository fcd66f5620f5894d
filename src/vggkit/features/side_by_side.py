"""Two computations at the same time, each on half of the processors.

Layers of few places, and many small steps, divide badly between processors: two passes side by side take less
time than one after the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")


def is_thread_alike() -> bool:
    """Whether another thread would compute the same: contexts such as those of torch.func belong to a thread."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def compute_side_by_side(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of both, on a CPU, each with half of this thread's processors.

    `first` runs in a thread of its own, without gradients and outside of contexts such as autocast; `second` in
    this one. Where there is one processor alone, they run one after the other. Several callers take turns. The
    number of threads that is set meanwhile is also that of a thread that uses torch for the first time then.
    """
    other, turn = _open_thread(os.getpid())
    with turn:
        threads = torch.get_num_threads()
        half = threads // 2
        if half == 0:
            with torch.no_grad():
                found = first()
            return found, second()

        def run() -> First:
            torch.set_num_threads(half)
            with torch.no_grad():
                return first()

        running = other.submit(run)
        torch.set_num_threads(half)
        try:
            result = second()
        finally:
            running.exception()  # has ended before the number is set back
            torch.set_num_threads(threads)
        return running.result(), result


@cache
def _open_thread(process: int) -> tuple[ThreadPoolExecutor, Lock]:
    """A thread that is kept, as what torch prepares for each layer, it prepares for each thread; and its lock.

    A process that was forked does not have its parent's threads.
    """
    return ThreadPoolExecutor(1, f"vggkit-{process}"), Lock()


_open_thread(os.getpid())  # before threads could do so at the same time
