"""The downloader against a real host on 127.0.0.1 that does everything wrong."""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from local_hosts import Host, redirect, running, status, whole

from vggkit.errors import BadDownload, BadOutput
from vggkit.networks.publishing.downloads import Patience, check_digest, download

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(stall_seconds=0.4, first_wait_seconds=0.01, longest_wait_seconds=0.02)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def host():
    with running(Host()) as host:
        yield host


def bring(host, folder, *answers, digest=DIGEST[:8], patience=QUICK, **options):
    if answers:
        host.answers["/f.pth"] = list(answers)
    path = folder / "f.pth"
    found = download(
        f"{host.address}/f.pth", path, digest_prefix=digest, at_most_bytes=1_000_000, patience=patience, **options
    )
    assert path.read_bytes() == CONTENT
    assert found == DIGEST
    assert sorted(p.name for p in folder.iterdir()) == ["f.pth"]  # no part, no note, no lock


def fail(host, folder, *answers, left=(), **options):
    with pytest.raises((BadDownload, BadOutput)) as caught:
        bring(host, folder, *answers, **options)
    assert sorted(p.name for p in folder.iterdir()) == sorted(left)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PARTS = ("f.pth.part", "f.pth.part.json")


def test_a_file_comes_whole_and_reports_its_progress(host, tmp_path):
    seen = []
    bring(host, tmp_path, whole(CONTENT), on_progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    bring(host, tmp_path)  # it is there
    assert len(host.requests) == 1


def test_it_breaks_off_and_goes_on_from_there(host, tmp_path):
    bring(host, tmp_path, whole(CONTENT, break_after=100_000), whole(CONTENT, break_after=90_000), whole(CONTENT))
    assert host.ranges() == [None, "bytes=100000-", "bytes=190000-"]
    assert [headers.get("If-Range") for *_, headers in host.requests] == [None, '"one"', '"one"']


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(host, tmp_path):
    said = fail(host, tmp_path, whole(CONTENT, break_after=100_000), status(503), left=PARTS)
    assert "answered 503" in said
    assert "100,000 bytes are kept" in said
    assert len(host.requests) == QUICK.attempts  # it counts from the break
    bring(host, tmp_path, whole(CONTENT))
    assert host.ranges()[-1] == "bytes=100000-"


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_host_without_parts_starts_over(host, tmp_path, etag):
    bring(host, tmp_path, whole(CONTENT, break_after=100_000, etag=etag), whole(CONTENT, ranges=False, etag=etag))
    assert host.ranges() == [None, "bytes=100000-"]


def test_without_any_etag_the_digest_guards_the_pieces(host, tmp_path):
    bring(host, tmp_path, whole(CONTENT, break_after=100_000, etag=None), whole(CONTENT, etag=None))
    assert host.ranges() == [None, "bytes=100000-"]
    (tmp_path / "f.pth").unlink()
    other = bytes(200_000) + CONTENT[200_000:]
    bring(host, tmp_path, whole(other, break_after=100_000, etag=None), whole(CONTENT, etag=None))


def test_a_changed_etag_starts_over(host, tmp_path):
    other = bytes(len(CONTENT))
    bring(host, tmp_path, whole(other, break_after=100_000, etag='"old"'), whole(CONTENT))
    assert host.ranges() == [None, "bytes=100000-"]  # If-Range: the host sends it whole
    (tmp_path / "f.pth").unlink()

    def ignores_if_range(request):
        request.headers.replace_header("If-Range", '"new"')
        whole(CONTENT, etag='"new"')(request)

    bring(host, tmp_path, whole(other, break_after=100_000, etag='"old"'), ignores_if_range, whole(CONTENT))
    assert host.ranges()[2:] == [None, "bytes=100000-", None]


def test_a_length_that_is_too_long_is_noticed(host, tmp_path):
    said = fail(host, tmp_path, whole(CONTENT, lie=5000), left=PARTS)
    assert "416" in said or "ended after 300,000 of 305,000" in said


def test_a_length_that_is_too_short_is_noticed(host, tmp_path):
    said = fail(host, tmp_path, whole(CONTENT, lie=-5000))
    assert "295,000 bytes came whose SHA-256 begins" in said
    assert DIGEST[:8] in said


def test_a_length_beyond_the_published_size_is_refused(host, tmp_path):
    assert "expected 1,000,000 at most" in fail(host, tmp_path, whole(CONTENT, lie=10**12))

    def endless(request):
        request.send_response(200)
        request.end_headers()
        for _ in range(40):
            request.wfile.write(bytes(100_000))

    assert "sends more than" in fail(host, tmp_path, endless)


def test_wrong_bytes_are_thrown_away(host, tmp_path):
    said = fail(host, tmp_path, whole(CONTENT[::-1]))
    assert "thrown away" in said
    assert len(host.requests) == 1


def test_a_file_without_a_length_and_in_chunks(host, tmp_path):
    def chunked(request, *, end=b"0\r\n\r\n"):
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n" + end)

    bring(host, tmp_path, lambda request: chunked(request, end=b""), chunked)
    (tmp_path / "f.pth").unlink()
    assert "in a row" in fail(host, tmp_path, lambda request: chunked(request, end=b"zz\r\n"), left=PARTS)


@pytest.mark.parametrize(
    ("code", "said"), [(403, "403"), (404, "is the address right"), (401, "401"), (410, "410"), (451, "451")]
)
def test_a_refusal_is_not_asked_again(host, tmp_path, code, said):
    assert said in fail(host, tmp_path, status(code))
    assert len(host.requests) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_passing_fault_is_asked_again(host, tmp_path, code):
    bring(host, tmp_path, status(code, {"Retry-After": "7000"}), whole(CONTENT))
    assert len(host.requests) == 2


def test_a_lasting_fault_ends(host, tmp_path):
    assert "3 times in a row" in fail(host, tmp_path, status(500))
    assert len(host.requests) == QUICK.first_attempts


@pytest.mark.parametrize("code", [204, 206])
def test_a_success_that_is_no_file(host, tmp_path, code):
    assert fail(host, tmp_path, status(code))


def test_a_web_page_is_not_the_file(host, tmp_path):
    assert "web page" in fail(host, tmp_path, whole(b"<html>log in</html>", kind="text/html; charset=utf-8"))


def test_a_stall_is_left_and_gone_on_from(host, tmp_path):
    bring(host, tmp_path, whole(CONTENT, stall_after=120_000), whole(CONTENT))
    assert host.ranges() == [None, "bytes=120000-"]


def test_a_host_that_says_nothing(host, tmp_path):
    said = fail(host, tmp_path, lambda request: request.server.closing.wait(3))
    assert "did not answer for 0.4 s" in said


def test_dripping_ends_too(host, tmp_path):
    patience = Patience(stall_seconds=1, total_seconds=0.3)
    said = fail(host, tmp_path, whole(CONTENT, drip_seconds=0.05), patience=patience, left=PARTS)
    assert "took over 0.3 s" in said


def test_redirects_are_followed_five_times(host, tmp_path):
    for at in range(5):
        host.answers[f"/{at}"] = [redirect(f"/{at + 1}" if at < 4 else "/there")]
    host.answers["/there"] = [whole(CONTENT, break_after=100_000), whole(CONTENT)]
    bring(host, tmp_path, redirect("/1"))
    assert host.ranges()[-1] == "bytes=100000-"  # kept through the redirects
    (tmp_path / "f.pth").unlink()
    host.answers["/4"] = [redirect("/5")]
    host.answers["/5"] = [redirect("/6")]
    host.answers["/6"] = [redirect("/there")]
    assert "redirects are followed 5 times" in fail(host, tmp_path, redirect("/1"))
    assert "redirects" in fail(host, tmp_path, redirect("/f.pth"))  # a loop


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/f", "data:,x"])
def test_redirects_to_other_schemes_are_not_followed(host, tmp_path, to):
    assert re.search("not followed|not allowed", fail(host, tmp_path, redirect(to)))


def test_other_schemes_are_not_read(tmp_path):
    for address in ("file:///etc/hostname", "ftp://127.0.0.1/f", "nonsense"):
        with pytest.raises(BadDownload, match="http or https"):
            download(address, tmp_path / "f", digest_prefix="", at_most_bytes=10)


def test_nobody_there(tmp_path):
    with running(Host()) as gone:
        pass
    assert "cannot be reached" in fail(gone, tmp_path)


def test_a_file_of_that_name_that_is_another(host, tmp_path):
    (tmp_path / "f.pth").write_bytes(b"mine")
    assert "delete it" in fail(host, tmp_path, left=["f.pth"])
    assert (tmp_path / "f.pth").read_bytes() == b"mine"
    assert check_digest(tmp_path / "f.pth", "") == hashlib.sha256(b"mine").hexdigest()


def test_a_damaged_part_is_found_out(host, tmp_path):
    fail(host, tmp_path, whole(CONTENT, break_after=100_000), status(404), left=PARTS)
    part = tmp_path / "f.pth.part"
    part.write_bytes(bytes(1000) + part.read_bytes()[1000:])
    bring(host, tmp_path, whole(CONTENT))
    assert host.ranges()[-2:] == ["bytes=100000-", None]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"address": "http://other/f.pth"}', '{"validator": {}}'])
