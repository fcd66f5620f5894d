"""Finds out what is installed on this machine and what of it works, for a bug report."""

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vggkit._version import __version__
from vggkit.benchmarking.checkup import CacheFolder, Checkup, EngineStatus, EngineTrial
from vggkit.benchmarking.packages import CORE, list_packages, try_imports
from vggkit.benchmarking.runner import (
    EngineRun,
    compare_logits,
    list_devices,
    list_runs,
    run_rounds,
    start_processes,
)
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import Precision
from vggkit.engines.select import NEEDED
from vggkit.hardware import find_available_memory, find_processor_features, name_processor
from vggkit.inference.bulk import OnProgress
from vggkit.paths import find_home
from vggkit.weights.bundled import find_bundled

IMAGES: Final = 16
"""Random images that every engine computes."""
TOLERANCES: Final[dict[Precision, float]] = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.5}
"""The largest error of an engine that works, over the deviation of the logits."""
SHOWN: Final = ("VGGKIT_OFFLINE", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")
"""Environment variables whose values are numbers or names."""
PRIVATE: Final = (
    *("VGGKIT_TORCHVISION_HOST", "VGGKIT_TOKEN", "HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "https_proxy"),
    *("VGGKIT_HOME", "HF_HOME", "TORCH_HOME"),
)
"""Environment variables of which only is reported that they are set: hosts, secrets, and folders, which are listed
by themselves.
"""


def doctor(*, on_progress: OnProgress | None = None) -> Checkup:
    """What is installed on this machine and what of it works.

    Every installed package is imported, and every engine computes the bundled classifier of digits in each of its
    precisions on each device, in processes of their own: about half a minute with all extras. Nothing is downloaded
    and nothing is written but temporary files.

    Args:
        on_progress: Called with the current task, how much of it is done, and of how much.

    >>> found = doctor()  # doctest: +SKIP
    >>> found.problems  # doctest: +SKIP
    ()
    """
    log = on_progress or (lambda what, done, total: None)
    device = _find_device()
    engines = try_engines(device, log)
    packages = try_imports(list_packages(), on_progress=lambda done, total: log("importing packages", done, total))
    return Checkup(
        vggkit=__version__,
        python=platform.python_version(),
        system=_describe_system(),
        processor=name_processor(),
        processor_features=tuple(sorted(find_processor_features())),
        memory_bytes=find_available_memory(),
        devices=tuple(_describe_devices(device)),
        core=packages.pop(CORE, ()),
        extras=packages,
        engines=engines,
        folders=tuple(list_folders()),
        variables=_list_variables(),
    )


def _find_device() -> str:
    """`auto`; or `cpu` where torch, which would have to find the others, cannot be imported."""
    try:
        list_devices("auto")
    except (ImportError, OSError):
        return "cpu"
    return "auto"


def try_engines(device: str, log: OnProgress) -> tuple[EngineTrial, ...]:
    """Every engine and precision on `auto` or one device, each with the bundled classifier in its own process."""
    model = ModelFile(find_bundled("digits"))
    runs = list_runs(device)
    for each in runs:
        if each.problem is None and not all(map(importlib.util.find_spec, NEEDED[each.engine])):
            each.problem = f"{' and '.join(NEEDED[each.engine])} not installed"
    unsuitable = {id(each) for each in runs if each.problem is not None}
    with tempfile.TemporaryDirectory(prefix="vggkit-doctor-") as name:
        folder = Path(name)
        np.save(folder / "images.npy", _make_images(model))
        ranges = model.card.activation_ranges
        with start_processes(runs, model=model.path, images=folder / "images.npy", activation_ranges=ranges):
            run_rounds(runs, (), rounds=0, seconds=0, folder=folder, on_progress=_rename(log))
    return tuple(_describe(each, runs[0], suitable=id(each) not in unsuitable) for each in runs)


def _rename(log: OnProgress) -> OnProgress:
    return lambda what, done, total: log("trying engines", done, total)


def _describe(run: EngineRun, reference: EngineRun, *, suitable: bool) -> EngineTrial:
    agreement = compare_logits(run, reference)
    error = None if agreement is None else agreement.error
    problem = run.problem
    if problem is None and error is not None and not error <= TOLERANCES[run.precision]:
        problem = f"its logits differ from those of PyTorch in float32 by {error:.2g} of their deviation"
    status: EngineStatus = "works" if problem is None else "fails"
    if not suitable:
        absent = not all(map(importlib.util.find_spec, NEEDED[run.engine]))
        status = "not installed" if absent else "not on this machine"
    return EngineTrial(
        engine=run.engine,
        precision=run.precision,
        device=run.device,
        status=status,
        problem=problem,
        start_seconds=run.start_seconds if status == "works" else None,
        error=error,
    )


def _make_images(model: ModelFile) -> NDArray[np.float32]:
    """Squares of random brightness, (N, C, H, W)."""
    side, channels = model.card.preprocessing.crop_pixels, model.configuration.in_channels
    draws = np.random.default_rng(0).uniform(-2, 2, (IMAGES, channels, 8, 8)).astype(np.float32)
    return np.kron(draws, np.ones((1, 1, side // 8, side // 8), np.float32))


def _describe_system() -> str:
    library = " ".join(part for part in platform.libc_ver() if part)
    name = {"Darwin": f"macOS {platform.mac_ver()[0]}"}.get(
        platform.system(), f"{platform.system()} {platform.release()}"
    )
    return f"{name}, {platform.machine()}" + (f", {library}" if library else "")


def _describe_devices(wanted: str) -> Iterator[str]:
    for device in list_devices(wanted):
        if device.startswith("cuda"):
            import torch

            for number in range(torch.cuda.device_count()):
                memory = torch.cuda.get_device_properties(number).total_memory / 2**30
                yield f"cuda:{number} {torch.cuda.get_device_name(number)}, {memory:.0f} GiB"
        else:
            yield device


def list_folders() -> Iterator[CacheFolder]:
    """The folders in which vggkit and the libraries that it downloads with keep files."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"
    for purpose, path in (
        ("vggkit", find_home()),
        ("Hugging Face", Path(os.environ.get("HF_HUB_CACHE") or hub)),
        ("torch hub", Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub"),
    ):
        path = path.expanduser()  # noqa: PLW2901
        yield CacheFolder(
            purpose=purpose, path=_shorten(path), exists=path.is_dir(), free_bytes=_find_free_bytes(path)
        )


def _shorten(path: Path) -> str:
    """The path with the home folder as ~, so that no user's name is shown."""
    try:
        return (Path("~") / path.relative_to(Path.home())).as_posix()
    except ValueError:
        return str(path)


def _find_free_bytes(path: Path) -> int | None:
    """Free space on the disk of a path, or of the nearest folder above it that exists."""
    for place in (path, *path.parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _list_variables() -> dict[str, str]:
    shown = {name: os.environ[name] for name in SHOWN if os.environ.get(name)}
    return shown | {name: "set" for name in PRIVATE if os.environ.get(name)}
