"""Tokens, origins, names of hosts, headers, and paths that lead elsewhere."""

import pytest

import vggkit as vk
from vggkit.serving.options import read_token

from .conftest import run_service

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def closed(model_file, tmp_path_factory):
    log = tmp_path_factory.mktemp("closed") / "log"
    names = "example.org", "127.0.0.1"
    with run_service({"stripes": model_file}, log, token=TOKEN, allowed_hosts=names) as running:
        yield running


def test_a_token_is_demanded_of_everything_but_probes_and_what_every_service_has(closed, images):
    for path in ("/", "/health", "/ready", "/docs", "/docs.css", "/openapi.json"):
        assert closed.client.get(path).status_code == 200, path
    sent = {"content": images["a.png"], "headers": {"content-type": "image/png"}}
    for method, path, options in (
        ("POST", "/predict", sent),
        ("POST", "/embed", sent),
        ("GET", "/model", {}),
        ("GET", "/models", {}),
        ("GET", "/metrics", {}),
        ("GET", "/nothing", {}),
    ):
        refused = closed.client.request(method, path, **options)
        assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized"), path
        assert refused.headers["www-authenticate"] == "Bearer"
    for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer", "Bearer \xff"):
        headers = {"authorization": wrong.encode("latin-1")}
        assert closed.client.get("/model", headers=headers).status_code == 401, wrong
    for right in (f"Bearer {TOKEN}", f"bearer  {TOKEN}"):
        assert closed.client.get("/model", headers={"authorization": right}).status_code == 200
    assert TOKEN not in closed.log.read_text(encoding="utf-8")


def test_only_its_own_names_and_pages(closed, service):
    assert closed.client.get("/ready", headers={"host": "EXAMPLE.org:80"}).status_code == 200
    refused = closed.client.get("/ready", headers={"host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert service.client.get("/ready", headers={"host": "evil.example"}).status_code == 403
    assert service.client.get("/ready", headers={"host": "localhost:1"}).status_code == 200
    assert service.client.get("/ready", headers={"host": "[::1]:8000"}).status_code == 200
    own = f"http://127.0.0.1:{service.port}"
    assert service.client.get("/ready", headers={"origin": own}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert service.client.get("/ready", headers={"origin": origin}).status_code == 403
    preflight = service.client.options(
        "/predict", headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/docs", "/ready", "/nothing", "/predict"])
def test_every_answer_has_the_headers(service, path):
    headers = service.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/....//etc/passwd",
        "/index.html",
        "/page/index.html",
        "/__init__.py",
        "/app.py",
        "/%00",
        "/predict%00",
        "/predict/",
        "//predict",
        "/static/..\\..\\x",
        "/model/../metrics",
        "/" + "a" * 3000,
        "/%ff%fe",
    ],
)
def test_no_path_leads_to_a_file(service, path):
    with service.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 404 "), answer[:200]
    assert b"root:" not in answer


def test_where_a_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("VGGKIT_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("VGGKIT_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN[::-1]}\n")
    assert read_token(file) == TOKEN[::-1]
    for bad in ("short", "", "a b c d e f g h i j k l m", "ä" * 20):
        file.write_text(bad)
        with pytest.raises(vk.BadInput, match="at least 16 characters") as refused:
            read_token(file)
        assert bad not in str(refused.value) or not bad
    with pytest.raises(vk.BadInput, match="cannot be read"):
        read_token(tmp_path / "none")
