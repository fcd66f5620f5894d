"""Requests a second and latency of `vggkit serve`, beside a plain FastAPI server with torchvision in eager PyTorch.

Both get the same requests, one JPEG each as multipart, from clients in a process of their own on the same machine,
which keep their connections and send the next request when they have the answer. The servers take turns; each level
of clients sends a fixed number of requests. The engine's bare throughput, batches of 16 preprocessed images without
decoding and HTTP, is measured in the same turns. Weights are random: the time does not depend on them.

    python benchmarks/serve.py [MODEL] [ROUNDS] [SHARE]

SHARE, such as 0.1, sends fewer requests, to see that it works.
"""

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MODEL = sys.argv[1] if len(sys.argv) > 1 else "vgg11"
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
SHARE = float(sys.argv[3]) if len(sys.argv) > 3 else 1.0
REQUESTS = {clients: max(2, int(SHARE * count)) for clients, count in {1: 10, 8: 32, 32: 160, 128: 128}.items()}
"""Requests of each number of clients."""
MOST_SECONDS = 60.0
"""No request is sent later than this in a level."""
BATCH = 16
SERVED = {"auto": ("auto", "auto"), "bf16": ("bf16", "openvino"), "int8": ("int8", "openvino")}
"""Precision and engine of each server; auto is the default of `vggkit serve`."""

PEER = """
import io, sys
import torch, torchvision, uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision.models import get_model
from torchvision.transforms import v2

app = FastAPI()
model = get_model(sys.argv[1], weights=None, num_classes=1000).eval()
prepare = v2.Compose([
    v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])

@app.post("/predict")
async def predict(files: UploadFile):
    image = Image.open(io.BytesIO(await files.read())).convert("RGB")
    with torch.inference_mode():
        best = model(prepare(image)[None]).softmax(1)[0].topk(5)
    return {"labels": best.indices.tolist(), "probabilities": best.values.tolist()}

@app.get("/ready")
async def ready():
    return {}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""
"""What tutorials show."""

BARE = """
import json, sys, time
import numpy as np
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.select import choose_engine, resolve_for_batches
_, name, precision = resolve_for_batches("cpu", precision=sys.argv[2], engine=sys.argv[3], pixels=224)
engine = choose_engine(ModelFile(sys.argv[1]), "cpu", output="logits", precision=precision, engine=name)
batch = np.random.default_rng(0).normal(size=(int(sys.argv[4]), 3, 224, 224)).astype(np.float32)
for _ in range(2):
    engine.run(batch)
print(json.dumps(engine.info.describe()), flush=True)
for _ in sys.stdin:
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 3:
        engine.run(batch)
        done += len(batch)
    print(json.dumps(done / (time.perf_counter() - started)), flush=True)
