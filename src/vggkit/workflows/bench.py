"""The speed and accuracy of each engine and precision on this machine, for a user's Classifier.

Shape letters: N images, C channels, H and W pixels.
"""

import importlib.metadata
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vggkit.arguments import demand_count, demand_counts, demand_seconds
from vggkit.benchmarking.runner import (
    Values,
    describe,
    list_devices,
    list_runs,
    run_rounds,
    start_processes,
)
from vggkit.benchmarking.timings import Bench
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import Ranges
from vggkit.engines.select import resolve_choice
from vggkit.errors import BadData, BadImage, BadInput, VggkitError
from vggkit.files import demand_writable
from vggkit.hardware import name_processor
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.sources.open_dataset import count_images, gather_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk import OnProgress
from vggkit.inference.fingerprint import name_place
from vggkit.interruption import handle_signals
from vggkit.weights.card import demand_classifier
from vggkit.weights.locate import locate_model, locate_own_model

if TYPE_CHECKING:
    from vggkit.weights.model import Model

MOST_COMPARED: Final = 256
"""Images whose predictions are compared."""
MOST_MEASURED: Final = 128
"""Images that activation ranges are measured on."""
MADE_UP: Final = 32
"""Images of random numbers where none are given."""
TOGETHER: Final = 8
"""Images that pass together then."""
PACKAGES: Final = ("vggkit", "torch", "openvino", "onnxruntime", "ncnn")


def bench(
    model: "Model | str | Path",
    images: ImageSources = (),
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_sizes: Sequence[int] = (1, 8, 32),
    rounds: int = 5,
    seconds: float = 1.0,
    device: str = "auto",
    keep_ranges: bool = False,
    on_progress: OnProgress | None = None,
) -> Bench:
    """Time every engine and precision that runs here, each in a separate process, in turn.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        images: Images, as `predict` takes them: every engine computes up to 256, and predictions are compared;
            activation ranges for int8 are measured on up to 128 others. None: on random numbers only the speed is
            meaningful.
        columns: Names of a table's columns.
        batch_sizes: Numbers of images that pass through the network together; 1 is always among them.
        rounds: Turns of each engine; every figure is their median, beside the least and the most.
        seconds: Of a turn, for each number of images.
        device: `auto`: all there are; `cpu`, `cuda`, `mps`.
        keep_ranges: Measure the activation ranges that int8 needs on these images, and store them in the file, or
            in the Classifier in memory.
        on_progress: Called with the current task, how much of it is done, and of how much.

    Raises BadInput, BadData where no image can be read, BadCheckpoint, BadOutput where ranges cannot be
    stored, and MissingExtra where they are to be measured without OpenVINO.
    """
    log = on_progress or (lambda what, done, total: None)
    sizes, rounds, seconds = _check(batch_sizes, rounds, seconds)
    resolve_choice(device)  # one that is not there is refused before any work
    given = [] if isinstance(images, tuple | list) and not images else list(take_sources(images))
    if keep_ranges:
        _check_keeping(model, given)
    with tempfile.TemporaryDirectory(prefix="vggkit-bench-") as name, handle_signals():
        folder = Path(name)
        opened = _open(model, folder)
        if keep_ranges and isinstance(model, str | os.PathLike):
            demand_writable(opened.path)
        compared, measured, unreadable = _choose(opened, given, columns, log) if given else _make_up(opened)
        np.save(folder / "images.npy", np.stack(compared))
        activation_ranges, problem = opened.card.activation_ranges, None
        if keep_ranges or not activation_ranges:
            log("measuring activation ranges", 0, None)
            try:
                activation_ranges = measure_ranges(opened, _batch(measured))
            except VggkitError as missing:
                problem = str(missing)
                if keep_ranges:
                    raise
        if keep_ranges:
            _keep(model, activation_ranges, about={"data": _name(given), "images": len(measured)})
        runs = list_runs(device, problem=problem)
        with start_processes(
            runs, model=opened.path, images=folder / "images.npy", activation_ranges=activation_ranges
        ):
            run_rounds(runs, sizes, rounds=rounds, seconds=seconds, folder=folder, on_progress=log)
        return Bench(
            model=name_place(model) if isinstance(model, str | os.PathLike) else "a Classifier in memory",
            network=opened.configuration.model,
            input_pixels=opened.card.preprocessing.crop_pixels,
            images=f"{len(compared)} of {_name(given)}" if given else None,
            unreadable=unreadable,
            rounds=rounds,
            machine=_describe_machine(device),
            versions=dict(_list_versions()),
            engines=describe(runs, device, pixels=opened.card.preprocessing.crop_pixels),
        )


