"""One file from an address by `torch.hub.download_url_to_file`: its digest checked, there whole or not at all.

torch is imported when something is downloaded, and not before.
"""

import errno
import hashlib
import socket
import sys
import urllib.error
from glob import escape
from http.client import HTTPException
from pathlib import Path
from typing import Final

from vggkit.errors import BadDownload, BadOutput

STALL_SECONDS: Final = 30.0
"""Longest wait for a connection, and for the next byte."""
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk says, and no network does."""


def download(address: str, path: Path, *, digest_prefix: str, progress: bool) -> str:
    """Bring the file at `address` to `path`; one process at a time.

    Args:
        address: http or https.
        path: Where it is to stand; its folder is there.
        digest_prefix: First hexadecimal digits of its SHA-256, as many as are known.
        progress: Tell on standard error what comes, in a terminal with torch.hub's bar.

    Returns the file's whole SHA-256. Raises BadDownload where the host does not give that file,
    and BadOutput where the place cannot be written to or the disk is full.
    """
    if not address.startswith(("http://", "https://")):
        raise BadDownload(f"{address}: is not an http or https address; nothing else is downloaded from")
    from torch.hub import download_url_to_file

    if progress:
        sys.stderr.write(f"fetching {address} to {path}\n")
    waiting = socket.getdefaulttimeout()
    _remove_partials(path)  # of a process that was killed
    try:
        socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub would wait for ever
        bar = progress and sys.stderr.isatty()
        download_url_to_file(address, str(path), hash_prefix=digest_prefix, progress=bar)
    except urllib.error.HTTPError as answer:
        with answer:
            raise BadDownload(f"{address}: {_explain_status(answer.code, str(answer.reason))}") from answer
    except urllib.error.URLError as problem:
        raise BadDownload(f"{address}: cannot be reached ({problem.reason}); is there a network?") from problem
    except RuntimeError as problem:  # the digest
        raise BadDownload(
            f"{address}: what came is not the published file, whose SHA-256 begins {digest_prefix} ({problem}); "
            "the connection broke off, or a web page of a proxy or a login came in its place. "
            "It was thrown away: try again, or from another network"
        ) from problem
    except OSError as problem:
        if problem.errno in FULL or problem.filename is not None:
            raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem
        raise BadDownload(f"{address}: the connection broke ({problem})") from problem
    except (HTTPException, ValueError) as problem:  # no HTTP; an address without a host
        said = " ".join(str(problem).split()) or type(problem).__name__
        raise BadDownload(f"{address}: gives no file ({said})") from problem
    finally:
        socket.setdefaulttimeout(waiting)
        _remove_partials(path)
    return hash_file(path)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: str | Path, digest_prefix: str) -> str:
    """SHA-256 of a file that must begin with `digest_prefix`; raises BadDownload."""
    found = hash_file(path)
    if not found.startswith(digest_prefix):
        raise BadDownload(
            f"{path}: its SHA-256 begins {found[:8]}, and that of the published file {digest_prefix}; "
            "it is broken or another file: delete it and run again"
        )
    return found


def _explain_status(code: int, reason: str) -> str:
    said = f"answered {code} {reason}".strip()
    if code in (404, 410):
        return f"{said}; the file is not there, is the address right?"
    if code == 429 or code >= 500:
        return f"{said}; try again later"
    return f"{said}; the host, or a proxy before it, refuses this machine: try from another network"


def _remove_partials(path: Path) -> None:
    """What torch.hub leaves where it is killed, or where the disk is full."""
    for partial in path.parent.glob(f"{escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)
