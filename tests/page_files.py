"""Gives a browser the page's files, without a server."""

from importlib import resources
from pathlib import Path
from typing import Any, Final

TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
ADDRESS: Final = "http://localhost:9/"
"""Nothing listens there: every request is fulfilled by the test."""


def fulfill_file(route: Any) -> None:
    """A file of the page, under the policy that the service sends."""
    name = route.request.url.removeprefix(ADDRESS).split("?")[0] or "index.html"
    file = resources.files("vggkit").joinpath("page", name)
    if file.is_file():
        headers = {"Content-Security-Policy": POLICY}
        route.fulfill(body=file.read_bytes(), content_type=TYPES[Path(name).suffix], headers=headers)
    else:
        route.fulfill(status=404, body="")