"""


def draw_requests(count: int = 32) -> list[bytes]:
    """Multipart bodies, each with a JPEG of a photo's size and smoothness: 500 × 375 pixels."""
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(count):
        noise = rng.integers(0, 255, (24, 32, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n'
        requests.append(head + b"Content-Type: image/jpeg\r\n\r\n" + file.getvalue() + b"\r\n--x--\r\n")
    return requests


async def send_all(port: int, path: str, bodies: list[bytes], clients: int, count: int) -> list[float]:
    """Seconds of each request, in order of their ends; raises where an answer is no 200."""
    seconds: list[float] = []
    numbers = iter(range(count))
    end = time.perf_counter() + MOST_SECONDS

    async def send() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        for number in numbers:
            if time.perf_counter() > end:
                break
            body = bodies[number % len(bodies)]
            started = time.perf_counter()
            writer.write(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            assert head.startswith(b"HTTP/1.1 200"), (head, answer)
            seconds.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))
    return seconds


def load(port: int, path: str, clients: int, count: int) -> tuple[float, list[float]]:
    """Requests a second, and the seconds of each; run in a process of its own."""
    bodies = draw_requests()
    started = time.perf_counter()
    seconds = asyncio.run(send_all(port, path, bodies, clients, count))
    return len(seconds) / (time.perf_counter() - started), seconds


def find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(*command: str, port: int) -> Iterator[int]:
    """A server as a process, answering."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, command
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


class Bare:
    """The engine alone, in a process of its own."""

    def __init__(self, model: Path, precision: str, engine: str) -> None:
        command = [sys.executable, "-c", BARE, str(model), precision, engine, str(BATCH)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.described = json.loads(self._process.stdout.readline())

    def measure(self) -> float:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def make_model(file: Path) -> None:
    """A model of random weights, with the activation ranges that int8 needs; run in a process of its own."""
    import vggkit as vk
    from vggkit.engines.activation_ranges import measure_ranges

    made = vk.Classifier.create(MODEL, labels=[f"class {n}" for n in range(1000)], seed=0)
    images = [body.partition(b"\r\n\r\n")[2] for body in draw_requests(8)]
    batch = np.stack([made.preprocessing(image) for image in images])
    made.keep_ranges(measure_ranges(made.network, [batch]), about={"images": len(batch)})
    made.save(file)


def start_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def main() -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as open_:
        file = Path(place) / f"{MODEL}.safetensors"
        with start_process() as maker:
            maker.submit(make_model, file).result()
        ports = {}
        for served, (precision, engine) in SERVED.items():
            port = find_port()
            command = ["-m", "vggkit", "serve", str(file), "--precision", precision, "--engine", engine]
            command += ["--port", str(port), "--quiet", "--timeout-seconds", "300"]
            ports[served] = open_.enter_context(serving(*command, port=port))
        port = find_port()
        ports["torchvision"] = open_.enter_context(serving("-c", PEER, MODEL, str(port), port=port))
        bare = {served: Bare(file, *options) for served, options in SERVED.items()}
        for each in bare.values():
            open_.callback(each.close)
        sending = open_.enter_context(start_process())
        rates, seconds = defaultdict(list), defaultdict(list)
        ways = [(name, "/predict", clients) for clients in REQUESTS for name in ports]
        ways += [(name, "/predict?explain=true", 32) for name in SERVED]
        for name, path, clients in ways[: len(ports)]:
            sending.submit(load, ports[name], path, clients, 5).result()
        for number in range(ROUNDS):
            for served, each in bare.items():
                rates["bare", served].append(each.measure())
            for way in ways:
                name, path, clients = way
                rate, found = sending.submit(load, ports[name], path, clients, REQUESTS[clients]).result()
                rates[way].append(rate)
                seconds[way] += found
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr)
        report(ways, rates, seconds, {name: each.described for name, each in bare.items()})


def report(ways, rates, seconds, described) -> None:
    median = {way: statistics.median(found) for way, found in rates.items()}
    print(f"{MODEL}, {ROUNDS} rounds, {os.cpu_count()} processors\n")
    print("| engine alone, batches of 16 | images/s | spread |\n|---|---|---|")
    for served, text in described.items():
        found = rates["bare", served]
        print(f"| {served}: {text} | {median['bare', served]:.1f} | {min(found):.1f} to {max(found):.1f} |")
    print("\n| clients | server | requests/s | of the engine alone | of torchvision's | p50 ms | p95 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for way in ways:
        name, path, clients = way
        rate, peer = median[way], median["torchvision", "/predict", clients]
        alone = f"{rate / median['bare', name]:.2f}" if name != "torchvision" else ""
        title = "torchvision, eager" if name == "torchvision" else f"vggkit serve, {name}"
        title += ", with heatmaps" if "explain" in path else ""
        p50, p95, p99 = (1000 * np.quantile(seconds[way], share) for share in (0.5, 0.95, 0.99))
        times = f"{p50:.0f} | {p95:.0f} | {p99:.0f}"
        print(f"| {clients} | {title} | {rate:.1f} | {alone} | {rate / peer:.2f} | {times} |")


if __name__ == "__main__":
    main()
