"""One file through torch.hub, from a host on 127.0.0.1 that does what real ones do wrong; and whose turn it is."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch.hub

from local_hosts import Host, redirect, running, status, whole
from vggkit.errors import BadDownload, BadOutput
from vggkit.files import take_turn
from vggkit.weights import downloads
from vggkit.weights.downloads import check_digest, download

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.5)


@pytest.fixture
def host():
    with running(Host()) as host:
        yield host


def bring(host, folder, answer, *, progress=False):
    host.answers["/f.pth"] = [answer]
    return download(f"{host.address}/f.pth", folder / "f.pth", digest_prefix=DIGEST[:8], progress=progress)


def fail(host, folder, answer):
    with pytest.raises(BadDownload) as caught:
        bring(host, folder, answer)
    assert list(folder.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_comes_whole(host, tmp_path, capsys):
    assert bring(host, tmp_path, whole(CONTENT)) == DIGEST
    assert (tmp_path / "f.pth").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]
    assert capsys.readouterr() == ("", "")


def test_what_is_fetched_is_told_on_standard_error(host, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, progress, **__: asked.append(progress))
    (tmp_path / "f.pth").write_bytes(CONTENT)
    bring(host, tmp_path, whole(CONTENT), progress=True)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fetching {host.address}/f.pth to {tmp_path / 'f.pth'}\n")
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=lambda _: None, isatty=lambda: True))
    bring(host, tmp_path, whole(CONTENT), progress=True)
    bring(host, tmp_path, whole(CONTENT), progress=False)
    assert asked == [False, True, False]  # the bar is for a terminal, and for those who want it


def test_redirects_are_followed(host, tmp_path):
    host.answers["/there"] = [whole(CONTENT)]
    assert bring(host, tmp_path, redirect("/there")) == DIGEST


@pytest.mark.parametrize(
    ("code", "said"),
    [(404, "is the address right"), (403, "refuses this machine"), (500, "try again later"), (429, "later")],
)
def test_a_refusal_is_told(host, tmp_path, code, said):
    assert f"responded with {code}" in fail(host, tmp_path, status(code))
    assert said in fail(host, tmp_path, status(code))


@pytest.mark.parametrize(
    "answer",
    [
        whole(CONTENT[::-1]),
        whole(b"<html>log in</html>", kind="text/html"),
        whole(CONTENT, break_after=100_000),
        whole(CONTENT, lie=-5000),
        status(204),
    ],
    ids=["other bytes", "a web page", "broken off", "cut short", "nothing"],
)
def test_what_is_not_the_file_is_thrown_away(host, tmp_path, answer):
    said = fail(host, tmp_path, answer)
    assert f"not the published file, whose SHA-256 begins {DIGEST[:8]}" in said
    assert "deleted" in said


def test_a_host_that_stands_still_is_left(host, tmp_path):
    assert "timed out" in fail(host, tmp_path, lambda request: request.server.closing.wait(3))
    assert "timed out" in fail(host, tmp_path, whole(CONTENT, stall_after=120_000))


def test_a_host_that_speaks_another_language(host, tmp_path):
    assert "gives no file" in fail(host, tmp_path, lambda request: request.wfile.write(b"hello\r\n\r\n"))


def test_nobody_there(tmp_path):
    with running(Host()) as gone:
        pass
    assert "cannot be reached" in fail(gone, tmp_path, status(200))


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/f", "nonsense"])
def test_other_schemes_are_not_read(tmp_path, address):
    with pytest.raises(BadDownload, match="http or https"):
        download(address, tmp_path / "f", digest_prefix="", progress=False)


def test_a_place_that_cannot_be_written_to(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT)]
    with pytest.raises(BadOutput, match="cannot be written"):
        download(f"{host.address}/f.pth", tmp_path / "none" / "f", digest_prefix="", progress=False)


def test_a_file_of_that_name_that_is_another(tmp_path):
    (tmp_path / "f.pth").write_bytes(b"mine")
    with pytest.raises(BadDownload, match="delete it and run again"):
        check_digest(tmp_path / "f.pth", DIGEST[:8])
    assert check_digest(tmp_path / "f.pth", "") == hashlib.sha256(b"mine").hexdigest()


CODE = """
import sys
from pathlib import Path
from vggkit.errors import VggkitError
from vggkit.weights.downloads import download
try:
    download(sys.argv[1], Path(sys.argv[2]), digest_prefix=sys.argv[3], progress=False)
except VggkitError as problem:
    sys.exit(f"{type(problem).__name__}: {problem}")
"""


def start(host, path, **options):
    command = [sys.executable, "-c", CODE, f"{host.address}/f.pth", str(path), DIGEST[:8]]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
@pytest.mark.slow
def test_a_disk_that_fills_up(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT)]

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    _, said = start(host, tmp_path / "f.pth", preexec_fn=limit).communicate(timeout=60)
    assert said.startswith(f"BadOutput: {tmp_path / 'f.pth'}: cannot be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_killed_process_left_goes(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT, drip_seconds=0.05)]
    process = start(host, tmp_path / "f.pth")
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=30)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    bring(host, tmp_path, whole(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]


def test_turns_are_taken(tmp_path):
    """However many want it, one at a time holds it, and the lock's file goes with the last."""
    inside, most, waited = [], [], []

    def work():
        with take_turn(tmp_path / "new" / "lock", 60, meanwhile=lambda: waited.append(1)):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 5
    assert waited
    assert list((tmp_path / "new").iterdir()) == []


def test_a_turn_that_does_not_come(tmp_path):
    def refuse():
        raise BadOutput("somebody is at it")

    def wait(meanwhile, problems):
        try:
            with take_turn(tmp_path / "lock", 0.1, meanwhile=meanwhile):
                pass
        except BadOutput as problem:
            problems.append(str(problem))

    problems = []
    with take_turn(tmp_path / "lock", 60, meanwhile=refuse):
        for meanwhile in (refuse, lambda: None):
            thread = threading.Thread(target=wait, args=(meanwhile, problems))
            thread.start()
            thread.join(60)
    assert problems[0] == "somebody is at it"
    assert "another process has held it for 0.1 s" in problems[1]
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadOutput, match="cannot be written"),
        take_turn(tmp_path / "file" / "lock", 1, meanwhile=refuse),
    ):
        pass
