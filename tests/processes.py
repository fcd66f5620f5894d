"""Processes that start in a moment: forked from one that has imported what they need, and computed nothing.

A new interpreter takes ten seconds of a slow processor to import torch, scikit-learn and matplotlib; where what
counts is a process of its own (signals, kills, output), that is all it would add.
"""

import io
import multiprocessing
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

IMPORTED = (
    "torch._dynamo",  # with the first optimizer
    "sklearn.metrics",
    "matplotlib.backends.backend_agg",
    "vggkit.cli.bench",
    "vggkit.cli.check",
    "vggkit.cli.compare",
    "vggkit.cli.evaluate",
    "vggkit.cli.models",
    "vggkit.cli.options",
    "vggkit.cli.predict",
    "vggkit.cli.train",
    "vggkit.reports.pages.rendering",
    "vggkit.workflows.predict",
    "vggkit.workflows.evaluate",
    "vggkit.workflows.rate_search",
    "vggkit.workflows.train",
)


class Running:
    """A process, as `subprocess.Popen` shows one; what it writes lies in files."""

    def __init__(self, process: multiprocessing.process.BaseProcess, folder: Path) -> None:
        self._process, self._folder = process, folder

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """The exit status; minus the signal's number where one ended it."""
        self._process.join()
        return self._process.exitcode

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text(encoding="utf-8")


class Processes:
    """Starts them.

    Args:
        make_folder: Gives a new folder.
    """

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(list(IMPORTED))

    def start(
        self, *arguments: object, cwd: Path | str = ".", environment: Mapping[str, str] | None = None
    ) -> Running:
        """`vggkit` with these arguments."""
        code = "import sys\nfrom vggkit.cli.main import main\nmain(sys.argv[1:])\n"
        return self.start_python(code, *arguments, cwd=cwd, environment=environment)

    def run(
        self,
        *arguments: object,
        cwd: Path | str = ".",
        environment: Mapping[str, str] | None = None,
        code: int = 0,
    ) -> Running:
        """`vggkit` with these arguments, when it has ended with this exit code."""
        running = self.start(*arguments, cwd=cwd, environment=environment)
        assert running.wait() == code, running.err
        return running

    def start_python(
        self,
        code: str,
        *arguments: object,
        cwd: Path | str = ".",
        environment: Mapping[str, str] | None = None,
        strict: bool = False,
    ) -> Running:
        """Python lines; strict: each warning is an error."""
        folder = self._make_folder()
        asked = code, [str(each) for each in arguments], str(cwd), dict(environment or {}), str(folder), strict
        process = self._context.Process(target=_execute, args=asked, daemon=True)
        process.start()
        return Running(process, folder)


def _execute(
    code: str, arguments: list[str], cwd: str, environment: dict[str, str], folder: str, strict: bool
) -> None:
    (Path(folder) / "lines.py").write_text(code, encoding="utf-8")
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), encoding="utf-8", line_buffering=True)
    os.environ.update(environment)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["vggkit", *arguments]
    if strict:
        warnings.simplefilter("error")
    runpy.run_path(str(Path(folder) / "lines.py"), run_name="__main__")
