"""Device, precision, threads, memory and seeds: all choices that depend on the machine are made here."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
        raise BadInput(f"device {name!r} is not on this machine; --device auto uses an available one")
    return device


def has_accelerator() -> bool:
    """Whether there may be a GPU that torch computes on; False is certain, and torch is not imported to know it."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if Path("/dev/kfd").exists():  # AMD's, which torch also calls cuda
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):  # no driver, or not one
        return False


def has_x86() -> bool:
    """Whether the processor is Intel's, AMD's or another one with 64-bit x86 instructions."""
    return platform.machine().lower() in ("x86_64", "amd64")


def computes_bf16(device: "torch.device | str") -> bool:
    """Whether the device multiplies bfloat16 natively, several times as fast as float32.

    Of a processor under Linux this is known without torch.
    """
    match device if isinstance(device, str) else device.type:
        case "cuda":
            import torch

            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        case "cpu":
            return not find_processor_features().isdisjoint(("avx512_bf16", "amx_bf16"))
        case _:
            return False


def multiplies_bytes() -> bool:
    """Whether the processor is known to sum products of bytes without saturation: AVX VNNI, AVX-512 VNNI or AMX."""
    return not find_processor_features().isdisjoint(("avx_vnni", "avx512_vnni", "amx_int8"))


_FEATURES_BELOW: Final[dict[str, tuple[str, ...]]] = {
    "SSE41": (),
    "AVX": (),
    "AVX2": (),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX2_VNNI_2": ("avx_vnni",),
    "AVX512_CORE": (),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE_BF16": ("avx512_vnni", "avx512_bf16"),
    "AVX512_CORE_FP16": ("avx512_vnni", "avx512_bf16"),
}
"""The remaining features if oneDNN, which computes for PyTorch and OpenVINO, is limited by ONEDNN_MAX_CPU_ISA."""


def find_processor_features() -> frozenset[str]:
    """Those of avx_vnni, avx512_vnni, avx512_bf16, amx_int8 and amx_bf16 the engines can use here.

    Every choice that depends on the processor is made from this. Linux reports them without torch; elsewhere torch
    reports whether there is bfloat16, and int8 features are unknown.
    """
    found = _list_processor_flags()
    if found is None:
        import torch

        known = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
        found = frozenset(name for name, there in known.items() if there)
    found &= {"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return found.intersection(_FEATURES_BELOW[limit]) if limit in _FEATURES_BELOW else found


def _list_processor_flags() -> frozenset[str] | None:
    """The features of an x86 processor, where the system reports them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return frozenset(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())
    except (OSError, StopIteration):
        return None


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks of freed memory for the next step; returns whether it does.

    glibc gives blocks of more than 32 MB back at once, and the pages of each new one are cleared by the
    system: a quarter of a training step of VGG11. The process then keeps its peak size, whatever else
    it does; so this is for a command, whose process trains and ends, and not for a library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def find_available_memory() -> int | None:
    """Bytes of memory that can be had without swapping, a container's limit minded; None where unknown."""
    found = [value for value in (_available_in_system(), _available_in_container()) if value is not None]
    return min(found) if found else None


def _available_in_system() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            line = next(line for line in lines if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:  # macOS reports only the total
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return None


def _available_in_container() -> int | None:
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            most = int(limit.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as used:
            return max(0, most - int(used.read()))
    except (OSError, ValueError):  # no limit is written as max
        return None


def find_peak_memory() -> int | None:
    """Peak memory of this process in bytes; None where the system does not report it."""
    try:  # Linux; getrusage may report the process that started this one there
        with open("/proc/self/status", encoding="ascii") as lines:
            line = next(line for line in lines if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def count_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def derive_seed(*parts: int | str) -> int:
    """A seed for one draw, from everything the draw may depend on: 63 bits of its SHA-256."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def describe_machine(device: "torch.device") -> dict[str, str]:
    """Processor or accelerator and versions, for a run's provenance."""
    import torch

    import vggkit

    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else name_processor()
    return {
        "device": f"{device.type}: {processor}",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "vggkit": vggkit.__version__,
    }


def name_processor() -> str:
    """The processor's name, where the system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {count_threads()} processors"
