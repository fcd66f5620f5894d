"""Folders and tables as people have them: from `check` over `train` to the report, at the first attempt."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import draw_class
from vggkit.cli.main import main

LABELS = ("across", "down")


def save(path: Path, label: str, seed: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_class(label, seed)).save(path)
    return path.stem


def lay(folder: Path, places: dict[str, int]) -> Path:
    """So many images of each class in each place, where CLASS and N are replaced."""
    for number, (place, count) in enumerate(places.items()):
        for label in LABELS:
            for index in range(count):
                save(folder / place.format(CLASS=label, N=index), label, 100 * number + index)
    return folder


def write_table(folder: Path, header: str, row: Callable[[str, str], str], place: str = "{CLASS}{N}.png") -> Path:
    lay(folder, {place: 6})
    rows = [row(f"{label}{index}", label) for label in LABELS for index in range(6)]
    (folder / "list.csv").write_text("\n".join([header, *rows] if header else rows), encoding="utf-8")
    return folder / "list.csv"


def lay_vehicles(folder: Path) -> Path:
    """A class that is called train, laid out as the error for `vehicles/train` beside `vehicles/plane` says."""
    for label, name in zip(LABELS, ("train", "plane"), strict=True):
        for index in range(6):
            save(folder / "train" / name / f"{index}.png", label, index)
    return folder


LAYOUTS: dict[str, tuple[Callable[[Path], Path], dict[str, int]]] = {
    "Kaggle": (
        lambda f: lay(f, {"training_set/{CLASS}/{N}.png": 5, "test_set/{CLASS}/{N}.png": 3}),
        {"train": 8, "val": 2, "test": 6},
    ),
    "Kaggle, each folder inside one of its name": (
        lambda f: lay(f, {"training_set/training_set/{CLASS}/{N}.png": 5, "test_set/test_set/{CLASS}/{N}.png": 3}),
        {"train": 8, "val": 2, "test": 6},
    ),
    "other spellings": (
        lambda f: lay(f, {"Train_Images/{CLASS}/{N}.png": 5, "val2/{CLASS}/{N}.png": 3}),
        {"train": 10, "val": 6},
    ),
    "splits inside classes": (
        lambda f: lay(f, {"{CLASS}/train/{N}.png": 5, "{CLASS}/val/{N}.png": 3}),
        {"train": 10, "val": 6},
    ),
    "loose test": (
        lambda f: lay(f, {"train/{CLASS}/{N}.png": 5, "valid/{CLASS}/{N}.png": 3, "test/{CLASS}{N}.png": 2}),
        {"train": 10, "val": 6},
    ),
    "nested classes": (
        lambda f: lay(f, {"{CLASS}/{CLASS}-big/{N}.png": 3, "{CLASS}/{CLASS}-small/{N}.png": 3}),
        {"train": 10, "val": 2},
    ),
    "a class called train": (lay_vehicles, {"train": 10, "val": 2}),
    "paths of Windows": (
        lambda f: write_table(
            f,
            "path,label",
            lambda name, label: rf"C:\Users\Ann\Pictures\photos\{label}\{name}.png,{label}",
            "photos/{CLASS}/{CLASS}{N}.png",
        ),
        {"train": 10, "val": 2},
    ),
    "ids without endings": (
        lambda f: write_table(f, "id,breed", lambda name, label: f"{name},{label}", "train/{CLASS}{N}.png"),
        {"train": 10, "val": 2},
    ),
    "no header": (
        lambda f: write_table(f, "", lambda name, label: f"{name}.png,{label}"),
        {"train": 10, "val": 2},
    ),
    "one-hot": (
        lambda f: write_table(
            f,
            "image,across,down",
            lambda name, label: f"{name}.png,{int(label == 'across')},{int(label == 'down')}",
        ),
        {"train": 10, "val": 2},
    ),
}


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return int(ended.value.code or 0)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_folder_to_report(layout, tmp_path, capsys):
    build, splits = LAYOUTS[layout]
    data = build(tmp_path / "data")
    assert call("check", data, "--image-size", 32, "--quiet") == 0
    shown = capsys.readouterr().out
    assert "subfolders" not in shown or layout == "nested classes"
    options = ("--until", "pool1", "--image-size", 32, "--epochs", 1, "--device", "cpu")
    assert call("train", data, *options, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert f": {', '.join(f'{count} {name}' for name, count in splits.items())}, 2 classes" in said
    assert ("2 images are in a split without class folders" in said) == (
        layout == "loose test"
    ) or "skipped" in said
    assert ("note: 2 classes with several subfolders: across holds" in said) == (layout == "nested classes")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "across" in page or "plane" in page


def test_a_class_called_train_beside_another_is_refused_with_the_way_out(tmp_path, capsys):
    lay_vehicles(tmp_path / "vehicles")
    (tmp_path / "vehicles" / "train" / "plane").rename(tmp_path / "vehicles" / "plane")
    assert call("train", tmp_path / "vehicles") == 2
    said = capsys.readouterr().err
    assert "vehicles/train/train" in said
    assert "vehicles/train/plane" in said


def test_a_table_without_labels_is_predicted(tmp_path, capsys):
    data = lay(tmp_path / "data", {"{CLASS}/{N}.png": 5})
    options = ("--until", "pool1", "--image-size", 32, "--epochs", 1, "--device", "cpu", "--quiet")
    assert call("train", data, *options, "--out", tmp_path / "run") == 0
    (data / "list.csv").write_text("image\nacross/0.png\ndown/1.png", encoding="utf-8")
    capsys.readouterr()
    assert call("predict", tmp_path / "run", data / "list.csv", "--device", "cpu", "--quiet") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2

    written = [rf"C:\Users\Ann\data\{label}\{index}.png" for label in ("across", "down") for index in range(2)]
    (data / "windows.csv").write_text("\n".join(["image", *written]), encoding="utf-8")
    call("predict", tmp_path / "run", data / "windows.csv", "--device", "cpu", "--quiet")
    assert [line.rpartition(":")[0] for line in capsys.readouterr().out.splitlines()] == written
    labelled = ["image,label", *(f"{path},{path.split(chr(92))[-2]}" for path in written)]
    (data / "windows.csv").write_text("\n".join(labelled), encoding="utf-8")
    out = ("--results", tmp_path / "predictions.csv")
    assert call("evaluate", tmp_path / "run", data / "windows.csv", *out, "--device", "cpu", "--quiet") == 0
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as table:
        assert [row["path"] for row in csv.DictReader(table)] == written


def test_one_class_is_refused_by_check_and_by_train(tmp_path, capsys):
    for index in range(4):
        save(tmp_path / "pets" / "cats" / f"{index}.png", "red", index)
    assert call("check", tmp_path / "pets", "--quiet") == 1
    assert "1 class" in " ".join(capsys.readouterr().out.split())
    assert call("train", tmp_path / "pets") == 2
    assert "holds a subfolder for each class" in capsys.readouterr().err
