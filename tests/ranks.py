"""Processes that train together, as torchrun starts them, without its own ten seconds of start."""

import itertools
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from processes import Processes, Running

TRAIN = "import sys\nfrom vggkit.cli.main import main\nmain(sys.argv[1:])\n"


def start_ranks(
    processes: Processes,
    *arguments: object,
    code: str = TRAIN,
    size: int = 2,
    ranks: Sequence[int] | None = None,
    cwd: Path | str = ".",
    environment: Mapping[str, str] | None = None,
) -> list[Running]:
    """Processes 0 and 1, or others, of `size` that run `vggkit` with these arguments, or other lines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        processes.start_python(
            code,
            *arguments,
            cwd=cwd,
            environment={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                **(environment or {}),
            },
        )
        for rank in (range(size) if ranks is None else ranks)
    ]


def wait_for(ranks: Sequence[Running], *, codes: Sequence[int] = (0, 0), seconds: float = 100.0) -> None:
    """Wait until all have ended, with these exit codes; one that hangs is ended, and fails the test."""
    end = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    hanging = [rank for rank in ranks if rank.poll() is None]
    for rank in hanging:
        rank.send_signal(9)
        rank.wait()
    shown = "\n".join(itertools.chain.from_iterable((rank.out[-3000:], rank.err[-3000:]) for rank in ranks))
    assert not hanging, f"{len(hanging)} of {len(ranks)} processes hang\n{shown}"
    assert [rank.poll() for rank in ranks] == list(codes), shown
