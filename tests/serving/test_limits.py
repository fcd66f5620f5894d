"""Each limit of a request: beyond it an answer with a reason, and the service goes on."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import vggkit as vk
from vggkit.serving.limits import ServeLimits
from vggkit.serving.loaded_model import LoadedModel

from .conftest import Running, run_service

LIMITS = ServeLimits(
    max_request_bytes=40_000,
    max_buffer_bytes=80_000,
    max_images=3,
    max_image_pixels=5_000,
    max_queue=4,
    timeout_seconds=20.0,
    upload_seconds=0.6,
    header_seconds=0.4,
    max_header_bytes=2_000,
    max_connections=6,
)


@pytest.fixture(scope="module")
def strict(model_file, tmp_path_factory) -> Running:
    log = tmp_path_factory.mktemp("strict") / "log"
    with run_service({"stripes": model_file}, log, limits=LIMITS) as running:
        yield running


class Gate(threading.Event):
    """While it is not set, nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for = threading.Event()

    def pass_through(self) -> None:
        self.is_waited_for.set()
        self.wait(20)


def hold(monkeypatch) -> Gate:
    event, compute = Gate(), LoadedModel.compute

    def wait_and_compute(self, inputs, wanted):
        event.pass_through()
        return compute(self, inputs, wanted)

    monkeypatch.setattr(LoadedModel, "compute", wait_and_compute)
    return event


@pytest.fixture
def held(strict, monkeypatch):
    event = hold(monkeypatch)
    yield event
    event.set()


def wait_until(condition) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def read_metric(service, name: str) -> float:
    lines = service.client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def post(service, *data, **options):
    return service.client.post("/predict", files=[("files", ("a.png", each)) for each in data], **options)


def refuse(answer: httpx.Response, status: int, error: str) -> str:
    found = answer.json()
    assert (answer.status_code, found["error"]) == (status, error), answer.text
    assert found["request_id"] == answer.headers["x-request-id"]
    return found["message"]


