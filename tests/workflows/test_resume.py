"""Nothing is lost: trainings that are killed, stopped, or find the disk full, and go on."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from conftest import draw_class, fill_folder
from processes import Processes, Running
from vggkit.classifier import load
from vggkit.errors import BadCheckpoint, BadConfiguration, BadData, BadImage, BadOutput, VggkitError
from vggkit.weights.model_file import read_state
from vggkit.workflows.resume_run import resume_run as resume
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.train import train

LABELS = ("across", "down", "red")
STEPS = 18
"""Of the training below: 2 epochs of 9 batches."""


def command(data: Path, out: Path, *options: str) -> list[str]:
    return [
        *("train", str(data), "--out", str(out), "--model", "vgg11_bn"),
        *("--until", "pool2", "--image-size", "32", "--epochs", "2", "--batch-size", "4", "--device", "cpu"),
        *("--dropout", "0.3", "--optimizer", "adamw", "--ema-decay", "0.9", "--mixup", "0.2", "--mirror", "random"),
        *("--save-seconds", "0", "--quiet", *options),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill_folder(folder / "train", LABELS, 12)
    fill_folder(folder / "val", LABELS, 4, start=100)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted, in an interpreter of its own."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run([sys.executable, "-m", "vggkit", *command(data, out)], check=True)
    return out


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Of the kept epoch, and of the last one."""
    last, _ = read_state(directory / "last.ckpt")
    best = load(directory).network.state_dict()
    return {f"best/{key}": value for key, value in best.items()} | last


def demand_equal(one: Path, other: Path) -> None:
    found, expected = weights(one), weights(other)
    assert found.keys() == expected.keys()
    different = [key for key, value in expected.items() if not torch.equal(found[key], value)]
    assert different == []


def count_steps(directory: Path) -> int:
    """How far the state on disk is, 0 where there is none; never half a state."""
    try:
        whole = (directory / "last.ckpt").read_bytes()  # at once: the next moment it is another file
    except FileNotFoundError:
        return 0
    length = int.from_bytes(whole[:8], "little")
    metadata = json.loads(whole[8 : 8 + length])["__metadata__"]
    assert len(safetensors.torch.load(whole)) > 10
    return int(json.loads(metadata["progress"])["steps"])


def kill_after(process: Running, directory: Path, steps: int, number: int) -> None:
    """Send the signal when the state on disk has so many steps."""
    while count_steps(directory) < steps:
        assert process.poll() is None, process.err
        time.sleep(0.002)
    process.send_signal(number)
    process.wait()


@pytest.mark.parametrize(
    "steps", [pytest.param(2, marks=pytest.mark.slow), 9, pytest.param(13, marks=pytest.mark.slow)]
)
def test_a_killed_run_goes_on_to_the_same_bits(steps, data, whole, tmp_path, processes):
    process = processes.start(*command(data, tmp_path / "run"))
    kill_after(process, tmp_path / "run", steps, signal.SIGKILL)
    assert process.poll() == -signal.SIGKILL
    assert steps <= count_steps(tmp_path / "run") < STEPS
    run = processes.run("train", "--resume", tmp_path / "run", "--device", "cpu", "--json")
    assert json.loads(run.out)["n"] == 12
    demand_equal(tmp_path / "run", whole)
    with open(tmp_path / "run" / "metrics.csv", encoding="utf-8") as lines:
        assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2"]
    assert not list((tmp_path / "run").glob("epoch.ckpt"))


