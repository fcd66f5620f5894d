"""What the work runs on: device, threads, seeds. Chosen here and nowhere else."""

import hashlib
import os
import platform
from typing import TYPE_CHECKING

from vggkit.errors import BadInput

if TYPE_CHECKING:
    import torch


def choose_device(name: str = "auto") -> "torch.device":
    """The torch device of that name; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises BadInput for a device that this machine does not have.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise BadInput(f"device {name!r} is not one of auto, cpu, cuda, cuda:1, mps") from problem
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise BadInput(f"device {name!r} is not on this machine; --device auto takes what there is")
    return device


def count_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_loaders(device: "torch.device") -> int:
    """Processes that prepare pictures ahead of training; none on a CPU, which is busy training itself."""
    return 0 if device.type == "cpu" else max(1, min(8, count_threads() - 1))


def derive_seed(*parts: int | str) -> int:
    """A seed for one draw, from everything the draw may depend on: 63 bits of its SHA-256."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def describe_machine(device: "torch.device") -> dict[str, str]:
    """Processor or accelerator and versions, for a run's provenance."""
    import torch

    import vggkit

    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": f"{device.type}: {processor}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "vggkit": vggkit.__version__,
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {count_threads()} processors"