def _check(batch_sizes: Sequence[int], rounds: int, seconds: float) -> tuple[tuple[int, ...], int, float]:
    """The numbers of images that pass together, the least first, rounds and seconds; raises BadInput."""
    rounds = demand_count("rounds", rounds)
    seconds = demand_seconds("seconds", seconds)
    if not 0 < seconds < math.inf:
        raise BadInput(f"seconds must be a number above 0, got {seconds:g}")
    return tuple(sorted({1, *demand_counts("batch_sizes", batch_sizes)})), rounds, seconds


def _check_keeping(model: "Model | str | Path", given: Sequence[object]) -> None:
    """Raise BadInput where ranges could not be stored at the end."""
    if not given:
        raise BadInput("ranges are measured on images; name some of those that the Classifier is for")
    if isinstance(model, str | os.PathLike):
        locate_own_model(model)


def _open(model: "Model | str | Path", folder: Path) -> ModelFile:
    """The file that the processes read."""
    if isinstance(model, str | os.PathLike):
        return ModelFile(model)
    demand_classifier(model, "bench")
    model.save(folder / "model.safetensors")
    return ModelFile(folder / "model.safetensors")


def _choose(
    model: ModelFile, given: Sequence[str | Path | ImageSample], columns: Columns, log: OnProgress
) -> tuple[list[Values], list[Values], int]:
    """Images (C, H, W) whose predictions are compared, others to measure ranges on (of one, the same), and how many
    cannot be read.
    """
    preprocessing, most = model.card.preprocessing, MOST_COMPARED + MOST_MEASURED
    log("listing", 0, None)
    total = count_images(given, columns=columns)
    images = gather_images(given, columns=columns)
    # From the whole collection; of a stream, the first.
    every = None if total is None or total <= most else {place * total // most for place in range(most)}
    chosen = (each for place, each in enumerate(images) if every is None or place in every)
    found, first, unreadable = list[Values](), "", 0
    for done, image in enumerate(islice(chosen, most)):
        log("preparing images", done, min(most, total or most))
        try:
            found.append(preprocessing.see(image))
        except BadImage as problem:
            first, unreadable = first or f"; the first: {problem}", unreadable + 1
    if not found:
        raise BadData(f"{_name(given)}: no image of it can be read{first}")
    # Every third, so that both are of all classes.
    return [each for place, each in enumerate(found) if place % 3] or found, found[::3], unreadable


def _make_up(model: ModelFile) -> tuple[list[Values], list[Values], int]:
    """Noise (C, H, W), twice the same."""
    side = model.card.preprocessing.crop_pixels
    shape = (MADE_UP, model.configuration.in_channels, side, side)
    noise = list(np.random.default_rng(0).standard_normal(shape, np.float32))
    return noise, noise, 0


def _batch(images: Sequence[Values]) -> Iterator[Values]:
    for first in range(0, len(images), TOGETHER):
        yield np.stack(images[first : first + TOGETHER])


def _keep(model: "Model | str | Path", activation_ranges: Ranges, *, about: dict[str, object]) -> None:
    if not isinstance(model, str | os.PathLike):
        model.keep_ranges(activation_ranges, about=about)
        return
    from vggkit.weights.model import Model

    target = locate_model(model)
    stored = Model.load(target)
    stored.keep_ranges(activation_ranges, about=about)
    stored.save(target)


def _name(given: Sequence[object]) -> str:
    """The name of the images in the result."""
    places = [str(place) for place in given if isinstance(place, str | Path)]
    return ", ".join(places[:3]) + (" …" if len(places) > 3 else "") if places else "images in memory"


def _describe_machine(device: str) -> str:
    names = [name_processor()]
    for place in list_devices(device):
        if place.startswith("cuda"):
            import torch

            names.append(torch.cuda.get_device_name(place))
        elif place != "cpu":
            names.append(place)
    return "; ".join(names)


def _list_versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
