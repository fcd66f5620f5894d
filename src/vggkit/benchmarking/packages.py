"""The packages of vggkit and its extras: which are installed, and whether they can be imported.

They are imported in a process of its own, which a broken package may end; the next process tries the others.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from vggkit.benchmarking.checkup import PackageState

PATIENCE_SECONDS: Final = 120.0
"""Longest time for the imports of one process."""
CORE: Final = ""
"""The name of the packages without an extra."""
_REQUIREMENT: Final = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;.*\bextra == ['\"]([\w-]+)['\"])?")
_MODULES: Final = {
    "cykooz-resizer": "cykooz_resizer",
    "faiss-cpu": "faiss",
    "mlflow-skinny": "mlflow",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""The modules of packages that have another name."""
_PROGRAM: Final = """
import importlib, json, os, sys
ours = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        problem = None
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
    ours.write(json.dumps([name, problem]) + "\\n")
    ours.flush()
os._exit(0)
"""


def list_packages() -> dict[str, tuple[PackageState, ...]]:
    """The packages of each extra, and under `CORE` those of none, as vggkit's own metadata states them.

    Empty where vggkit is not installed, but found on the path. Nothing is imported.
    """
    found: dict[str, list[PackageState]] = {}
    try:
        requirements = importlib.metadata.requires("vggkit") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for requirement in requirements:
        parts = _REQUIREMENT.match(requirement)
        assert parts is not None, requirement
        name, needed, extra = parts[1], parts[2].strip(), parts[3] or CORE
        if extra != "all" and name != "vggkit":
            found.setdefault(extra, []).append(_look_at(name, needed))
    return {extra: tuple(packages) for extra, packages in found.items()}


def _look_at(name: str, needed: str) -> PackageState:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return PackageState(name=name, needed=needed, version=None)
    problem = None if _satisfies(version, needed) else f"vggkit needs {name}{needed}"
    return PackageState(name=name, needed=needed, version=version, problem=problem)


def _satisfies(version: str, needed: str) -> bool:
    """Whether a version is at least the needed one; vggkit's requirements have no other condition."""
    least = re.fullmatch(r">=([\d.]+)", needed)
    return least is None or _read_numbers(version) >= _read_numbers(least[1])


def _read_numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


def try_imports(
    groups: Mapping[str, tuple[PackageState, ...]], *, on_progress: Callable[[int, int], None]
) -> dict[str, tuple[PackageState, ...]]:
    """The same packages, with the error of each that is installed and cannot be imported.

    Args:
        groups: What `list_packages` gave.
        on_progress: Called with the number of packages that were imported, and of all.
    """
    installed = {each.name for group in groups.values() for each in group if each.version is not None}
    problems = import_apart({name: _name_module(name) for name in sorted(installed)}, on_progress=on_progress)
    return {
        extra: tuple(replace(each, problem=each.problem or problems.get(each.name)) for each in group)
        for extra, group in groups.items()
    }


def import_apart(modules: Mapping[str, str], *, on_progress: Callable[[int, int], None]) -> dict[str, str]:
    """The error of each package whose module cannot be imported.

    Args:
        modules: The module of each package.
        on_progress: Called with the number that were imported, and of all.
    """
    names = {module: name for name, module in modules.items()}
    left, problems = list(names), dict[str, str]()
    while left:
        done = 0
        for module, problem in _import_some(left):
            done += 1
            on_progress(len(names) - len(left) + done, len(names))
            if problem is not None:
                problems[names[module]] = problem
        if done < len(left):  # the next one ended the process
            problems[names[left[done]]] = "its import ended the process, or took too long"
        left = left[done + 1 :]
    return problems


def _import_some(modules: list[str]) -> Iterable[tuple[str, str | None]]:
    """Each module whose import ended, and its error."""
    process = subprocess.Popen(  # noqa: S603 (our own lines)
        [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, *modules],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    watch = threading.Timer(PATIENCE_SECONDS, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            module, problem = json.loads(line)
            yield module, problem
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


def _name_module(package: str) -> str:
    name = re.sub(r"[-_.]+", "-", package).lower()
    return _MODULES.get(name, name.replace("-", "_"))
