"""The command of torchrun itself: it starts processes again, and machines with addresses of their own."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import fill_folder
from vggkit.weights.model_file import read_state
from vggkit.workflows.run_folder import read_run_state

pytestmark = pytest.mark.slow

OPTIONS = [
    *("--model", "vgg11_bn", "--until", "pool2", "--image-size", "32", "--epochs", "2", "--batch-size", "6"),
    *(
        "--device",
        "cpu",
        "--dropout",
        "0.3",
        "--precision",
        "fp32",
        "--learning-rate",
        "0.01",
        "--save-seconds",
        "0",
    ),
    *("--gradient-compression", "powersgd"),
]
DIES = """
import os, signal, sys
from vggkit.cli.main import main
from vggkit.training.trainer import Trainer
pause = Trainer._pause
def die(self):
    pause(self)
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.progress.steps == 13:
        os.kill(os.getpid(), signal.SIGKILL)
if "--die" in sys.argv:
    sys.argv.remove("--die")
    Trainer._pause = die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill_folder(folder / "train", ("across", "down", "red"), 20)
    fill_folder(folder / "val", ("across", "down", "red"), 4, start=100)
    return folder


def torchrun(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)]


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_undisturbed(data, tmp_path):
    """In the middle of the second epoch, where PowerSGD compresses already; the run's folder was not named."""
    (tmp_path / "main.py").write_text(DIES)
    for name, more in (("undisturbed", []), ("killed", ["--die"])):
        (tmp_path / name).mkdir()
        done = subprocess.run(
            torchrun(
                *("--standalone", "--nproc-per-node", 2, "--max-restarts", 2, tmp_path / "main.py", "train", data),
                *(*OPTIONS, *more),
            ),
            cwd=tmp_path / name,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("report: ") == 1
    assert "resuming runs/vgg11_bn-1 in epoch 2, after 3 of its batches" in done.stderr
    assert [path.name for path in (tmp_path / "killed" / "runs").iterdir()] == ["vgg11_bn-1"]
    found, expected = (
        read_state(tmp_path / name / "runs" / "vgg11_bn-1" / "last.ckpt")[0] for name in ("killed", "undisturbed")
    )
    assert any(key.startswith("powersgd/lost/1/") for key in expected)
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


@pytest.fixture
def machines() -> Iterator[list[tuple[list[str], dict[str, str], str]]]:
    """Two network namespaces: what starts a command in each, its environment, and its address."""
    names = [f"vggkit{os.getpid()}{side}" for side in "ab"]
    links = [f"vk{os.getpid() % 100_000}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip")

    def ip(*arguments: str) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True), start=1):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [
            (["ip", "netns", "exec", name], {**os.environ, "GLOO_SOCKET_IFNAME": link}, f"10.77.0.{number}")
            for number, (name, link) in enumerate(zip(names, links, strict=True), start=1)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_machines_train_one_network(data, machines, tmp_path):
    """Each has its own copy of the images, and folders that the other does not see."""
    running = []
    for number, (start, environment, _) in enumerate(machines):
        home = tmp_path / f"machine {number}"
        shutil.copytree(data, home / "photos")
        command = torchrun(
            *("--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1, "--master-addr", machines[0][2]),
            *("--master-port", 29731, "-m", "vggkit", "train", "photos", "--out", "run", *OPTIONS, "--json"),
        )
        running.append(
            subprocess.Popen(
                [*start, *command],
                cwd=home,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(itertools.chain(*outputs))[-5000:]
    assert json.loads(outputs[0][0])["n"] == 12
    assert outputs[1][0] == ""
    assert "vgg11_bn" not in outputs[1][1]
    assert read_run_state(tmp_path / "machine 0" / "run").state == "finished"
    assert not (tmp_path / "machine 1" / "run").exists()
