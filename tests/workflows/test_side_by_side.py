"""Processes that want the same place at once: one has it, and the other says so; a cache serves both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import fill_folder
from vggkit.classifier import Classifier, load
from vggkit.errors import BadOutput
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configure import configure
from vggkit.training.recipe import Recipe
from vggkit.workflows.resume_run import resume_run as resume
from vggkit.workflows.run_folder import LOCK, demand_new_folder, hold_folder, new_folder
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
NETWORK = ("--model", "vgg11_bn", "--until", "pool1", "--image-size", "32")


def create(tiny) -> Classifier:
    return Classifier.create(
        tiny, labels=LABELS, seed=0, preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill_folder(folder / "train", LABELS, 4)
    fill_folder(folder / "val", LABELS, 2, start=100)
    return folder


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vggkit", *map(str, arguments), "--device", "cpu", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_of_two_trainings_at_once_one_has_the_folder(data, tmp_path):
    options = (
        "--model",
        "vgg11_bn",
        "--until",
        "pool1",
        "--image-size",
        "32",
        "--epochs",
        "2",
        "--batch-size",
        "4",
    )
    processes = [start("train", data, "--out", tmp_path / "run", *options, "--seed", seed) for seed in (1, 2)]
    ends = [(process, *process.communicate(timeout=240)) for process in processes]
    codes = [process.returncode for process, _, _ in ends]
    assert sorted(codes) == [0, 2], [said for _, _, said in ends]
    winner = 1 + codes.index(0)
    (refusal,) = (said for process, _, said in ends if process.returncode == 2)
    assert refusal.startswith(f"vggkit: error: {tmp_path / 'run'}: ")
    assert "another with --out" in refusal
    assert refusal.count("\n") == 1
    assert f"seed: {winner}" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert load(tmp_path / "run").provenance["recipe"]["seed"] == winner
    rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_held_folder_is_refused_and_stays_as_it_is(tiny, data, tmp_path):
    classifier = create(tiny)
    with new_folder(tmp_path / "run", classifier) as directory:
        with pytest.raises(BadOutput, match="another training is running there"):
            train(data, model=classifier, recipe=Recipe(epochs=1), out=directory, device="cpu", quiet=True)
        assert directory.is_dir()
        assert [path.name for path in directory.iterdir()] == [LOCK]
    assert list(directory.iterdir()) == []


def test_a_run_is_not_gone_on_with_while_it_goes_on(tiny, data, tmp_path):
    run = train(
        data,
        model=create(tiny),
        recipe=Recipe(epochs=1, batch_size=4),
        out=tmp_path / "run",
        device="cpu",
        quiet=True,
    )
    before = {path.name: path.read_bytes() for path in run.directory.iterdir()}
    with hold_folder(run.directory), pytest.raises(BadOutput, match="another training is running there"):
        resume(run.directory, device="cpu", quiet=True)
    assert {path.name: path.read_bytes() for path in run.directory.iterdir()} == before


def test_folders_that_nobody_named_are_never_the_same(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with new_folder(None, create(tiny)) as first, new_folder(None, create(tiny)) as second:
        assert first != second


def test_what_a_kill_left_before_the_first_file_is_an_empty_folder(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    demand_new_folder(tmp_path / "run")
    with new_folder(tmp_path / "run", create(tiny)):
        pass
    (tmp_path / "run" / "thesis.txt").touch()
    with pytest.raises(BadOutput, match="exists already"):
        demand_new_folder(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "new" / "run", create(tiny)):
        raise ZeroDivisionError
    assert not (tmp_path / "new" / "run").exists()


@pytest.mark.slow
def test_two_trainings_share_one_cache_of_features(data, tmp_path):
    fed = Preprocessing(resize_pixels=32, crop_pixels=32)
    cut = configure("vgg11_bn", until="pool1", num_classes=len(LABELS))
    Classifier.create(cut, labels=LABELS, preprocessing=fed).save(tmp_path / "m.safetensors")
    options = ("train", data, *NETWORK, "--weights", tmp_path / "m.safetensors", "--trainable", "head")
    runs = [
        start(*options, "--out", tmp_path / name, VGGKIT_HOME=str(tmp_path / home))
        for name, home in (("first", "shared"), ("second", "shared"), ("alone", "own"))
    ]
    for process in runs:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    alone, table = load(tmp_path / "alone").network.state_dict(), (tmp_path / "alone" / "results.csv").read_bytes()
    for name in ("first", "second"):
        found = load(tmp_path / name).network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in alone.items())
        assert (tmp_path / name / "results.csv").read_bytes() == table
    assert list((tmp_path / "shared" / "features").rglob("*.npy"))
    assert not list((tmp_path / "shared").rglob("*.part"))