@pytest.mark.slow
def test_twenty_kills_at_random_moments(data, whole, tmp_path, processes):
    """Also while a state is being written: with --save-seconds 0 that is a good part of the time."""
    draw = random.Random(0)
    for number in range(20):
        out = tmp_path / str(number)
        process = processes.start(*command(data, out))
        while count_steps(out) == 0 and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        resume(out, device="cpu", quiet=True)
        demand_equal(out, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_its_state_and_says_how_to_go_on(number, data, whole, tmp_path, processes):
    arguments = command(data, tmp_path / "run")
    arguments[arguments.index("--save-seconds") + 1] = "1000"
    process = processes.start(*arguments)
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert process.poll() is None, process.err
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert f"vggkit train --resume {tmp_path / 'run'}" in process.err
    assert "Traceback" not in process.err
    resume(tmp_path / "run", device="cpu", quiet=True)
    demand_equal(tmp_path / "run", whole)


def test_a_head_that_is_asked_to_stop_says_how_to_go_on(data, whole, tmp_path, processes):
    """Where nothing waits for a good moment: images pass the network, and the signal ends it there."""
    code = (
        "import os, signal, sys\n"
        "from vggkit.training import feature_cache\n"
        "def stop(*_, **__): os.kill(os.getpid(), signal.SIGTERM)\n"
        "feature_cache.stream_rows = stop\n"
        "from vggkit.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = [
        *("train", str(data), "--out", str(tmp_path / "run"), "--weights", str(whole / "best.safetensors")),
        *("--model", "vgg11_bn", "--until", "pool2", "--image-size", "32", "--trainable", "head", "--quiet"),
    ]
    stopped = processes.start_python(code, *arguments)
    assert stopped.wait() == 128 + signal.SIGTERM, stopped.err
    assert f"vggkit train --resume {tmp_path / 'run'}" in stopped.err
    assert resume(tmp_path / "run", device="cpu", quiet=True).evaluation.n == 12


def stop_early(data: Path, out: Path, processes: Processes) -> Path:
    kill_after(processes.start(*command(data, out)), out, 3, signal.SIGKILL)
    return out


def test_what_changed_between_is_named_and_the_state_stays(tmp_path, processes):
    folder = tmp_path / "data"
    fill_folder(folder / "train", LABELS, 12)
    fill_folder(folder / "val", LABELS, 4, start=100)
    out = stop_early(folder, tmp_path / "run", processes)
    before = (out / "last.ckpt").read_bytes()

    (folder / "train" / "red" / "000.png").rename(tmp_path / "gone.png")
    with pytest.raises(BadData, match="48 readable images then, 47 files now"):
        resume(out, device="cpu", quiet=True)
    (tmp_path / "gone.png").rename(folder / "train" / "red" / "000.png")

    text = (out / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    config["recipe"]["learning_rate"] = 0.5
    (out / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(BadCheckpoint, match="learning_rate"):
        resume(out, device="cpu", quiet=True)
    config = yaml.safe_load(text)
    config["network"]["model"] = "vgg13_bn"
    (out / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(BadCheckpoint, match=r"network.*model"):
        resume(out, device="cpu", quiet=True)
    (out / "config.yaml").write_text(text[: text.index("\nfound:")], encoding="utf-8")
    with pytest.raises(BadCheckpoint, match="found"):
        resume(out, device="cpu", quiet=True)
    (out / "config.yaml").write_text("recipe: [", encoding="utf-8")
    with pytest.raises(VggkitError, match=r"config\.yaml"):
        resume(out, device="cpu", quiet=True)
    (out / "config.yaml").write_text(text, encoding="utf-8")

    assert (out / "last.ckpt").read_bytes() == before
    resume(out, device="cpu", quiet=True)


def test_images_of_another_order_or_content_are_another_run(data, tmp_path, processes):
    files = sorted((data / "train").rglob("*.png")) + sorted((data / "val").rglob("*.png"))
    rows = [f"{file},{file.parent.name},{file.parent.parent.name}" for file in files]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    out = stop_early(table, tmp_path / "run", processes)
    table.write_text("\n".join(["path,label,split", *reversed(rows)]))
    with pytest.raises(BadCheckpoint, match="other images"):
        resume(out, device="cpu", quiet=True)
    table.write_text("\n".join(["path,label,split", *rows]))
    resume(out, device="cpu", quiet=True)


def test_an_image_that_goes_in_the_middle_is_named_and_the_state_stays(data, tmp_path, monkeypatch):
    from vggkit.classifier import Classifier
    from vggkit.images.preprocessing import Preprocessing
    from vggkit.training import trainer as loop
    from vggkit.training.recipe import Recipe

    folder = tmp_path / "data"
    fill_folder(folder / "train", LABELS, 12)
    fill_folder(folder / "val", LABELS, 4, start=100)
    measure = loop.Trainer._validate

    def lose(self):
        (folder / "val" / "red" / "100.png").unlink(missing_ok=True)
        return measure(self)

    monkeypatch.setattr(loop.Trainer, "_validate", lose)
    classifier = Classifier.create(
        "vgg11", labels=LABELS, until="pool2", preprocessing=Preprocessing(resize_pixels=32, crop_pixels=32)
    )
    with pytest.raises(BadImage, match=r"100\.png.*vggkit train --resume"):
        train(folder, model=classifier, recipe=Recipe(epochs=2, batch_size=8), out=tmp_path / "run", device="cpu")
    Image.fromarray(draw_class("red", 100)).save(folder / "val" / "red" / "100.png")
    monkeypatch.undo()
    assert len(resume(tmp_path / "run", device="cpu", quiet=True).history) == 2


def test_a_full_disk_leaves_the_last_state_whole(data, tmp_path, monkeypatch, processes):
    out = stop_early(data, tmp_path / "run", processes)
    before = (out / "last.ckpt").read_bytes()

    def write(tensors, path, metadata):
        Path(path).write_bytes(b"half a state")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", write)
        with pytest.raises(BadOutput, match="No space left"):
            resume(out, device="cpu", quiet=True, save_seconds=0)
    assert (out / "last.ckpt").read_bytes() == before
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    resume(out, device="cpu", quiet=True)


def test_a_run_that_was_killed_before_its_first_state_begins_again(data, tmp_path, capsys):
    out = tmp_path / "run"
    options = {"until": "pool1", "image_size": 32, "epochs": 1, "batch_size": 18, "device": "cpu"}
    run = train(data, out=out, **options)
    expected = run.classifier.network.state_dict()
    for name in ("last.ckpt", "best.safetensors", "metrics.csv"):
        (out / name).unlink()
    again = resume(out, device="cpu")
    assert "starts again" in capsys.readouterr().err
    assert all(torch.equal(value, expected[key]) for key, value in again.classifier.network.state_dict().items())


def test_a_run_goes_on_for_more_epochs_where_its_images_are_now(data, tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, folder)
    options = {"until": "pool1", "image_size": 32, "batch_size": 18, "device": "cpu"}
    train(folder, out=out, epochs=2, monitor="macro-f1", **options)
    folder.rename(tmp_path / "moved")
    with pytest.raises(BadData, match=rf"vggkit train PLACE --resume {out}"):
        resume(out, device="cpu", epochs=4)
    with pytest.raises(BadConfiguration, match="more than the 2"):
        resume(out, tmp_path / "moved", device="cpu", epochs=1)
    capsys.readouterr()
    run = resume(out, tmp_path / "moved", device="cpu", epochs=4)
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3, 4]
    assert "cosine learning-rate schedule now covers 4 epochs" in capsys.readouterr().err
    assert run.history[3].learning_rate < run.history[1].learning_rate == run.history[2].learning_rate
    assert RunConfig.read(out).resolved.epochs == 4
    assert max(epoch.val_macro_f1 for epoch in run.history) == run.history[run.best_epoch - 1].val_macro_f1
    assert run.evaluation.macro_f1 == pytest.approx(run.history[run.best_epoch - 1].val_macro_f1)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadCheckpoint, match="config"):
        resume(tmp_path)
    (tmp_path / "config.yaml").write_text("recipe: {}", encoding="utf-8")
    with pytest.raises(BadCheckpoint, match=r"last\.ckpt"):
        resume(tmp_path)
