import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

import vggkit as vk
from processes import Processes
from vggkit import hardware
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure

# Two test processes side by side beat one with two threads; processes started by tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where compiled code is not kept each process would compile everything that it imports again.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# How long drawing an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

WITHOUT_FEATURES = frozenset({"avx2"})
"""Flags of a processor that neither multiplies bfloat16 nor sums products of bytes without saturation."""
WITH_FEATURES = frozenset({"avx2", "avx512_bf16", "avx512_vnni"})

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sweep(n)` each n-th case runs by default; the others are slow."""
    cases: dict[tuple[Path, str], int] = {}
    for item in items:
        if (mark := item.get_closest_marker("sweep")) is not None:
            name = item.path, getattr(item, "originalname", item.name)
            cases[name] = cases.get(name, -1) + 1
            if cases[name] % mark.args[0]:
                item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny() -> Configuration:
    """VGG11's shape with a few channels: everything real but the size."""
    return replace(
        configure("vgg11", num_classes=3, head="pool"),
        blocks=((6,), (8,), (8, 8), (12, 12), (12, 12)),
        batch_norm=True,
    )


@pytest.fixture
def set_flags(monkeypatch: pytest.MonkeyPatch) -> Callable[[frozenset[str] | None], None]:
    """Makes vggkit, in this process, take the processor for one with these flags; None: unknown."""

    def set_flags(flags: frozenset[str] | None) -> None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.setattr(hardware, "_list_processor_flags", lambda: flags)

    return set_flags


@pytest.fixture(params=[WITHOUT_FEATURES, WITH_FEATURES], ids=["AVX2 alone", "bf16 and VNNI"])
def able(request: pytest.FixtureRequest, set_flags: Callable[[frozenset[str] | None], None]) -> bool:
    """Each test twice, whatever machine it runs on: whether the processor is taken for one with bf16 and VNNI."""
    set_flags(request.param)
    return request.param == WITH_FEATURES


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(lambda: tmp_path_factory.mktemp("process"))


@pytest.fixture
def real_plots() -> None:
    """For a test of a workflow that looks at what is drawn."""


@pytest.fixture(autouse=True)
def empty_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests of workflows files of plots are empty: drawing them takes longest in a small training."""
    if request.path.parent.name == "workflows" and "real_plots" not in request.fixturenames:
        figures = pytest.importorskip("matplotlib.figure")
        monkeypatch.setattr(figures.Figure, "savefig", lambda _, path, **options: Path(path).write_bytes(b""))


@pytest.fixture
def shared() -> Path:
    """Real images and weights, which lie beside the repository where they are there at all."""
    if not SHARED.is_dir():
        pytest.skip("needs the real images in ../shared/data, which are not here")
    return SHARED


def draw_class(label: str, seed: int, side: int = 40) -> np.ndarray:
    """A noisy image whose stripes or colour tell its class."""
    rng = np.random.default_rng([seed, *label.encode()])
    pixels = rng.integers(0, 90, (side, side + 8, 3))
    match label:
        case "across":
            pixels[::8] += 150
            pixels[1::8] += 150
        case "down":
            pixels[:, ::8] += 150
            pixels[:, 1::8] += 150
        case _:
            pixels[..., 0] += 120
    return pixels.astype(np.uint8)


def fill_folder(folder: Path, labels: tuple[str, ...], count: int, *, start: int = 0) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            Image.fromarray(draw_class(label, index)).save(folder / label / f"{index:03d}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three classes that are easy to tell apart."""
    folder = tmp_path_factory.mktemp("photos")
    labels = ("across", "down", "red")
    fill_folder(folder / "train", labels, 16)
    fill_folder(folder / "val", labels, 5, start=100)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"needs a browser on the PATH ({', '.join(names)}), and there is none")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def fully_connected() -> Configuration:
    """VGG11's shape with few channels and the paper's head."""
    return replace(
        configure("vgg11_bn", blocks="8/16/16,16/24,24/24,24", num_classes=3), hidden=(48, 32), dropout=0.1
    )


@pytest.fixture
def made(fully_connected: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a Classifier with random weights."""
    classifier = vk.Classifier.create(
        fully_connected, labels=["across", "down", "red"], preprocessing=choose_preprocessing(32), seed=0
    )
    path = tmp_path_factory.mktemp("made") / "made.safetensors"
    classifier.save(path)
    return path


@pytest.fixture(scope="session")
def trained(photos: Path, fully_connected: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a Classifier, not as deep, that was trained on `photos` for some epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = vk.train(
        photos,
        model=replace(fully_connected, blocks=((8,), (16, 16), (24,))),
        head="fc",
        image_size=32,
        recipe=vk.Recipe(epochs=6, batch_size=8, optimizer="adamw", learning_rate=3e-3, augmentation="shift"),
        out=folder,
        quiet=True,
    )
    assert run.evaluation.top1 > 0.8
    return folder / "best.safetensors"
