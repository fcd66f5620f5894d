"""Processes start together and end together: those that torchrun started join, and stop when one of them fails.

A process that fails leaves its error in the store that all of them reach, and closes its connections. The others
then fail in their next exchange, and find the reason there; the first one reports it.
"""

import atexit
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import vggkit
from vggkit import errors
from vggkit._version import __version__
from vggkit.errors import BadConfiguration, BadInput, Stopped, VggkitError
from vggkit.training.distributed.process_group import ProcessGroup, count_started

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

JOIN_SECONDS: Final = 300.0
"""How long a process waits for the others at the start; the environment variable VGGKIT_JOIN_SECONDS changes it."""
EXCHANGE_SECONDS: Final = 1800.0
"""How long a process waits in an exchange for others that are still alive."""
REPORT_SECONDS: Final = 15.0
"""How long a process that failed waits for the first one to report its error, before torchrun ends them all."""
GRACE_SECONDS: Final = 5.0
"""How long after another's failure a process may still be in an exchange, before it is ended."""
PROBLEM: Final = "problem"
"""The key of the first error."""
REPORTED: Final = "reported"
"""The key that is set when the first process has reported it."""


class LostProcess(BadInput):
    """Another process ended, or cannot be reached any more, without leaving a reason."""


class ReportedByFirst(SystemExit):
    """The end of a process other than the first, which reports the error; its cause is the error itself."""


@contextmanager
def join_processes(device: str = "auto") -> Iterator[ProcessGroup]:
    """Be one of the processes that torchrun started while the body runs; `SINGLE` where there is one.

    Args:
        device: auto, cpu or cuda; of several GPUs each process of a machine takes its own.

    Raises BadInput where the others do not appear or differ in their version. Where one of them fails in the body,
    the first one raises its error, and all others end quietly (`ReportedByFirst`).
    """
    size = count_started()
    if size == 1:
        yield ProcessGroup(device=device)
        return
    import torch.distributed as dist

    if not dist.is_available():
        raise BadInput(f"{size} processes were started, and this build of torch has no torch.distributed")
    if dist.is_initialized():  # by the caller's own code, which also ends it
        yield _describe_group(device)
        return
    store, group, number = _join(device, size)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(group, number, ended), name="watch other processes", daemon=True).start()
    try:
        group.demand_equal(_describe_code())
        yield group
    except BaseException as problem:
        failure = _report(problem, store, group)
        if failure is problem:
            raise
        raise failure from problem
    finally:
        ended.set()
        with suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()


def _join(device: str, size: int) -> "tuple[Store, ProcessGroup, int]":
    """The store of this call, the processes, and the number of the call, as a process may train several times."""
    import torch.distributed as dist

    seconds = _read_join_seconds()
    chosen = _choose_device(device)
    backend = "cpu:gloo,cuda:nccl" if chosen.startswith("cuda") else "gloo"
    rank, place = int(os.environ["RANK"]), f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        shared = _open_store(is_host=is_host, seconds=seconds)
        if is_host:  # the others may join again, in a second call, before this process does
            atexit.register(lambda: shared)
        number = shared.add(f"vggkit/{rank}", 1)
        store = dist.PrefixStore(f"vggkit/join {number}", shared)  # type: ignore[attr-defined]
        # Every process is counted before any of them waits for tensors of another.
        store.set(f"joined/{rank}", "")
        _wait_for_all(store, size, seconds, place)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=EXCHANGE_SECONDS),
        )
    except VggkitError:
        raise
    except (RuntimeError, ValueError) as problem:  # torch's errors of stores are RuntimeErrors
        raise BadInput(
            f"process {rank} of {size} did not reach process 0 at {place} within {seconds:g} s "
            f"({_first_line(problem)}): start the same command on every machine, with an address that all of them "
            "reach (torchrun --rdzv-endpoint HOST:PORT)"
        ) from problem
    return store, _describe_group(chosen), number


def _read_join_seconds() -> float:
    """How long a process waits for the others; raises BadInput."""
    text = os.environ.get("VGGKIT_JOIN_SECONDS", str(JOIN_SECONDS))
    with suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise BadInput(f"the environment variable VGGKIT_JOIN_SECONDS must be a number of seconds, got {text!r}")


def _open_store(*, is_host: bool, seconds: float) -> "Store":
    """The store that all processes reach, at the address that torchrun gives."""
    import torch.distributed as dist

    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_host,
        wait_for_workers=False,
        multi_tenant=True,
        timeout=timedelta(seconds=seconds),
    )


def _wait_for_all(store: "Store", size: int, seconds: float, place: str) -> None:
    """Wait until every process has joined; raises BadInput that names those that did not."""
    end = time.monotonic() + seconds
    while missing := [rank for rank in range(size) if not store.check([f"joined/{rank}"])]:
        if time.monotonic() > end:
            shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
            raise BadInput(
                f"{size - len(missing)} of {size} processes joined at {place} within {seconds:g} s; missing: "
                f"process {shown}. Start the same command on every machine (torchrun --nnodes N --rdzv-endpoint "
                "HOST:PORT), or wait longer with the environment variable VGGKIT_JOIN_SECONDS"
            )
        time.sleep(0.05)


