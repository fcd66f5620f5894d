"""Hosts on 127.0.0.1 that behave as real ones do, badly ones too; every one of them ends with its test."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Answer = Callable[[BaseHTTPRequestHandler], None]


class Host:
    """Serves by path. Each path has a list of answers, one a request; the last one stays."""

    def __init__(self, *, longest_seconds: float = 5.0) -> None:
        host = self
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.longest_seconds = longest_seconds

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = longest_seconds

            def do_GET(self) -> None:
                host.requests.append((self.command, self.path, dict(self.headers.items())))
                self.close_connection = True
                with suppress(BrokenPipeError, ConnectionResetError):
                    host.answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.server.closing = self.closing
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        listed = self.answers.get(urlsplit(request.path).path, [status(404)])
        (listed.pop(0) if len(listed) > 1 else listed[0])(request)

    def ranges(self) -> list[str | None]:
        """What each request asked for."""
        return [headers.get("Range") for _, _, headers in self.requests]


@contextmanager
def running(host: Host) -> Iterator[Host]:
    thread = threading.Thread(target=host.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.closing.set()
        host.server.shutdown()
        host.server.server_close()
        thread.join(5)


def send(
    request: BaseHTTPRequestHandler,
    code: int,
    headers: dict[str, str],
    body: bytes = b"",
    *,
    length: int | None = None,
) -> None:
    request.send_response(code)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.send_header("Connection", "close")
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> Answer:
    return lambda request: send(request, code, {"Content-Type": "text/plain", **(headers or {})}, body)


def whole(
    content: bytes,
    *,
    etag: str | None = '"one"',
    ranges: bool = True,
    break_after: int | None = None,
    stall_after: int | None = None,
    lie: int = 0,
    kind: str = "application/octet-stream",
    drip_seconds: float = 0.0,
) -> Answer:
    """The file, with Range and If-Range as the standard has them, or with what goes wrong.

    break_after, stall_after: bytes of the answer after which the connection ends or stands still.
    lie: added to the Content-Length.
    """

    def answer(request: BaseHTTPRequestHandler) -> None:
        headers = {"Content-Type": kind} | ({"ETag": etag} if etag else {})
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        code, body = 200, content
        if ranges and wanted and condition in (None, etag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return send(request, 416, {"Content-Range": f"bytes */{len(content)}"})
            code, body = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = break_after if break_after is not None else stall_after
        shown = body if cut is None else body[:cut]
        if drip_seconds:
            send(request, code, headers, b"", length=len(body) + lie)
            for at in range(0, len(shown), 4096):
                request.wfile.write(shown[at : at + 4096])
                time.sleep(drip_seconds)
        else:
            send(request, code, headers, shown[: max(0, len(body) + lie)], length=len(body) + lie)
        if stall_after is not None:
            request.wfile.flush()
            request.server.closing.wait(5)
        return None

    return answer


def redirect(to: str, code: int = 302) -> Answer:
    return status(code, {"Location": to})


class Hub(Host):
    """The handful of routes of a Hugging Face hub that vggkit needs; files in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[dict[str, Any]] = []
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] | None = None
        """Who may write; None: everybody."""

    def commit_of(self, repository: str) -> str:
        names = sorted(self.repositories[repository].items())
        return hashlib.sha1(repr([(n, hashlib.sha1(b).hexdigest()) for n, b in names]).encode()).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        if path in self.answers:
            return super().answer(request)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.command == "PUT" and path.startswith("/lfs/"):
            self.large[path.removeprefix("/lfs/")] = body
            return send(request, 200, {})
        if "/resolve/" in path:
            return self.resolve(request, path)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return self.say(request, 401, {"error": "Invalid username or password."})
        return self.write(request, path, body)

    def say(self, request: BaseHTTPRequestHandler, code: int, value: object, **headers: str) -> None:
        send(request, code, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())

    def missing(self, request: BaseHTTPRequestHandler, what: str) -> None:
        self.say(request, 404, {"error": "not found"}, **{"X-Error-Code": what})

    def resolve(self, request: BaseHTTPRequestHandler, path: str) -> None:
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in self.repositories:
            return self.missing(request, "RepoNotFound")
        commit = self.commit_of(repository)
        if revision not in ("main", commit):
            return self.missing(request, "RevisionNotFound")
        content = self.repositories[repository].get(name)
        if content is None:
            return self.missing(request, "EntryNotFound")
        sha = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        return send(request, 200, {**headers, "ETag": f'"{sha}"'}, content)

    def write(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return self.say(request, 409, {"error": "exists", "url": f"{self.address}/{name}"})
            self.repositories[name] = {}
            return self.say(request, 200, {"url": f"{self.address}/{name}"})
        if path == "/api/validate-yaml":
            return self.say(request, 200, {"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.address}/lfs/{asked['oid']}"}}}
                for asked in json.loads(body)["objects"]
            ]
            return self.say(request, 200, {"transfer": "basic", "objects": objects})
        _, _, rest = path.partition("/api/models/")
        repository, _, verb = rest.partition("/preupload/")
        if verb:
            listed = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith("safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            return self.say(request, 200, {"files": [{**file, "shouldIgnore": False} for file in listed]})
        repository, _, verb = rest.partition("/commit/")
        if verb:
            return self.commit(request, repository, [json.loads(line) for line in body.splitlines()])
        return self.missing(request, "RepoNotFound")

    def commit(self, request: BaseHTTPRequestHandler, repository: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.repositories[repository][value["path"]] = self.large[value["oid"]]
        self.commits.append({"repository": repository, "lines": lines})
        oid = self.commit_of(repository)
        self.say(request, 200, {"commitUrl": f"{self.address}/{repository}/commit/{oid}", "commitOid": oid})


@contextmanager
def start_store(patch: pytest.MonkeyPatch, bucket: str) -> Iterator[str]:
    """The address of an S3-compatible store, moto's, with an empty bucket; its credentials in the environment."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        demand_reached(address, process)
        urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
        yield address
    finally:
        process.terminate()
        process.wait(10)


def demand_reached(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the store answers."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/moto-api/data.json", timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("moto's server did not start")
