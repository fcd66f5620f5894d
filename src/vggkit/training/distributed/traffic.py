"""Counting the bytes that processes exchange, by the tensors that are handed to torch's collectives."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(slots=True)
class Traffic:
    """What this process handed to collectives."""

    bytes_by_operation: dict[str, int] = field(default_factory=dict)
    """The whole tensors' sizes, such as those that all processes together give to a gathering, by collective."""

    def add(self, operation: str, count: int) -> None:
        """Count so many more bytes."""
        self.bytes_by_operation[operation] = self.bytes_by_operation.get(operation, 0) + count

    @property
    def bytes(self) -> int:
        """Of all collectives."""
        return sum(self.bytes_by_operation.values())

    def estimate_sent(self, size: int) -> float:
        """Bytes that each of so many processes sends, in a ring: twice for a sum that all get, else once.

        Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms".
        """
        return sum(
            count * (2 if name == "allreduce_" else 1) * (size - 1) / size
            for name, count in self.bytes_by_operation.items()
        )


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Count the collectives of this process while the body runs, those of DistributedDataParallel's backward too.

    Sums that other threads start, such as PowerSGD's later ones, are counted as they are called.
    """
    found, own, all_reduce = Traffic(), threading.get_ident(), dist.all_reduce

    def count(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        if threading.get_ident() != own:
            found.add("allreduce_", _weigh(tensor))
        return all_reduce(tensor, op, group, async_op)

    dist.all_reduce = count
    try:
        with _Counting(found):
            yield found
    finally:
        dist.all_reduce = all_reduce


class _Counting(TorchDispatchMode):
    def __init__(self, found: Traffic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._found.add(func.overloadpacket.__name__, max((_weigh(value) for value in args), default=0))
        return func(*args, **(kwargs or {}))


def _weigh(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(_weigh, value))
    return 0
