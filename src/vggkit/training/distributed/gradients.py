"""The exchange of gradients: torch's DistributedDataParallel, whole or compressed.

The mean of the processes' gradients is what each of them steps by. It is exact with `none`; `bf16` rounds each
process's gradient to bfloat16 (half the bytes); `powersgd` sends each matrix as two thin ones (Vogels et al. 2019,
"PowerSGD", arXiv:1905.13727), and adds what was lost to the gradient of the next step.
"""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from vggkit.errors import BadCheckpoint
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.forward_pass import ForwardPass
from vggkit.training.recipe import GradientCompression

RANK: Final = 4
"""Columns of PowerSGD's thin matrices."""
EXACT_STEPS: Final = 10
"""Steps before PowerSGD begins: the first gradients of a network change most."""
EPSILON: Final = 1e-8
"""Added to lengths before PowerSGD divides by them, so that a gradient of zeros stays one."""


class GradientExchange:
    """A module whose parameters' gradients are the mean over all processes after each `backward`.

    Args:
        module: Its output is computed by `forward`.
        compression: How gradients are sent.
        group: The processes.
        device: Where the module is.
    """

    def __init__(
        self,
        module: ForwardPass,
        *,
        compression: GradientCompression,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        self._group, self._device = group, device
        self._powersgd: PowerSGDState | None = None
        if compression == "powersgd":  # what nothing reads, without which torch warns of the search below
            module.register_parameter("unused", nn.Parameter(torch.zeros(1, device=device)))
        self.parameters = _list_exchanged(module)
        self.forward: Any = module
        if not self.parameters:  # a module without any is refused
            return
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(module.own))
        # Statistics of batch norm are averaged by the caller. Without the search for unused parameters torch sorts
        # them anew after the first step, and a resumed training would begin in another order than it stopped in.
        with warnings.catch_warnings():
            # Its new name begins with another version of torch than the oldest one that vggkit takes.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.forward = DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=compression == "powersgd"
            )
        match compression:
            case "bf16":
                self.forward.register_comm_hook(None, default_hooks.bf16_compress_hook)
            case "powersgd":
                self._powersgd = PowerSGDState(
                    None,
                    matrix_approximation_rank=RANK,
                    start_powerSGD_iter=EXACT_STEPS,
                    orthogonalization_epsilon=EPSILON,
                )
                self.forward.register_comm_hook(self._powersgd, _send_thin)

    def fits(self, module: ForwardPass) -> bool:
        """Whether the parameters that learn are still the same; torch finds them at the start alone."""
        return self.parameters == _list_exchanged(module)

    def wait(self) -> AbstractContextManager[None]:
        """While it lasts gradients are added up in each process, and not exchanged."""
        return self.forward.no_sync() if self.parameters else nullcontext()

    def state(self) -> dict[str, Tensor]:
        """What PowerSGD knows of earlier steps, by key, in the first process: the lost parts of every process."""
        known = self._powersgd
        if known is None:
            return {}
        found = {
            "iteration": torch.tensor(known.iter),
            "parameters": torch.tensor(len(self.parameters)),
            "processes": torch.tensor(self._group.size),
        }
        for name, thin in (("p", known.p_memory_dict), ("q", known.q_memory_dict)):
            found |= {f"{name}/{bucket}": value for bucket, value in thin.items()}
        for bucket, value in known.error_dict.items():
            for rank, lost in enumerate(self._group.gather(value.cpu())):
                found[f"lost/{rank}/{bucket}"] = lost
        return {f"powersgd/{key}": value for key, value in found.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state` was saved; raises BadCheckpoint if that was with another number of processes."""
        known = self._powersgd
        given = {
            key.removeprefix("powersgd/"): value for key, value in state.items() if key.startswith("powersgd/")
        }
        # Layers that begin to learn in this epoch change the order of all.
        if known is None or not given or int(given["parameters"]) != len(self.parameters):
            return
        if int(given["processes"]) != self._group.size:
            raise BadCheckpoint(
                f"the training ran on {int(given['processes'])} processes, each of which has its part of the state "
                f"of PowerSGD, and there are {self._group.size} now; resume it on as many as before"
            )
        known.iter = int(given["iteration"])
        places = {
            "p/": known.p_memory_dict,
            "q/": known.q_memory_dict,
            f"lost/{self._group.rank}/": known.error_dict,
        }
        for start, values in places.items():
            values.update(
                (int(key.removeprefix(start)), value.to(self._device, copy=True))
                for key, value in given.items()
                if key.startswith(start)
            )


def _list_exchanged(module: ForwardPass) -> list[str]:
    own = module.own
    return [name for name, value in module.named_parameters() if value.requires_grad and name not in own]


class _Matrices:
    """A bucket whose kernels are matrices, as PowerSGD takes them: they lie in memory as rows of H·W·C numbers."""

    def __init__(self, bucket: GradBucket) -> None:
        self.index, self.buffer, self.is_last = bucket.index, bucket.buffer, bucket.is_last
        self._bucket = bucket

    def gradients(self) -> list[Tensor]:
        return [_as_rows(value) for value in self._bucket.gradients()]


def _as_rows(gradient: Tensor) -> Tensor:
    """A view (O, H·W·C) of a kernel's gradient (O, C, H, W), in the order in which it lies in memory."""
    if gradient.dim() != 4:
        return gradient
    rows = gradient.permute(0, 2, 3, 1)
    return (rows if rows.is_contiguous() else gradient).view(len(gradient), -1)


def _send_thin(state: PowerSGDState, bucket: GradBucket) -> Future[Tensor]:
    found: Future[Tensor] = powerSGD_hook(state, _Matrices(bucket))
    if bucket.buffer().device.type == "cpu":
        # Its steps are sent by threads of gloo's, and those of two buckets could meet in any order.
        found.wait()
    return found
