"""What the command writes for others: tables that a spreadsheet may open, and files beside each other."""

import csv
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.cli import main as cli
from vggkit.evaluation.predictions import Predictions
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.sources.open_dataset import open_dataset

FORMULA = "=1+1"
LABELS = ("+x", "-y", FORMULA, "@ü", "猫")
TRAINING = (
    *("--model", "vgg11_bn", "--until", "pool1", "--image-size", "32", "--epochs", "1", "--batch-size", "8"),
    *("--device", "cpu", "--quiet"),
)


def call(*arguments, code=0):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == code


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory) -> Path:
    """Classes that a spreadsheet would compute, and a Classifier of them."""
    folder = tmp_path_factory.mktemp("place")
    fill_folder(folder / FORMULA / "train", LABELS, 3)
    fill_folder(folder / FORMULA / "val", LABELS, 2, start=100)
    for path in (folder / FORMULA / "val").glob("*/100.png"):
        path.rename(path.with_name(f"{FORMULA}.png"))
    Classifier.create(
        replace(tiny, num_classes=len(LABELS)),
        labels=LABELS,
        preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32),
    ).save(folder / "m.safetensors")
    return folder


def demand_harmless(table: Path) -> list[dict[str, str]]:
    """The rows of a table in which no cell begins as a formula does, and whose letters Excel knows."""
    data = table.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.count(b"\xef\xbb\xbf") == 1
    with open(table, encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        for cell in [*row, *row.values()]:
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell
    return rows


def test_a_cleaned_table_is_harmless_and_trains_as_the_folder(place, tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(place)
    call("check", FORMULA, "--image-size", "32", "--fix", "clean.csv", "--quiet")
    demand_harmless(place / "clean.csv")
    names = pandas.read_csv("clean.csv")["path"]
    assert all(Path(name).is_file() for name in names)
    table, folder = open_dataset("clean.csv"), open_dataset(FORMULA)
    assert table.labels == folder.labels == LABELS
    assert {each.label for each in table.split("train")} == set(LABELS)
    call("train", "clean.csv", "--out", tmp_path / "run", *TRAINING, "--despite-findings")
    assert load(tmp_path / "run").labels == LABELS
    demand_harmless(tmp_path / "run" / "results.csv")
    read = Predictions.read(tmp_path / "run" / "results.csv")
    assert read.labels == LABELS
    call("compare", tmp_path / "run", "--json")


def test_predictions_and_vectors_are_harmless(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place / FORMULA / "val")
    (place / FORMULA / "val" / "=broken.png").write_bytes(b"\x89PNG")
    shutil.copyfile(place / FORMULA / "val" / FORMULA / "101.png", "-1+2.png")
    try:
        call("predict", place / "m.safetensors", ".", "=broken.png", "--out", tmp_path / "p.csv", code=1)
        call("embed", place / "m.safetensors", ".", "--out", tmp_path / "v.npy", "--quiet", code=1)
        rows = demand_harmless(tmp_path / "p.csv")
        assert all(Path(row["path"]).is_file() for row in rows)
        assert any(row["problem"].startswith("'=broken.png") for row in rows)
        assert all(Path(row["path"]).is_file() for row in demand_harmless(tmp_path / "v.npy.csv"))
        call("search", tmp_path / "v.npy", "./-1+2.png", "--json", "--quiet")
    finally:
        (place / FORMULA / "val" / "=broken.png").unlink()
        (place / FORMULA / "val" / "-1+2.png").unlink()


def test_results_are_read_as_they_were(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    for ending in ("csv", "parquet"):
        call("evaluate", "m.safetensors", FORMULA, "--results", tmp_path / f"r.{ending}", "--quiet")
    demand_harmless(tmp_path / "r.csv")
    text, binary = Predictions.read(tmp_path / "r.csv"), Predictions.read(tmp_path / "r.parquet")
    assert text.labels == binary.labels == LABELS
    assert text.paths == binary.paths
    assert any(path.startswith(FORMULA) for path in text.paths)
    assert (text.targets == binary.targets).all()


@pytest.mark.parametrize(
    "names",
    [
        ("m/a b", "m/a_b"),
        ("m/a", "n/a"),
        ("m/a", "n/A"),
        ("m/\u00e9", "n/e\u0301"),
        ("m/a", "m/a"),
        ("m/a", "n/a", "m/a-2", "m/a", "m_a"),
        ("m/" + "x" * 200, "n/" + "x" * 200),
    ],
)
def test_results_of_each_model_have_a_file_of_their_own(names, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(dict.fromkeys(names)):
        classifier = load(place / "m.safetensors")
        classifier.network.load_state_dict(
            Classifier.create(classifier.configuration, labels=LABELS, seed=seed).network.state_dict()
        )
        Path(name).mkdir(parents=True, exist_ok=True)
        classifier.save(Path(name) / "best.safetensors")
    call("evaluate", *names, place / FORMULA, "--results", "r.csv", "--quiet")
    written = [
        line.removeprefix("results: ") for line in capsys.readouterr().err.splitlines() if "results: " in line
    ]
    assert len(written) == len(names) + 1
    tables = sorted(path.name for path in tmp_path.glob("r*.csv"))
    assert sorted(written) == tables
    assert len({unicodedata.normalize("NFC", name).casefold() for name in tables}) == len(names) + 1
    contents = {path.read_bytes() for path in tmp_path.glob("r*.csv")}
    assert len(contents) >= len(set(names))


def test_nothing_that_is_read_is_overwritten(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    pytest.importorskip("pyarrow")
    table = tmp_path / "t.csv"
    rows = "".join(f"{place / FORMULA}/val/{FORMULA}/101.png,{label}\n" for label in LABELS)
    table.write_text(f"path,label\n{rows}", encoding="utf-8")
    image = tmp_path / "p.png"
    shutil.copyfile(place / FORMULA / "val" / FORMULA / "101.png", image)
    (tmp_path / "again.csv").hardlink_to(table)
    call("embed", "m.safetensors", image, "--out", tmp_path / "v.npy", "--quiet")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments in (
        ("evaluate", "m.safetensors", table, "--results", table),
        ("evaluate", "m.safetensors", table, "--results", tmp_path / "again.csv"),
        ("predict", "m.safetensors", table, "--out", table, "--overwrite"),
        ("check", table, "--fix", tmp_path / "again.csv"),
        ("search", tmp_path / "v.npy", image, "--sheet", image),
        ("bench", "m.safetensors", image, "--plot", image),
    ):
        capsys.readouterr()
        call(*arguments, "--quiet", code=2)
        out, err = capsys.readouterr()
        assert "would be overwritten" in err
        assert err.count("\n") == 1
        assert out == ""
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