def read_answer(connection) -> tuple[int, dict]:
    """Status and JSON of an answer, until the service closes the connection."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_bytes(strict, images):
    message = refuse(post(strict, b"x" * 50_000), 413, "too_large")
    assert "40,000 bytes (--max-request-bytes)" in message

    def stream():
        for _ in range(60):
            yield b"x" * 1000

    answer = strict.client.post("/predict", content=stream(), headers={"content-type": "image/png"})
    refuse(answer, 413, "too_large")
    assert post(strict, images["a.png"]).status_code == 200


def test_images_of_a_request(strict, images):
    assert post(strict, *[images["a.png"]] * 3).status_code == 200
    assert "3 images (--max-images)" in refuse(post(strict, *[images["a.png"]] * 4), 413, "too_many_images")
    body = {"images": [{"data": "eA=="}] * 4}
    refuse(strict.client.post("/predict", json=body), 413, "too_many_images")
    tiny = b'{"images": [' + b"{}," * 10_000 + b"{}]}"
    refuse(
        strict.client.post("/predict", content=tiny, headers={"content-type": "application/json"}),
        413,
        "too_many_images",
    )


def test_pixels(strict, images):
    message = refuse(post(strict, images["b.jpg"]), 422, "bad_image")
    assert message == "a.png: has 98×90 pixels; images of up to 5,000 are read (--max-image-pixels)"


def test_queue(strict, images, held):
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(post, strict, *[images["a.png"]] * 2) for _ in range(2)]
        while strict.client.get("/metrics").text.count("vggkit_queue_images 4.0") == 0:
            time.sleep(0.01)
        busy = post(strict, images["a.png"])
        assert "--max-queue" in refuse(busy, 503, "overloaded")
        assert busy.headers["retry-after"] == "1"
        assert strict.client.get("/ready").status_code == 200
        held.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
    assert post(strict, images["a.png"]).status_code == 200


def test_time(model_file, images, monkeypatch, tmp_path):
    limits = ServeLimits(timeout_seconds=0.4)
    with run_service({"stripes": model_file}, tmp_path / "log", limits=limits) as service:
        held = hold(monkeypatch)
        assert "0.4 s (--timeout-seconds)" in refuse(post(service, images["a.png"]), 504, "timeout")
        held.set()
        while post(service, images["a.png"]).status_code == 504:  # a busy machine may take that long
            time.sleep(0.01)


def test_a_client_that_hangs_up_is_not_computed_for(strict, images, held):
    body = images["a.png"]
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    computed = read_metric(strict, "vggkit_batch_images_sum")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, strict, body)
        wait_until(held.is_waited_for.is_set)  # the engine is busy with the first image
        with strict.connect() as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: read_metric(strict, "vggkit_queue_images") == 2)
        wait_until(lambda: any(line.get("status") == 499 for line in strict.read_log()))
        held.set()
        assert first.result().status_code == 200
    wait_until(lambda: read_metric(strict, "vggkit_queue_images") == 0)
    assert read_metric(strict, "vggkit_batch_images_sum") == computed + 1
    assert post(strict, images["a.png"]).status_code == 200


def test_headers(strict):
    answer = strict.client.get("/ready", headers={"x-long": "y" * 3_000})
    assert "--max-header-bytes" in refuse(answer, 431, "too_large")
    refuse(strict.client.get("/ready?" + "y" * 3_000), 431, "too_large")
    with strict.connect() as connection:
        connection.sendall(b"GET /ready HTTP/1.1\r\n")
        for _ in range(50):
            connection.sendall(b"x-more: " + b"y" * 100 + b"\r\n")
            time.sleep(0.001)
        assert read_answer(connection)[0] == 431
    with strict.connect() as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        status, answer = read_answer(connection)
        assert (status, answer["error"]) == (400, "bad_request")


def send_slowly(service, head: bytes, body: bytes) -> tuple[int, dict]:
    with service.connect() as connection:
        connection.sendall(head)
        stop = threading.Event()

        def drip():
            for number in range(len(body)):
                if stop.wait(0.05):
                    return
                try:
                    connection.sendall(body[number : number + 1])
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            return read_answer(connection)
        finally:
            stop.set()
            thread.join()


def test_slow_uploads(strict):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\n"
    status, answer = send_slowly(strict, head, b"x" * 1000)
    assert (status, answer["error"]) == (408, "too_slow")
    assert "--upload-seconds" in answer["message"]
    status, answer = send_slowly(strict, b"", head)
    assert (status, answer["error"]) == (408, "too_slow")
    assert "--header-seconds" in answer["message"]
    assert strict.client.get("/ready").status_code == 200


def test_connections(strict):
    strict.client.get("/ready")
    others = [strict.connect() for _ in range(5)]
    with httpx.Client(base_url=strict.client.base_url) as late:
        answer = late.get("/ready")
        assert "6 connections are open (--max-connections)" in refuse(answer, 503, "overloaded")
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        assert strict.client.get("/ready").status_code == 200
        for each in others:
            each.close()
        while late.get("/ready").status_code != 200:
            time.sleep(0.01)


def test_memory_of_bodies(strict):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 39000\r\n\r\n"
    refused = None
    while refused is None:  # until the slow ones are in memory before they are too late
        slow = [strict.connect() for _ in range(2)]
        for each in slow:
            each.sendall(head + b"x" * 38_900)
        found = [post(strict, b"x" * 20_000) for _ in range(5)]
        refused = next((each for each in found if each.status_code == 503), None)
        for each in slow:
            each.close()
    assert "--max-buffer-bytes" in refuse(refused, 503, "overloaded")
    while post(strict, b"x" * 20_000).status_code == 503:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_images": 0}, "max_images must be above 0; got 0"),
        ({"max_images": 9, "max_queue": 8}, "max_queue must be at least max_images"),
        ({"max_buffer_bytes": 2**20}, "max_buffer_bytes must be at least 2 times max_request_bytes"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0"),
    ],
)
def test_limits_that_cannot_be(changes, message):
    with pytest.raises(vk.BadConfiguration, match=message):
        ServeLimits(**changes)
