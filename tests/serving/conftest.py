import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from uvicorn import Server

import vggkit as vk
from conftest import draw_class
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.serving.loaded_model import Computing
from vggkit.serving.logs import Log
from vggkit.serving.options import ServeOptions
from vggkit.serving.process import build_service, make_config

LABELS = ("across", "down", "red")


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@dataclass
class Running:
    """A service in a thread of this process, at a real port."""

    client: httpx.Client
    port: int
    log: Path
    server: Server

    def read_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextlib.contextmanager
def run_service(places: dict[str, Path], log: Path, **changes: Any) -> Iterator[Running]:
    """A service with these options, answering."""
    options = ServeOptions(
        places={name: str(place) for name, place in places.items()},
        computing=changes.pop("computing", Computing(precision="fp32", max_batch=4)),
        log_file=log,
        reload_seconds=changes.pop("reload_seconds", 0),
        **changes,
    )
    written = Log(log)
    server = Server(make_config(build_service(options, written), options, is_factory=False))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield Running(client, port, log, server)
    finally:
        server.should_exit = True
        thread.join()
        written.close()


@pytest.fixture(scope="session")
def model_file(tiny, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("models") / "stripes.safetensors"
    vk.Classifier.create(tiny, labels=LABELS, preprocessing=choose_preprocessing(64), seed=1).save(file)
    return file


@pytest.fixture(scope="session")
def other_file(tiny, tmp_path_factory) -> Path:
    """Of other weights and labels, with the dense head's hidden layers."""
    file = tmp_path_factory.mktemp("models") / "other.safetensors"
    network = replace(tiny, num_classes=2, head="fc", hidden=(16, 12), grid=2)
    vk.Classifier.create(network, labels=("no", "yes"), preprocessing=choose_preprocessing(64), seed=2).save(file)
    return file


@pytest.fixture(scope="module")
def service(model_file, other_file, tmp_path_factory) -> Iterator[Running]:
    """Two models, and no limits but the usual ones."""
    log = tmp_path_factory.mktemp("service") / "log"
    with run_service({"stripes": model_file, "other": other_file}, log) as running:
        yield running


@pytest.fixture(scope="session")
def images() -> dict[str, bytes]:
    return {
        "a.png": encode(draw_class("across", 1)),
        "b.jpg": encode(draw_class("down", 2, side=90), "JPEG", quality=90),
        "c.webp": encode(draw_class("red", 3), "WEBP", lossless=True),
    }


@dataclass
class Command:
    """`vggkit serve` as a process of its own, whose standard output is in a file."""

    process: subprocess.Popen[str]
    address: str
    folder: Path
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def url(self, path: str) -> str:
        return self.address + path

    def read_log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out").read_text(encoding="utf-8").splitlines()]

    def wait_for(self, found: Callable[[], bool], seconds: float = 30) -> None:
        until = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < until, (self.folder / "out").read_text(encoding="utf-8")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return self.client.get(self.url("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Command]]:
    """Starts `vggkit serve`, and ends what it started."""
    started: list[Command] = []

    def start_one(*arguments: object, code: str | None = None, **environment: str) -> Command:
        folder = tmp_path / f"process {len(started)}"
        folder.mkdir()
        run = ["-c", code] if code else ["-m", "vggkit"]
        with open(folder / "out", "w") as out:
            process = subprocess.Popen(
                [sys.executable, *run, "serve", *map(str, arguments), "--port", "0"],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            )
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("serving at "), line + process.stderr.read()
        command = Command(process, line.split()[2], folder)
        started.append(command)
        command.wait_for(command.is_ready)
        return command

    yield start_one
    for command in started:
        command.client.close()
        if command.process.poll() is None:
            command.stop()
        command.process.stderr.close()
