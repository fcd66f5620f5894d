"""`vggkit serve` as people start it: signals, files that are replaced, workers that die, disks that are full."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import vggkit as vk
from vggkit.images.preprocessing import choose_preprocessing

SLOWED = """
import sys, time
from vggkit.serving import loaded_model
compute = loaded_model.LoadedModel.compute
def slow(self, inputs, wanted):
    time.sleep(0.4)
    return compute(self, inputs, wanted)
loaded_model.LoadedModel.compute = slow
from vggkit.cli.main import main
main(sys.argv[1:])
"""
"""`vggkit` with a model that takes its time."""
TORCHLESS = """
import atexit, sys
from vggkit.cli.main import main
atexit.register(lambda: print('{"torch":', str('torch' in sys.modules).lower(), '}'))
main(sys.argv[1:])
"""
"""`vggkit`, telling at its end whether torch was imported."""


class Load:
    """Clients that send an image again and again, and note what they get."""

    def __init__(self, command, image: bytes, clients: int = 3) -> None:
        self._url, self._image = command.url("/predict"), image
        self.answers: list[httpx.Response] = []
        self.broken = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(self._url, content=self._image, headers={"content-type": "image/png"})
                    self.answers.append(answer)
                except httpx.TransportError:
                    self.broken += 1
                    time.sleep(0.02)

    def wait_for(self, found, seconds: float = 20) -> None:
        until = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < until, [answer.text for answer in self.answers[-3:]]
            time.sleep(0.02)

    @property
    def versions(self) -> list[str]:
        return [answer.json()["version"] for answer in self.answers if answer.status_code == 200]


def put(source: Path, target: Path) -> None:
    """Replace a file as a careful program does."""
    beside = target.with_suffix(".new")
    shutil.copy(source, beside)
    beside.replace(target)


def test_a_changed_file_is_loaded_and_a_broken_one_is_not_and_no_request_is_lost(
    start, model_file, tiny, images, tmp_path
):
    pytest.importorskip("openvino")
    file, second = tmp_path / "m.safetensors", tmp_path / "second.safetensors"
    put(model_file, file)
    vk.Classifier.create(
        tiny, labels=("left", "middle", "right"), preprocessing=choose_preprocessing(96), seed=5
    ).save(second)
    command = start(f"cats={file}", "--reload-seconds", "0.05", "--precision", "fp32", code=TORCHLESS)
    with Load(command, images["a.png"]) as load:
        load.wait_for(lambda: load.versions)
        [first] = set(load.versions)
        put(second, file)  # of other labels and another size of images
        load.wait_for(lambda: set(load.versions) != {first})
        changed = load.versions[-1]
        for broken in (b"broken", second.read_bytes()[:-100], b""):
            file.write_bytes(broken)  # in place, as a careless program does
            command.wait_for(lambda: command.client.get(command.url("/model")).json()["reload_problem"])
            count = len(load.answers)
            load.wait_for(lambda count=count: len(load.answers) > count + 9)
            assert load.versions[-1] == changed
        put(model_file, file)
        load.wait_for(lambda: load.versions[-1] == first)
        assert command.client.get(command.url("/model")).json()["reload_problem"] is None
    assert {answer.status_code for answer in load.answers} == {200}
    assert load.broken == 0
    assert command.stop() == 0
    *lines, last = command.read_log()
    assert last == {"torch": False}
    assert [line["event"] for line in lines if "reload" in line["event"]].count("not reloaded") >= 3


def test_sigterm_finishes_what_has_begun(start, model_file, images):
    command = start(model_file, "--log-file", "/dev/full", "--max-wait-ms", "0", code=SLOWED)
    answers = []

    def send() -> None:
        with httpx.Client(timeout=30) as client:
            files = {"files": ("a.png", images["a.png"])}
            answers.append(client.post(command.url("/predict"), files=files).status_code)

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    command.wait_for(lambda: "vggkit_queue_images 3.0" in command.client.get(command.url("/metrics")).text)
    # A full disk for the log has been counted, and was no matter until here.
    assert "vggkit_log_lines_lost_total 0.0" not in command.client.get(command.url("/metrics")).text
    command.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert answers == [200] * 3
    assert command.process.wait(timeout=20) == 0
    with pytest.raises(httpx.TransportError):
        command.client.get(command.url("/ready"))


def find_workers(command) -> set[int]:
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    workers = set()
    for child in map(int, children):
        with open(f"/proc/{child}/cmdline", "rb") as file:
            if b"spawn_main" in file.read():
                workers.add(child)
    return workers


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the processes in Linux's /proc")
def test_a_killed_worker_is_replaced_within_five_seconds(start, model_file, images):
    command = start(model_file, "--workers", "2", "--precision", "fp32")
    command.wait_for(lambda: len(find_workers(command)) == 2)
    with Load(command, images["a.png"], clients=2) as load:
        load.wait_for(lambda: len(load.answers) > 10)
        [killed, _] = before = sorted(find_workers(command))
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        load.wait_for(lambda: killed not in find_workers(command) and len(find_workers(command)) == 2)
        [new] = find_workers(command) - set(before)

        def is_loaded() -> bool:
            return any(line["event"] == "loaded" and line["process"] == new for line in command.read_log())

        load.wait_for(is_loaded)
        seconds = time.monotonic() - began
        count = len(load.answers)
        load.wait_for(lambda: len(load.answers) > count + 10)
    print(f"replaced after {seconds:.1f} s")
    assert {answer.status_code for answer in load.answers} == {200}
    assert load.broken <= 2  # each client's request in work, which failed at once
    text = command.client.get(command.url("/metrics")).text  # of both, and of the killed one
    found = [line for line in text.splitlines() if line.startswith("vggkit_images_total")]
    assert float(found[0].split()[-1]) >= len(load.answers)
    [event] = [line for line in command.read_log() if line["event"] == "worker ended"]
    assert event["exit_code"] == -signal.SIGKILL
    # A supervisor that is killed leaves no worker behind.
    workers = find_workers(command)
    command.process.kill()
    command.process.wait()
    command.wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def refuse(*arguments: object, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "vggkit", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("vggkit: error: ")
    assert found.stderr.count("\n") == 1
    return found.stderr


def test_what_cannot_be_served_is_refused_on_one_line(model_file, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    assert "broken.safetensors" in refuse(tmp_path / "broken.safetensors", "--workers", "2")


def test_what_cannot_be_served_is_refused_in_python(model_file, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(vk.BadInput, match="choose another --port"):
            vk.serve(model_file, port=taken.getsockname()[1])
    for given, options, message in (
        ([], {}, "serve needs a model"),
        ([tmp_path / "none.safetensors"], {}, "no such file"),
        ([f"a={model_file}", f"a={model_file}"], {}, "two models are called a"),
        ({"a b": model_file}, {}, "a served model's name"),
        (model_file, {"layer": "relu9"}, "relu9"),
        (model_file, {"port": 70_000}, "port must be from 0 to 65535"),
        (model_file, {"workers": 0}, "workers must be 1 or more"),
        (model_file, {"token_file": tmp_path / "none"}, "the token cannot be read"),
        (model_file, {"log_file": tmp_path / "none" / "log"}, "cannot be written"),
        (model_file, {"host": "192.0.2.1"}, "cannot listen at 192.0.2.1"),
        (model_file, {"precision": "int8"}, "int8 needs the activation ranges"),
    ):
        with pytest.raises(vk.VggkitError, match=message):
            vk.serve(given, **({"port": 0} | options))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["runs/cats/best.safetensors"], ["cats"]),
        (["runs/cats/", "dogs=runs/b"], ["cats", "dogs"]),
        (["vgg16", "my net.safetensors"], ["vgg16", "my-net"]),
        (["hf://owner/name"], ["name"]),
        ({"b": "x", "a": "y"}, ["b", "a"]),
    ],
)
def test_names_of_models(given, names):
    from vggkit.serving.named_models import name_models

    assert list(name_models(given)) == names
