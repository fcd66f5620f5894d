"""Whatever is sent: a 4xx with a reason, never a 500, and the service goes on."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from .conftest import encode


def send(service, content: bytes, kind: str, path: str = "/predict"):
    return service.client.post(path, content=content, headers={"content-type": kind})


def demand_refusal(answer, *statuses: int) -> dict:
    found = answer.json()
    assert answer.status_code in statuses, answer.text[:300]
    assert found["message"]
    assert found["error"]
    return found


@pytest.mark.parametrize("step", [pytest.param(16, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_odd_images(service, shared, step):
    """Each is classified, or refused with a reason."""
    files = sorted(path for path in (shared / "odd_images").rglob("*") if path.is_file())[::step]
    assert files
    statuses = set()
    for file in files:
        answer = service.client.post("/predict", files={"files": (file.name, file.read_bytes())})
        statuses.add(answer.status_code)
        if answer.status_code == 200:
            [found] = answer.json()["predictions"]
            assert (found["problem"], len(found["labels"])) == (None, 3)
        else:
            found = demand_refusal(answer, 422)
            assert found["message"].startswith(file.name)
    assert 200 in statuses


def make_bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make_text_bomb() -> bytes:
    """A PNG whose compressed text is a thousand times as long."""
    file = io.BytesIO()
    info = __import__("PIL.PngImagePlugin").PngImagePlugin.PngInfo()
    info.add_text("Comment", "0" * 60_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("many pixels", make_bomb(60_000, 60_000)),
        ("more than a PNG may have", make_bomb(2**31 - 1, 2**31 - 1)),
        ("below the limit, and broken", make_bomb(7_000, 7_000)),
        ("text", make_text_bomb()),
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://localhost/x"/></svg>'),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage"),
        ("html", b"<html>"),
        ("address", b"http://localhost/cat.png"),
        ("path", b"/etc/passwd"),
        ("zip", b"PK\x03\x04" + b"\0" * 50),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bombs_and_what_is_no_image(service, name, data):
    demand_refusal(send(service, data, "image/png"), 422, *([200] if name == "text" else []))


def test_an_animation_and_extreme_sides_are_computed(service):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")] * 40
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    sides = [encode(np.zeros((*size, 3), np.uint8)) for size in ((1, 30_000), (30_000, 1), (1, 1))]
    for data in (file.getvalue(), *sides):
        answer = send(service, data, "image/png")
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/", "*/*", "é"])
def test_other_types(service, kind, images):
    headers = {"content-type": kind.encode()} if kind else {}
    answer = service.client.post("/predict", content=images["a.png"], headers=headers)
    demand_refusal(answer, 415)


BOUNDARY = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("multipart/form-data", b"--x--", 400),
        ("multipart/form-data; boundary=" + "x" * 300, b"", 400),
        (BOUNDARY, b"", 400),
        (BOUNDARY, b"no multipart", 400),
        (BOUNDARY, b"--x\r\n", 400),
        (BOUNDARY, b"--x--\r\n", 422),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\ncut', 400),
        (BOUNDARY, b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n', 422),
        (BOUNDARY, b"--x\r\n\r\nno name\r\n--x--\r\n", 422),
        (BOUNDARY, b"--x\r\n" + b"A: b\r\n" * 500 + b"\r\n\r\n--x--\r\n", 400),
        (BOUNDARY, b"--x\r\nA: " + b"b" * 50_000 + b"\r\n\r\n\r\n--x--\r\n", 400),
        (
            BOUNDARY,
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="\xff\xfe"\r\n\r\nx\r\n--x--\r\n',
            422,
        ),
        (
            BOUNDARY,
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n' * 10_000 + b"--x--",
            413,
        ),
        ("application/json", b"", 400),
        ("application/json", b"{", 400),
        ("application/json", b"\xff\xfe{}", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"null", 422),
        ("application/json", b'{"images": []}', 422),
        ("application/json", b'{"images": [{"data": 3}]}', 422),
        ("application/json", b'{"images": [{"data": "not base64!"}]}', 422),
        ("application/json", b'{"images": [{"data": "data:image/png;base64,eA=="}]}', 422),
        ("application/json", b'{"images": [{"data": "http://localhost/cat.png"}]}', 422),
        ("application/json", b'{"images": [{"url": "http://localhost/cat.png"}]}', 422),
        ("application/json", b'{"images": [{"data": "eA==", "name": "' + b"n" * 300 + b'"}]}', 422),
        ("application/json", b'{"images": [{"data": ""}]}', 422),
        ("application/json", b'{"images": [{"data": "eA==", "name": "\\ud800"}]}', 400),
        ("image/png", b"", 422),
    ],
)
def test_bodies(service, kind, body, status):
    demand_refusal(send(service, body, kind), status)


def test_names_are_shown_as_they_are_and_lead_nowhere(service):
    for name in ("../../etc/passwd", "..\\..\\x", "<script>", "a\u202egpj.exe", "\N{CAT}.jpg"):
        body = json.dumps({"images": [{"data": base64.b64encode(b"x").decode(), "name": name}]}).encode()
        found = demand_refusal(send(service, body, "application/json"), 422)
        assert found["images"][0]["name"] in name
        assert "/" not in found["images"][0]["name"]


@pytest.mark.parametrize(
    "query",
    ["top=0", "top=1001", "top=x", "top=", "top=3&top=", "threshold=2", "threshold=nan", "explain=2", "other=1"],
)
def test_options(service, images, query):
    demand_refusal(send(service, images["a.png"], "image/png", f"/predict?{query}"), 422)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "GET", "BREW"])
def test_methods(service, method):
    answer = service.client.request(method, "/predict")
    demand_refusal(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("count", [pytest.param(6, id="few"), pytest.param(80, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name)
def test_what_the_description_promises_holds_for_drawn_requests(service, mode, count):
    """Schemathesis draws requests from the description, right ones and wrong ones."""
    schema = schemathesis.openapi.from_dict(service.client.get("/openapi.json").json())
    schema.config.update(base_url=str(service.client.base_url))
    seen = set()

    def check(case):
        answer = case.call()
        seen.add((case.operation.label, answer.status_code))
        # Drawn bytes are no images, which the description cannot say: so what is refused is not held against it.
        case.validate_response(answer, excluded_checks=[checks.positive_data_acceptance])

    for found in schema.get_all_operations():
        operation = found.ok()
        drawn = settings(
            max_examples=count, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        try:
            drawn(given(case=operation.as_strategy(generation_mode=mode))(check))()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE  # nothing about it can be wrong
    print(sorted(seen))
    if mode is GenerationMode.POSITIVE:
        assert {status for _, status in seen} <= {200, 400, 404, 413, 422}
    assert service.client.get("/ready").status_code == 200
