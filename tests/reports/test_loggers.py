import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from vggkit.errors import BadOutput, MissingExtra, UnknownName
from vggkit.reports import loggers as module
from vggkit.reports.loggers import open_loggers
from vggkit.training.checkpoint import Epoch
from vggkit.training.recipe import Recipe

HISTORY = tuple(
    Epoch(epoch, 0.1 / epoch, 1 / epoch, 1.5 / epoch, 1 - 0.5 / epoch, 3.25 + epoch, 0.9 - 0.5 / epoch)
    for epoch in range(1, 5)
)
CONFIG = Recipe(learning_rate=0.1).to_dict()


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No keys and no servers."""
    for name in list(os.environ):
        if name.startswith(("WANDB", "MLFLOW")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def follow(names, directory, histories, said=None):
    """A run that is told these histories, one after the other, and ends."""
    with open_loggers(
        names, directory, config=CONFIG, title="r", log=(said if said is not None else []).append
    ) as told:
        for history in histories:
            told.log(history)


def in_turn(count, start=1):
    return [HISTORY[:end] for end in range(start, count + 1)]


def test_the_table_is_the_history_and_is_written_without_being_asked_for(tmp_path):
    follow([], tmp_path, in_turn(3))
    follow(["csv"], tmp_path, in_turn(4, start=3))
    with open(tmp_path / "metrics.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    expected = [{name: value for name, value in asdict(epoch).items() if value is not None} for epoch in HISTORY]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == expected
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_hears_each_epoch_once_though_a_run_was_killed_after_telling(tmp_path):
    pytest.importorskip("tensorboard")
    follow(["tensorboard"], tmp_path, in_turn(3))
    # Its state was kept after the second epoch: the third is learnt, and told, again.
    follow(["tensorboard"], tmp_path, in_turn(4, start=3))
    found = read_events(tmp_path / "tensorboard")
    assert set(found) == {
        *("loss/train", "loss/val", "accuracy/val_top1", "accuracy/val_macro_f1", "learning_rate", "seconds")
    }
    assert found["loss/val"] == [(e.epoch, pytest.approx(e.val_loss)) for e in HISTORY]


def test_mlflow_writes_files_in_the_run_s_folder_and_goes_on_in_the_same_run(tmp_path):
    pytest.importorskip("mlflow")
    follow(["mlflow"], tmp_path, in_turn(3))
    follow(["mlflow"], tmp_path, in_turn(4, start=3))
    number = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ
    with module._MLflow._quiet():
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
        (experiment,) = [e for e in client.search_experiments() if e.name == "vggkit"]
        (run,) = client.search_runs([experiment.experiment_id])
        metrics = client.get_metric_history(number, "val_top1")
    assert (run.info.run_id, run.info.run_name, run.info.status) == (number, "r", "FINISHED")
    assert run.data.params["learning_rate"] == "0.1"
    assert [(m.step, m.value) for m in metrics] == [(e.epoch, e.val_top1) for e in HISTORY]


def test_mlflow_hears_that_a_run_failed(tmp_path):
    pytest.importorskip("mlflow")
    told = open_loggers(["mlflow"], tmp_path, config={}, title="r")
    told.log(HISTORY[:1])
    with pytest.raises(KeyboardInterrupt), told:
        raise KeyboardInterrupt
    text = next((tmp_path / "mlruns").glob("*/*/meta.yaml")).read_text()
    assert "status: 4" in text  # FAILED


def follow_wandb(directory, *, lines=(), **environment):
    """What is said of a run that is told of two epochs, and goes on; its service outlives a test, so alone."""
    code = [
        "import sys, pathlib",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from test_loggers import follow, in_turn, module",
        *lines,
        "said = []",
        "follow(['wandb'], pathlib.Path(sys.argv[1]), in_turn(2), said)",
        "follow(['wandb'], pathlib.Path(sys.argv[1]), in_turn(4, start=3), said)",
        "print(*said, sep='\\n')",
    ]
    theirs = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    found = subprocess.run(
        [sys.executable, "-c", "\n".join(code), str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**theirs, "NETRC": str(directory / "none"), **environment},
        stdin=subprocess.DEVNULL,
    )
    assert found.returncode == 0, found.stderr
    with open(directory / "metrics.csv", encoding="utf-8", newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 4
    return found.stdout.splitlines()


@pytest.mark.slow
def test_wandb_is_written_for_later_and_never_asks(tmp_path):
    pytest.importorskip("wandb")
    said = follow_wandb(tmp_path)
    assert "wandb sync" in said[0]
    number = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    written = sorted(tmp_path.glob(f"wandb/offline-run-*-{number}/run-{number}.wandb"))
    assert len(written) in (1, 2)  # named by the second
    assert b"val_top1" in written[-1].read_bytes()
    assert number in written[-1].name


@pytest.mark.slow
def test_wandb_with_a_key_and_no_host_ends_no_training(tmp_path):
    pytest.importorskip("wandb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"http://127.0.0.1:{server.getsockname()[1]}"
    quick = ["module.SECONDS_TO_ANSWER = 1.0"]
    said = follow_wandb(tmp_path, lines=quick, WANDB_API_KEY="0" * 40, WANDB_BASE_URL=gone)
    assert len(said) == 2  # once when it begins, once when it goes on
    assert all(line.startswith("wandb: cannot be opened and logs nothing of this run") for line in said)
    assert not list(tmp_path.glob("wandb/offline-run-*"))


class Failing:
    """One that breaks when it is told of the second epoch."""

    def __init__(self, *_):
        self.told = 0

    def log(self, history):
        self.told += 1
        if len(history) == 2:
            raise ConnectionError("the server\n went away")

    def close(self, *, ok):
        raise AssertionError("it was left out")


def test_one_that_fails_is_said_once_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "LOGGERS", {**module.LOGGERS, "mlflow": Failing})
    said = []
    follow(["mlflow"], tmp_path, in_turn(4), said)
    assert said == ["mlflow: logs no more of this run (the server went away); the training continues"]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5

    def broken(*_):
        raise ValueError("no such experiment")

    monkeypatch.setattr(module, "LOGGERS", {**module.LOGGERS, "mlflow": broken})
    open_loggers(["mlflow"], tmp_path, config={}, title="r").close()
    assert capsys.readouterr().err == (
        "mlflow: cannot be opened and logs nothing of this run (no such experiment)\n"
    )


def test_a_full_disk_stops_the_training(tmp_path):
    told = open_loggers([], tmp_path, config={}, title="r")
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(BadOutput):
        told.log(HISTORY)


def test_unknown_names_and_missing_packages(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="Did you mean 'tensorboard'"):
        open_loggers(["tensorbord"], tmp_path, config={}, title="r")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny"), ("tensorboard", "tensorboard")):
        with pytest.raises(MissingExtra, match=rf'{package}: pip install "vggkit\[loggers\]"'):
            open_loggers([name], tmp_path, config={}, title="r")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_results_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "mlruns_like").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not module._is_installed("mlruns_like")
    assert module._is_installed("json")
