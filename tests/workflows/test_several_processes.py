"""Trainings of several processes, as people start them: the results of one, and errors that end all of them."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from conftest import fill_folder
from ranks import start_ranks, wait_for
from vggkit.classifier import load
from vggkit.weights.model_file import read_state
from vggkit.workflows.resume_run import resume_run
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.run_folder import read_run_state
from vggkit.workflows.shard import shard
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
CODE = Path(__file__).with_name("training_in_processes.py").read_text(encoding="utf-8")
OPTIONS = [
    *("--model", "vgg11_bn", "--until", "pool2", "--image-size", "32", "--epochs", "2", "--batch-size", "4"),
    *("--device", "cpu", "--dropout", "0.3", "--optimizer", "adamw", "--ema-decay", "0.9", "--mixup", "0.2"),
    *("--learning-rate", "1e-3", "--mirror", "random", "--save-seconds", "0"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """33 training images, whose last batch of 8 is a single one, and 11 for validation: shares are uneven."""
    folder = tmp_path_factory.mktemp("data")
    fill_folder(folder / "train", LABELS, 11)
    fill_folder(folder / "val", LABELS, 4, start=100)
    (folder / "val" / "red" / "103.png").unlink()
    return folder


@pytest.fixture(scope="module")
def made(data, processes, tmp_path_factory):
    """The folder in which two processes trained several times, and what each of them got."""
    folder = tmp_path_factory.mktemp("together")
    ranks = start_ranks(processes, data, code=CODE, cwd=folder)
    wait_for(ranks)
    assert ranks[1].err == ""
    assert len(ranks[1].out.splitlines()) == 1, "other processes than the first print nothing"
    return folder, [json.loads(rank.out.splitlines()[-1]) for rank in ranks], ranks[0].err


def weights(directory):
    return load(directory).network.state_dict()


def demand_near(found, expected, tolerance=1e-5):
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize(("name", "model"), [("plain", "vgg11"), ("synchronized", "vgg11_bn")])
def test_two_processes_end_with_the_weights_and_metrics_of_one(name, model, data, made, tmp_path):
    folder, (first, second), err = made
    alone = train(
        *(data,),
        out=tmp_path / "run",
        **{"model": model, "until": "pool2", "image_size": 32, "epochs": 2, "batch_size": 8, "device": "cpu"},
        **{"precision": "fp32", "dropout": 0.0, "warmup_epochs": 0.5, "learning_rate": 0.02},
    )
    demand_near(weights(folder / name), alone.classifier.network.state_dict(), 1e-4)
    rows = [(folder / name / "metrics.csv").read_text(), (tmp_path / "run" / "metrics.csv").read_text()]
    found, expected = ([line.split(",") for line in text.splitlines()] for text in rows)
    assert found[0] == expected[0]
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert [float(x) for x in one[:5]] == pytest.approx([float(x) for x in other[:5]], rel=1e-4)
    assert first[name] | {"heard": []} == second[name] | {"heard": []}
    assert first["plain"]["heard"] == [1, 2]
    assert second["plain"]["heard"] == []
    assert first[name]["n"] == 11
    assert sorted(first[name]["paths"]) == sorted(path.name for path in (data / "val").rglob("*.png"))
    assert first[name]["loss"] == pytest.approx(alone.evaluation.loss, rel=1e-4)
    assert "2 processes: batches of 8 images, 4 in each process" in err
    assert "learning rate 0.02, as given, for 8 images a step" in err
    assert RunConfig.read(folder / name).found["processes"]["number"] == 2
    assert not [path for path in (folder / name).iterdir() if path.name.endswith(".part")]


def test_a_linear_probe_is_solved_on_the_features_of_all_processes(data, made, tmp_path):
    folder, (first, second), err = made
    alone = train(
        *(data,),
        out=tmp_path / "run",
        **{"weights": folder / "plain" / "best.safetensors", "trainable": "head", "views": 2, "image_size": 32},
        until="pool2",
        device="cpu",
    )
    demand_near(weights(folder / "probe"), alone.classifier.network.state_dict(), 1e-3)
    assert first["probe"] | {"heard": []} == second["probe"] | {"heard": []}
    assert first["probe"]["loss"] == pytest.approx(alone.evaluation.loss, rel=1e-3)
    assert first["probe"]["n"] == 11
    assert "features of 66 of 66 views of images were found in the cache" in err


def test_a_loss_that_diverges_returns_all_processes_to_the_start_of_the_epoch(made):
    _, (first, second), err = made
    assert first["diverged"] | {"heard": []} == second["diverged"] | {"heard": []}
    assert first["diverged"]["epochs"] == 2
    assert err.count("validation after epoch 1: back to the start of the epoch") == 1


def test_the_state_of_two_processes_is_continued_by_one(data, made, tmp_path, capsys):
    shutil.copytree(made[0] / "plain", tmp_path / "run")
    run = resume_run(tmp_path / "run", data, epochs=3, device="cpu")
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3]
    assert "began with 2 processes and continues with 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(data, processes, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    wait_for(start_ranks(processes, "train", data, "--out", out, *OPTIONS))
    return out


def demand_equal(one, other):
    (found, _), (expected, _) = read_state(one / "last.ckpt"), read_state(other / "last.ckpt")
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    best = weights(other)
    assert all(torch.equal(value, best[key]) for key, value in weights(one).items())


def wait_for_steps(ranks, out, steps):
    while (
        not (out / "last.ckpt").is_file()
        or json.loads(read_state(out / "last.ckpt")[1]["progress"])["steps"] < steps
    ):
        assert all(rank.poll() is None for rank in ranks), [rank.err for rank in ranks]
        time.sleep(0.002)


def test_killed_and_stopped_processes_continue_to_the_same_bits(data, undisturbed, processes, tmp_path):
    out = tmp_path / "run"
    ranks = start_ranks(processes, "train", data, "--out", out, *OPTIONS)
    wait_for_steps(ranks, out, 3)
    ranks[1].send_signal(signal.SIGKILL)
    wait_for(ranks, codes=(2, -signal.SIGKILL), seconds=30)
    assert ranks[0].err.count("vggkit: error: another of the 2 processes ended") == 1
    assert "Traceback" not in ranks[0].err
    assert read_run_state(out).state == "failed"
    # As torchrun starts them again: the same command, and the number of the start.
    again = start_ranks(
        *(processes, "train", data, "--out", out, *OPTIONS), environment={"TORCHELASTIC_RESTART_COUNT": "1"}
    )
    wait_for_steps(again, out, 10)
    again[0].send_signal(signal.SIGTERM)
    wait_for(again, codes=(128 + signal.SIGTERM, 2), seconds=30)
    assert f"vggkit train --resume {out}" in again[0].err
    assert again[1].err == ""
    wait_for(start_ranks(processes, "train", "--resume", out, "--device", "cpu"))
    demand_equal(out, undisturbed)


PLAIN = [
    *("--model", "vgg11", "--until", "pool2", "--image-size", "32", "--epochs", "2", "--batch-size", "4"),
    *("--device", "cpu", "--precision", "fp32", "--dropout", "0", "--learning-rate", "0.02", "--save-seconds", "0"),
]


@pytest.fixture(scope="module")
def stopped_on_shards(data, processes, tmp_path_factory):
    """Of tar shards: an undisturbed run, one of which a process was killed in the first epoch, and how it ended."""
    folder = tmp_path_factory.mktemp("sharded")
    shard(data, folder / "shards", images_per_shard=5)
    wait_for(start_ranks(processes, "train", folder / "shards", "--out", folder / "undisturbed", *PLAIN))
    ranks = start_ranks(processes, "train", folder / "shards", "--out", folder / "killed", *PLAIN)
    wait_for_steps(ranks, folder / "killed", 3)
    ranks[1].send_signal(signal.SIGKILL)
    wait_for(ranks, codes=(2, -signal.SIGKILL), seconds=30)
    return folder, ranks


@pytest.mark.slow
def test_killed_processes_that_stream_shards_continue_to_the_same_bits(stopped_on_shards, processes, tmp_path):
    folder, ranks = stopped_on_shards
    assert ranks[0].err.count("vggkit: error: another of the 2 processes ended") == 1
    out = tmp_path / "run"
    shutil.copytree(folder / "killed", out)
    wait_for(start_ranks(processes, "train", "--resume", out, "--device", "cpu"))
    demand_equal(out, folder / "undisturbed")


@pytest.mark.slow
def test_another_number_of_processes_continues_within_an_epoch_of_shards(stopped_on_shards, tmp_path, capsys):
    """With the images that are left of it, in the same batches."""
    folder, _ = stopped_on_shards
    out = tmp_path / "run"
    shutil.copytree(folder / "killed", out)
    run = resume_run(out, device="cpu")
    assert "in epoch 1, after " in capsys.readouterr().err
    demand_near(weights(out), weights(folder / "undisturbed"), 1e-4)
    assert run.evaluation.n == 11


@pytest.mark.slow
def test_what_processes_that_continue_a_run_must_share(stopped_on_shards, processes, tmp_path):
    folder, _ = stopped_on_shards
    out = tmp_path / "run"
    shutil.copytree(folder / "killed", out)
    ranks = start_ranks(processes, "train", "--resume", out, "--quiet", size=3)
    wait_for(ranks, codes=(2, 2, 2), seconds=30)
    assert "4 cannot be divided by 3 processes; start a number that divides 4" in ranks[0].err
    assert len(ranks[0].err.splitlines()) == 1, ranks[0].err
    ranks = start_ranks(
        *(processes, "train", "--resume", out, "--quiet"),
        code=ANOTHER.format(change="sys.argv += ['--epochs', '3']"),
    )
    wait_for(ranks, codes=(2, 2), seconds=30)
    assert "another number of epochs than process 0: 3, not 2" in ranks[0].err
    assert ranks[1].err == ""


ANOTHER = (
    "import os, sys\nfrom vggkit.cli.main import main\nif os.environ['RANK'] == '1': {change}\nmain(sys.argv[1:])\n"
)
CHANGES = {
    "version": (
        "import vggkit.training.distributed.joining as j; j.digest_code = lambda: 'other'",
        r"process 1 of 2 has another version of vggkit than process 0",
    ),
    "classes": ("sys.argv[2] = sys.argv[2] + '-classes'", "another classes than process 0: across, blue, red, not"),
    "images": ("sys.argv[2] = sys.argv[2] + '-images'", "another number of images than process 0"),
    "options": ("sys.argv += ['--label-smoothing', '0.1']", "another options than process 0"),
    "no data": ("sys.argv[2] = '/nowhere'", "process 1: /nowhere: "),
    "fault": (
        "import vggkit.cli.train as t; t.open_inputs = lambda *a, **b: 1 / 0",
        "process 1 failed .ZeroDivision",
    ),
}


@pytest.fixture(scope="module")
def two_data(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "data"
    for ending in ("", "-classes", "-images"):
        shutil.copytree(data, f"{folder}{ending}")
    for split in ("train", "val"):
        (folder.with_name("data-classes") / split / "down").rename(
            folder.with_name("data-classes") / split / "blue"
        )
    (folder.with_name("data-images") / "train" / "red" / "000.png").unlink()
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_processes_that_differ_end_with_one_error(change, two_data, processes, tmp_path):
    lines, message = CHANGES[change]
    ranks = start_ranks(
        *(processes, "train", two_data, "--out", tmp_path / "run", *OPTIONS), code=ANOTHER.format(change=lines)
    )
    wait_for(ranks, codes=(2, 1 if change == "fault" else 2), seconds=30)
    assert len(ranks[0].err.splitlines()) == 1, ranks[0].err
    assert ranks[0].err.startswith("vggkit: error: ")
    assert re.search(message, ranks[0].err), ranks[0].err
    assert ("Traceback" in ranks[1].err) == (change == "fault")
    assert change == "fault" or ranks[1].err == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "5"], "5 cannot be divided by 2 processes; take 4 or 6"),
        (["--split-head"], "--split-head true splits fully connected layers"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, message, data, processes, tmp_path):
    ranks = start_ranks(processes, "train", data, "--out", tmp_path / "run", "--quiet", *OPTIONS, *options)
    wait_for(ranks, codes=(2, 2), seconds=30)
    assert message in ranks[0].err
    assert ranks[1].err == ""


def test_a_process_that_never_appears(data, processes, tmp_path):
    for rank, message in (
        (0, "1 of 2 processes joined at 127.0.0.1:"),
        (1, "did not reach process 0 at 127.0.0.1:"),
    ):
        alone = start_ranks(
            *(processes, "train", data, "--out", tmp_path / "run", *OPTIONS),
            ranks=[rank],
            environment={"VGGKIT_JOIN_SECONDS": "1"},
        )
        wait_for(alone, codes=(2,), seconds=30)
        assert len(alone[0].err.splitlines()) == 1, alone[0].err
        assert message in alone[0].err
