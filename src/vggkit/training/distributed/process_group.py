"""The processes of a training, and how they exchange values. No torch until there are two of them.

`torchrun` starts them and gives each its rank. Code that knows nothing of processes sees `SINGLE`: rank 0 of 1.

Shape letters: N images.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import numpy as np

from vggkit.errors import BadInput
from vggkit.images.lazy_images import LazyImages

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGroup:
    """A process among those that train together; each method is called by all of them, in the same order."""

    rank: int = 0
    """Number of this process, from 0. The first one writes the run's folder and prints."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process among those of its machine."""
    local_size: int = 1
    """Number of processes on this machine."""
    device: str = "auto"
    """Where this process computes, such as `cuda:1`; as it was requested where there is one process."""
    backend: str = "none"
    """What carries tensors between processes: gloo, nccl, or none for a single process."""
    restarts: int = 0
    """How often torchrun has started all processes again, after one of them failed."""
    began_with: int = 0
    """Number of processes with which the run began, whose order images of shards keep; 0: as many as now."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def seed_parts(self) -> tuple[int, ...]:
        """What to add to the seed of a draw that differs between processes; nothing for the first one."""
        return () if self.rank == 0 else (self.rank,)

    def take_share(self, values: Sequence[Value]) -> Sequence[Value]:
        """The process's part of a sequence: consecutive, and in all processes together each value once."""
        share = self.find_share(len(values))
        if isinstance(values, LazyImages):
            return cast(Sequence[Value], values.select(np.arange(share.start, share.stop)))
        return values[share]

    def find_share(self, count: int, *, rank: int | None = None) -> slice:
        """The places of a process's part of so many values; None: this process.

        >>> [ProcessGroup(rank=rank, size=3).find_share(7) for rank in range(3)]
        [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
        """
        rank = self.rank if rank is None else rank
        each, rest = divmod(count, self.size)
        first = rank * each + min(rank, rest)
        return slice(first, first + each + (rank < rest))

    def lead(self, compute: Callable[[], Value]) -> Value:
        """What the first process computes, in every process."""
        if self.size == 1:
            return compute()
        import torch.distributed as dist

        values = [compute() if self.is_first else None]
        dist.broadcast_object_list(values, src=0)
        value: Value = values[0]  # type: ignore[assignment]
        return value

    def gather(self, value: Value) -> list[Value]:
        """The value of each process by its rank, in the first process; none in the others."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, found, dst=0)
        return found or []

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """The sum of each number over the processes; the same bits in each of them."""
        if self.size == 1:
            return numbers
        import torch
        import torch.distributed as dist

        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals)
        return tuple(totals.tolist())

    def maximum(self, *numbers: float) -> tuple[float, ...]:
        """The largest of each number over the processes."""
        if self.size == 1:
            return numbers
        import torch
        import torch.distributed as dist

        totals = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(totals, dist.ReduceOp.MAX)
        return tuple(totals.tolist())

    def lead_tensors(
        self, compute: "Callable[[], tuple[Mapping[str, Tensor], Value]]"
    ) -> "tuple[dict[str, Tensor], Value]":
        """Tensors by key, and a value with them, that the first process computes, in every process, on the CPU."""
        if self.size == 1:
            tensors, value = compute()
            return dict(tensors), value
        import torch
        import torch.distributed as dist

        tensors, value = compute() if self.is_first else ({}, None)  # type: ignore[assignment]
        kinds, value = self.lead(lambda: ({key: (each.shape, each.dtype) for key, each in tensors.items()}, value))
        found = {}
        for key, (shape, dtype) in kinds.items():
            there = tensors[key].detach().cpu().contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            dist.broadcast(there, src=0)
            found[key] = there
        return found, value

    def demand_equal(self, facts: Mapping[str, object]) -> None:
        """Raise BadInput, in every process, where a fact differs between processes; it names both values.

        Args:
            facts: What must be the same, by what it is called in the message.
        """
        if self.size == 1:
            return
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, {name: str(value) for name, value in facts.items()})
        for name in facts:
            for rank, given in enumerate(found):
                if given[name] != found[0][name]:
                    raise BadInput(
                        f"processes that train together must agree, and process {rank} of {self.size} has another "
                        f"{name} than process 0: {_shorten(given[name])}, not {_shorten(found[0][name])}; give "
                        "every machine the same version, options and images"
                    )


SINGLE: Final = ProcessGroup()
"""A process that trains alone."""


def count_started() -> int:
    """Number of processes that torchrun started, by its environment variables; 1 where it did not."""
    try:
        return max(1, int(os.environ["WORLD_SIZE"])) if "RANK" in os.environ else 1
    except (KeyError, ValueError):
        return 1


def _shorten(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
