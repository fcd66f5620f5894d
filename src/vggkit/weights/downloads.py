"""Download of one file by `torch.hub.download_url_to_file`: its digest is checked, and it is complete or absent.

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
"""Error numbers of a disk, which no network raises."""


def download(address: str, path: Path, *, digest_prefix: str, progress: bool) -> str:
    """Download the file at `address` to `path`; one process at a time.

    Args:
        address: http or https.
        path: The file to write; its folder exists.
        digest_prefix: First hexadecimal digits of its SHA-256, as many as are known.
        progress: Report the download on standard error, in a terminal with torch.hub's bar.

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
        socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub has no timeout
        bar = progress and sys.stderr.isatty()
        download_url_to_file(address, str(path), hash_prefix=digest_prefix, progress=bar)
    except urllib.error.HTTPError as response:
        with response:
            raise BadDownload(f"{address}: {_explain_status(response.code, str(response.reason))}") from response
    except urllib.error.URLError as problem:
        raise BadDownload(f"{address}: cannot be reached ({problem.reason}); is there a network?") from problem
    except RuntimeError as problem:  # the digest
        raise BadDownload(
            f"{address}: what was received is not the published file, whose SHA-256 begins {digest_prefix} "
            f"({problem}); the connection broke off, or a proxy or a login sent a web page in its place. "
            "It was deleted: try again, or from another network"
        ) from problem
    except OSError as problem:
        if problem.errno in FULL or problem.filename is not None:
            raise BadOutput(f"{path}: cannot be written ({problem.strerror or problem})") from problem
        raise BadDownload(f"{address}: the connection broke ({problem})") from problem
    except (HTTPException, ValueError) as problem:  # no HTTP; an address without a host
        message = " ".join(str(problem).split()) or type(problem).__name__
        raise BadDownload(f"{address}: gives no file ({message})") from problem
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
    status = f"the host responded with {code} {reason}".strip()
    if code in (404, 410):
        return f"{status}; the file is not there, is the address right?"
    if code == 429 or code >= 500:
        return f"{status}; try again later"
    return f"{status}; the host, or a proxy before it, refuses this machine: try from another network"


def _remove_partials(path: Path) -> None:
    """Files that torch.hub leaves if it is killed, or if the disk is full."""
    for partial in path.parent.glob(f"{escape(path.name)}.*.partial"):
        partial.unlink(missing_ok=True)