def test_a_part_without_its_note_is_not_trusted(host, tmp_path, note):
    fail(host, tmp_path, whole(CONTENT, break_after=100_000), status(404), left=PARTS)
    (tmp_path / "f.pth.part.json").write_text(note)
    bring(host, tmp_path, whole(CONTENT))
    assert host.ranges()[-1] is None


def test_a_part_that_was_whole_needs_no_host(host, tmp_path):
    fail(host, tmp_path, whole(CONTENT, break_after=100_000), status(404), left=PARTS)
    (tmp_path / "f.pth.part").write_bytes(CONTENT)
    host.requests.clear()
    bring(host, tmp_path)
    assert host.requests == []


def test_places_that_cannot_be_written_to(host, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    host.answers["/f.pth"] = [whole(CONTENT)]
    with pytest.raises(BadOutput, match="cannot be written"):
        download(
            f"{host.address}/f.pth", tmp_path / "file" / "f", digest_prefix="", at_most_bytes=10**6, patience=QUICK
        )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(BadOutput, match="its disk has 0 MB left"):
        download(f"{host.address}/f.pth", tmp_path / "f", digest_prefix="", at_most_bytes=10**6, patience=QUICK)
    assert host.requests[1:] == []  # a full disk is not asked again


CODE = """
import sys
from vggkit.networks.publishing.downloads import Patience, download
from vggkit.errors import VggkitError
try:
    patience = Patience(stall_seconds=5)
    download(sys.argv[1], sys.argv[2], digest_prefix=sys.argv[3], at_most_bytes=10**6, patience=patience)
except VggkitError as problem:
    sys.exit(f"{type(problem).__name__}: {problem}")
"""


def start(host, path, **options):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, f"{host.address}/f.pth", str(path), DIGEST[:8]],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_disk_that_fills_up(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start(host, tmp_path / "f.pth", preexec_fn=limit)
    _, said = process.communicate(timeout=30)
    assert said.startswith("BadOutput")
    assert "f.pth" in said
    assert not (tmp_path / "f.pth").exists()
    bring(host, tmp_path)  # room again: it goes on
    assert str(host.ranges()[-1]).startswith("bytes=")


def test_two_processes_at_once_bring_it_once(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT, drip_seconds=0.01)]
    processes = [start(host, tmp_path / "f.pth") for _ in range(2)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert host.ranges() == [None]
    bring(host, tmp_path)


def test_two_threads_at_once_bring_it_once(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT, drip_seconds=0.005)]
    seen = []
    options = {"digest_prefix": DIGEST[:8], "at_most_bytes": 10**6, "on_progress": lambda *at: seen.append(at)}
    address = f"{host.address}/f.pth"
    threads = [
        threading.Thread(target=download, args=(address, tmp_path / "f.pth"), kwargs=options) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert host.ranges() == [None]
    bring(host, tmp_path)


def test_killed_in_the_middle_it_goes_on(host, tmp_path):
    host.answers["/f.pth"] = [whole(CONTENT, drip_seconds=0.02), whole(CONTENT)]
    process = start(host, tmp_path / "f.pth")
    part = tmp_path / "f.pth.part"
    while not (part.exists() and part.stat().st_size > 20_000):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.communicate(timeout=30)
    size = part.stat().st_size
    assert 0 < size < len(CONTENT)
    assert json.loads((tmp_path / "f.pth.part.json").read_text())["validator"] == '"one"'
    assert not (tmp_path / "f.pth").exists()
    bring(host, tmp_path)
    assert host.ranges() == [None, f"bytes={size}-"]
