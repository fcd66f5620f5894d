"""A place that cannot be written to is told in one line before any work, and nothing is left half written."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import fill_folder
from vggkit.classifier import Classifier
from vggkit.cli import main as cli
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration

for package in ("matplotlib", "pyarrow"):
    pytest.importorskip(package)
LABELS = ("across", "down", "red")
NOBODY = 65534
FILES = {
    "predict": ("predict", "m.safetensors", "photos", "--out", "OUT.csv"),
    "predict to Parquet": ("predict", "m.safetensors", "photos", "--out", "OUT.parquet"),
    "embed": ("embed", "m.safetensors", "photos", "--out", "OUT.npy"),
    "evaluate, results": ("evaluate", "m.safetensors", "photos", "--results", "OUT.csv"),
    "evaluate, report": ("evaluate", "m.safetensors", "photos", "--report", "OUT.html"),
    "check, page": ("check", "photos", "--html", "OUT.html"),
    "check, table": ("check", "photos", "--fix", "OUT.csv"),
    "search": ("search", "v.npy", "photos", "--sheet", "OUT.png"),
    "bench": ("bench", "m.safetensors", "photos", "--plot", "OUT.png"),
    "convert": ("convert", "m.safetensors", "OUT.pth", "--to", "torchvision"),
    "export": ("export", "m.safetensors", "OUT.pt2"),
    "summary": ("summary", "vgg11", "--plot", "OUT.svg"),
}
FOLDERS = {
    "train": ("train", "photos", "--out", "OUT", "--model", "vgg11_bn", "--until", "pool1", "--device", "cpu"),
    "demo": ("demo", "--out", "OUT", "--device", "cpu"),
}
OTHERS = {
    "evaluate, plots": ("evaluate", "m.safetensors", "photos", "--plots", "png"),
    "evaluate, calibrate": ("evaluate", "m.safetensors", "photos", "--calibrate"),
    "bench, ranges": ("bench", "m.safetensors", "photos", "--keep-ranges"),
    "train, resume": ("train", "--resume", "run"),
    "train, next": ("train", "photos", "--model", "vgg11_bn", "--until", "pool1", "--device", "cpu"),
}
"""What writes where it stands."""


@pytest.fixture(scope="module")
def place(tiny: Configuration) -> Iterator[Path]:
    """Where everybody may read, and nobody but its owner write."""
    folder = Path(tempfile.mkdtemp(prefix="vggkit-test-"))
    fill_folder(folder / "photos" / "train", LABELS, 2)
    fill_folder(folder / "photos" / "val", LABELS, 1, start=100)
    Classifier.create(tiny, labels=LABELS, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)).save(
        folder / "m.safetensors"
    )
    options = (*FOLDERS["train"][4:], "--image-size", "32", "--epochs", "1", "--despite-findings", "--quiet")
    run("embed", folder / "m.safetensors", folder / "photos", "--out", folder / "v.npy", "--quiet")
    run("train", folder / "photos", "--out", folder / "run", *options)
    (folder / "file").write_text("a file")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who may not write everywhere."""
    if sys.platform == "win32":
        pytest.skip("rights are other things on Windows")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def demand_refusal(place, monkeypatch, capsys):
    """Runs a command that must refuse before it looks at an image."""

    def look(self, *_, **__):
        raise AssertionError(f"{self.path} was looked at before it was known that nothing can be written")

    def demand(arguments: tuple[str, ...], out: Path) -> None:
        monkeypatch.chdir(place)
        for name in ("decode", "read"):
            monkeypatch.setattr(ImageSample, name, look)
        before = {path: path.is_file() and path.read_bytes() for path in place.rglob("*")}
        capsys.readouterr()
        code = run(*(each.replace("OUT", str(out)) for each in arguments), *(["--quiet"] * (arguments[0] in QUIET)))
        said, problem = capsys.readouterr()
        assert code == 2, problem
        assert problem.startswith("vggkit: error: ")
        assert problem.count("\n") == 1, problem
        assert said == ""
        assert {path: path.is_file() and path.read_bytes() for path in place.rglob("*")} == before

    return demand


QUIET = ("predict", "embed", "evaluate", "check", "search", "bench", "train", "demo")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_below_a_file(name, place, demand_refusal):
    demand_refusal({**FILES, **FOLDERS}[name], place / "file" / "deeper" / "out")


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_where_something_else_is(name, place, tmp_path, demand_refusal):
    arguments = {**FILES, **FOLDERS}[name]
    ending = Path(next(each for each in arguments if "OUT" in each)).suffix
    there = tmp_path / f"out{ending}"
    there.mkdir() if ending else there.write_text("a file")
    demand_refusal(arguments, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [there.name]


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, *OTHERS])
def test_without_the_right_to_write(name, place, demand_refusal):
    arguments = {**FILES, **FOLDERS, **OTHERS}[name]
    with without_rights():
        demand_refusal(arguments, place / "out")
        if name not in OTHERS:
            demand_refusal(arguments, place / "new" / "deeper" / "out")


def test_folders_that_are_missing_are_made(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for name in ("predict", "evaluate, report", "check, table", "convert"):
        out = tmp_path / name / "deeper" / "out"
        assert run(*(each.replace("OUT", str(out)) for each in FILES[name])) == 0
        assert len(list(out.parent.glob("out.*"))) >= 1
