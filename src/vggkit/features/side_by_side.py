"""Two computations at the same time, each on half of the processors.

Layers of few places, and many small steps, divide badly between processors: two passes side by side take less
time than one after the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Lock
from typing import TypeVar

import torch

First = TypeVar("First")
Second = TypeVar("Second")
_OPENING = Lock()


def is_thread_alike() -> bool:
    """Whether another thread would compute the same: contexts such as those of torch.func belong to a thread."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
    )


def compute_side_by_side(first: Callable[[], First], second: Callable[[], Second]) -> tuple[First, Second]:
    """The results of both, on a CPU, with gradients where this thread computes them.

    Each runs in a thread of its own, outside of contexts such as autocast, with half of this thread's processors;
    where it has one alone, they run one after the other.
    """
    has_gradients = torch.is_grad_enabled()
    with _OPENING:
        half = torch.get_num_threads() // 2
        pool = _open_pool(os.getpid(), half) if half else None
    if pool is None:
        return first(), second()

    def run(compute: Callable[[], First | Second]) -> First | Second:
        with torch.set_grad_enabled(has_gradients):
            return compute()

    futures = pool.submit(run, first), pool.submit(run, second)
    for each in futures:
        each.exception()  # both have ended before an error of one is raised
    return futures[0].result(), futures[1].result()  # type: ignore[return-value]


@cache
def _open_pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Two threads, kept: what torch prepares for each layer, it prepares for each thread.

    A process that was forked does not have its parent's threads.
    """
    usual, both = torch.get_num_threads(), Barrier(3)
    pool = ThreadPoolExecutor(2, f"vggkit-{process}", initializer=torch.set_num_threads, initargs=(threads,))
    for _ in range(2):
        pool.submit(both.wait)
    both.wait()
    torch.set_num_threads(usual)  # the number is also that of threads that begin later
    return pool