def _choose_device(device: str) -> str:
    """The device of this process: of a machine's GPUs, that of its local rank."""
    from vggkit.hardware import choose_device

    chosen = choose_device(device)
    local, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if chosen.type == "mps":
        return "cpu"  # there is one, and nothing carries its tensors
    if chosen.type != "cuda":
        return str(chosen)
    import torch

    if count > torch.cuda.device_count() or chosen.index is not None:
        raise BadConfiguration(
            f"{count} processes on a machine with {torch.cuda.device_count()} GPUs, device={device}: start one for "
            "each GPU (torchrun --nproc-per-node gpu) and leave the number out of device"
        )
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _describe_group(device: str) -> ProcessGroup:
    import torch.distributed as dist

    return ProcessGroup(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device=device,
        backend="nccl" if device.startswith("cuda") else "gloo",
        restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _describe_code() -> dict[str, str]:
    """The versions that must be the same everywhere."""
    import torch

    return {"version of vggkit": f"{__version__} ({digest_code()})", "version of torch": str(torch.__version__)}


def digest_code() -> str:
    """A digest of vggkit's own modules: 12 hexadecimal digits."""
    root, found = Path(vggkit.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _report(problem: BaseException, store: "Store", group: ProcessGroup) -> BaseException:
    """Leave the error for the others, or find theirs; returns what this process is to raise.

    An error that is none of vggkit's is a fault of the code: it is raised where it occurred, with its traceback.
    """
    import torch.distributed as dist

    lost = isinstance(problem, RuntimeError) and not isinstance(problem, VggkitError) and _is_broken(problem)
    if not lost:
        entry = {"rank": group.rank, "kind": type(problem).__name__, "text": str(problem)}
        if isinstance(problem, Stopped):
            entry |= {"signal": problem.signal_number}
        with suppress(RuntimeError):
            store.compare_set(PROBLEM, "", json.dumps(entry))
    with suppress(RuntimeError, ValueError, AssertionError):
        dist.destroy_process_group()  # the others wake
    found = _find_problem(store, seconds=2.0 if lost else 0.0)
    if group.is_first:
        atexit.register(_set_reported, store)
    else:
        with suppress(RuntimeError):
            store.wait([REPORTED], timedelta(seconds=REPORT_SECONDS))
    if not group.is_first:
        is_fault = not (lost or isinstance(problem, VggkitError | KeyboardInterrupt | SystemExit))
        return problem if is_fault else ReportedByFirst(2)
    if not lost:
        return problem
    if found is None or found["rank"] == group.rank:
        return LostProcess(
            f"another of the {group.size} processes ended, or its machine cannot be reached any more: the training "
            "stops here, and torchrun --max-restarts starts it again from its last saved state"
        )
    return _restore_problem(found)


def _is_broken(problem: RuntimeError) -> bool:
    """Whether it is an error of the connection, which backends report in their own words."""
    import torch.distributed as dist

    words = ("gloo", "connection", "nccl", "socket", "process group", "timed out")
    return isinstance(problem, dist.DistError) or any(word in str(problem).lower() for word in words)


def _find_problem(store: "Store", *, seconds: float) -> dict[str, Any] | None:
    """The first error that any process left, waited for so long."""
    end = time.monotonic() + seconds
    with suppress(RuntimeError, ValueError):  # the store may be gone with its process
        while True:
            if store.check([PROBLEM]):
                entry: dict[str, Any] = json.loads(store.get(PROBLEM))
                return entry
            if time.monotonic() >= end:
                return None
            time.sleep(0.05)
    return None


def _restore_problem(entry: dict[str, Any]) -> BaseException:
    """The error of another process, as one of this process."""
    if "signal" in entry:
        return Stopped(int(entry["signal"]))
    kind = getattr(errors, str(entry["kind"]), None)
    text = f"process {entry['rank']}: {entry['text']}"
    if isinstance(kind, type) and issubclass(kind, VggkitError):
        return kind(text)
    return BadInput(f"process {entry['rank']} failed ({entry['kind']}: {entry['text']})")


def _set_reported(store: "Store") -> None:
    with suppress(RuntimeError):
        store.set(REPORTED, "")


def _watch(group: ProcessGroup, number: int, ended: threading.Event) -> None:
    """End this process where another failed and an exchange does not notice it, as a GPU's may not."""
    import torch.distributed as dist

    try:
        shared = _open_store(is_host=False, seconds=30.0)
        store = dist.PrefixStore(f"vggkit/join {number}", shared)  # type: ignore[attr-defined]
        while not ended.wait(1.0):
            if store.check([PROBLEM]):
                break
        else:
            return
        if ended.wait(GRACE_SECONDS):
            return
        found = _find_problem(store, seconds=0.0)
        if found is None or found["rank"] == group.rank:
            return
        if group.is_first:
            sys.stderr.write(f"vggkit: error: {_restore_problem(found)}\n")
            sys.stderr.flush()
            _set_reported(store)
        os._exit(2)
    except (RuntimeError, ValueError):  # the store is gone: the exchange notices that too
        return


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]
