"""Ask a host for a file from some byte on; every answer that is not the file becomes an error for people.

The standard library's urllib, with the environment's proxies; http and https and nothing else.
"""

import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Final, NoReturn
from urllib.parse import urlsplit

from vggkit import __version__
from vggkit.errors import BadDownload

REDIRECTS: Final = 5
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which asking again may help."""


class Broken(Exception):
    """An attempt failed, and another may succeed; it never leaves `download`."""

    def __init__(self, reason: str, *, wait_seconds: float = 0.0, start_over: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """How long the host asks to be left alone."""
        self.start_over = start_over
        """The bytes that are there are of no use any more."""


def ask(address: str, *, start: int, validator: str | None, stall_seconds: float) -> HTTPResponse:
    """The host's answer with the file's bytes, open for reading, its status 200 or 206.

    Args:
        address: http or https.
        start: First byte that is wanted.
        validator: ETag or date of the file that the bytes before are of; a file changed since then comes whole.
        stall_seconds: Longest wait for the connection and for each byte.

    Raises Broken where asking again may help, else BadDownload.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise BadDownload(f"{address}: is not an http or https address; nothing else is downloaded from")
    headers = {"User-Agent": f"vggkit/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 (checked above)
    try:
        response: HTTPResponse = _opener().open(request, timeout=stall_seconds)
    except urllib.error.HTTPError as answer:
        answer.close()
        _refuse(address, answer.code, str(answer.reason), answer.headers)
    except urllib.error.URLError as problem:
        if isinstance(problem.reason, ssl.SSLCertVerificationError):
            raise BadDownload(
                f"{address}: its certificate cannot be verified ({problem.reason.verify_message}); "
                "is a proxy in between? Then set SSL_CERT_FILE to the proxy's certificate"
            ) from problem
        raise Broken(f"cannot be reached ({problem.reason})") from problem
    except BadDownload:  # a redirect that is not followed
        raise
    except TimeoutError as problem:
        raise Broken(f"did not answer for {stall_seconds:g} s") from problem
    except (OSError, HTTPException) as problem:
        raise Broken(f"cannot be reached ({problem or type(problem).__name__})") from problem
    _demand_file(address, response)
    return response


def read_some(response: HTTPResponse, at_most_bytes: int, *, stall_seconds: float) -> bytes:
    """Bytes that have come, empty at the end; raises Broken, whatever the network does."""
    try:
        return response.read1(at_most_bytes)
    except TimeoutError as problem:
        raise Broken(f"no byte came for {stall_seconds:g} s") from problem
    except (OSError, HTTPException, ValueError) as problem:  # ValueError: a chunk's size that is no number
        raise Broken(f"the connection broke ({problem or type(problem).__name__})") from problem


def _demand_file(address: str, response: HTTPResponse) -> None:
    kind = response.headers.get_content_type()
    if kind == "text/html":
        response.close()
        raise BadDownload(
            f"{address}: a web page came in place of the file (Content-Type {kind}); "
            "is a proxy or a login page in between? Try from another network"
        )
    if response.status not in (200, 206):
        response.close()
        raise BadDownload(f"{address}: answered {response.status} {response.reason} in place of the file")


def _refuse(address: str, code: int, reason: str, headers: Mapping[str, str] | Message) -> NoReturn:
    """Raise for an answer that is an error."""
    said = f"answered {code} {' '.join(reason.split())}".strip()
    if code == 416:
        raise Broken(f"{said} to a request for the rest of it", start_over=True)
    if code in TRANSIENT:
        wait = str(headers.get("Retry-After", ""))
        raise Broken(said, wait_seconds=float(wait) if wait.isdecimal() else 0.0)
    if 300 <= code < 400:
        advice = f"redirects are followed {REDIRECTS} times, to http and https; look at the address in a browser"
    elif code in (404, 410):
        advice = "the file is not there; is the address right?"
    else:
        advice = "the host, or a proxy before it, refuses this machine; try from another network"
    raise BadDownload(f"{address}: {said}; {advice}")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS

    def redirect_request(  # noqa: PLR0917 (urllib's)
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # urllib would read this answer to its end, however long it is
        here, there = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if there not in ("http", "https") or (here, there) == ("https", "http"):
            raise BadDownload(f"{req.full_url}: redirects to {newurl}, which is not followed for safety's sake")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener without urllib's other handlers, which read local files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener
