"""Many requests of mixed good and bad images to one `vggkit serve`: right responses, none lost, memory flat.

Clients send images of several formats and sizes, broken ones, malformed bodies and other types, with and without
heatmaps, and some hang up. Each response is compared with that of `vk.predict`, or with the status that it must
have. The memory of the service is read after a third of the requests and at the end.

    python benchmarks/serve_soak.py [REQUESTS] [CLIENTS]

A small network, so that HTTP, decoding and batching are what takes the time. Exits with 1 where something is wrong.
"""

import asyncio
import io
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
CLIENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 16
MOST_GROWTH = 0.05
HANG_UP = "hangs up"


@dataclass(frozen=True)
class Case:
    """A request, and what its answer must be."""

    body: bytes
    kind: str
    status: int | str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()


def draw_images() -> list[bytes]:
    """Readable files of several formats and sizes."""
    rng = np.random.default_rng(0)
    files = []
    for number, (kind, side) in enumerate((k, s) for k in ("JPEG", "PNG", "WEBP", "GIF") for s in (30, 64, 300)):
        noise = rng.integers(0, 255, (6 + number, 8, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(file, kind)
        files.append(file.getvalue())
    return files


def make_cases(model: Path) -> list[Case]:
    """Requests with their answers, by `vk.predict`."""
    import vggkit as vk

    images = draw_images()
    expected = vk.predict(model, images)
    cases = [
        Case(image, "image/x", 200, found.labels, found.probabilities)
        for image, found in zip(images, expected, strict=True)
    ]
    cases += [Case(images[0], "image/x", HANG_UP)]
    cases += [Case(image[: len(image) // 3], "image/x", 422) for image in images[:5]]
    cases += [Case(b"no image", "image/x", 422), Case(b"", "image/x", 422), Case(b"{", "application/json", 400)]
    cases += [Case(b"x" * 99, "multipart/form-data; boundary=x", 400), Case(images[1], "text/plain", 415)]
    return cases


def make_model(file: Path) -> None:
    import vggkit as vk
    from vggkit.images.preprocessing import choose_preprocessing

    network = vk.configure("vgg11", head="pool", num_classes=5, blocks=((8,), (8,), (8,), (12,), (12,)))
    labels = [f"class {number}" for number in range(5)]
    vk.Classifier.create(network, labels=labels, preprocessing=choose_preprocessing(64), seed=0).save(file)


async def send_all(port: int, cases: list[Case], count: int, seed: int) -> Counter[str]:
    """Send so many requests; what was right and wrong with them."""
    found: Counter[str] = Counter()
    numbers = iter(range(count))
    drawn = random.Random(seed)

    async def client() -> None:
        connection = None
        for _ in numbers:
            case, explain = drawn.choice(cases), drawn.random() < 0.2
            reader, writer = connection or await asyncio.open_connection("127.0.0.1", port, limit=2**22)
            path = "/predict?explain=true" if explain else "/predict"
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {case.kind}\r\n"
            writer.write(f"{head}Content-Length: {len(case.body)}\r\n\r\n".encode() + case.body)
            if case.status == HANG_UP:
                await asyncio.sleep(drawn.random() * 0.01)
                writer.close()
                connection = None
                found["hung up"] += 1
                continue
            try:
                answer_head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                length = int(answer_head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                answer = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as problem:
                found[f"lost: {type(problem).__name__}"] += 1
                connection = None
                continue
            connection = reader, writer
            found[check(case, explain, answer_head, answer)] += 1
        if connection:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return found


def check(case: Case, explain: bool, head: bytes, answer: bytes) -> str:
    """`right …`, or what is wrong with an answer."""
    status = int(head.split()[1])
    if status != case.status:
        return f"wrong: {status} in place of {case.status}: {answer[:200].decode()}"
    values = json.loads(answer)
    if status != 200:
        return "right refusal" if values["message"] else "wrong: no message"
    [image] = values["predictions"]
    if tuple(image["labels"]) != case.labels or not np.allclose(
        image["probabilities"], case.probabilities, atol=1e-4
    ):
        return f"wrong prediction: {image}"
    return "right prediction" if bool(image["heatmap"]) == explain else "wrong: heat map"


def read_memory(process: int) -> int:
    """Bytes that a process has in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "small.safetensors"
        make_model(model)
        cases = make_cases(model)
        command = ["-m", "vggkit", "serve", str(model), "--port", "0", "--precision", "fp32"]
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        port = int(re.search(r":(\d+) ", process.stderr.readline()).group(1))
        try:
            started = time.perf_counter()
            found = asyncio.run(send_all(port, cases, COUNT // 3, seed=1))
            before = read_memory(process.pid)
            found += asyncio.run(send_all(port, cases, COUNT - COUNT // 3, seed=2))
            seconds, after = time.perf_counter() - started, read_memory(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait()
    growth = after / before - 1
    print(f"{sum(found.values()):,} requests, {CLIENTS} clients, {sum(found.values()) / seconds:.0f} a second")
    for what, count in found.most_common():
        print(f"  {count:,} {what}")
    print(f"memory: {before / 1e6:.0f} MB after a third, {after / 1e6:.0f} MB at the end ({growth:+.1%})")
    wrong = [what for what in found if not what.startswith(("right", "hung"))]
    return int(bool(wrong) or growth > MOST_GROWTH or status != 0)


if __name__ == "__main__":
    sys.exit(main())
