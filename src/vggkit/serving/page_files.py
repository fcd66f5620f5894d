"""The files of the page, each by its path. They are listed once, so that no path of a request is ever opened."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, NamedTuple

MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""What is served; other files of the folder are not."""
INDEX: Final = "index.html"
FOR_SITES: Final = frozenset({"browser.js", "preprocess.js", "opened-as-file.js"})
"""Files of the page that only a static site needs, where the model runs in the browser."""


class PageFile(NamedTuple):
    """A file that is served as it is."""

    media_type: str
    data: bytes


def list_page_files() -> dict[str, PageFile]:
    """The page's files by the path of their requests; `index.html` is `/`."""
    return dict(_walk(files("vggkit").joinpath("page"), "/"))


def _walk(folder: Traversable, path: str) -> list[tuple[str, PageFile]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        ending = entry.name[entry.name.rfind(".") :]
        if entry.is_dir():
            found += _walk(entry, f"{path}{entry.name}/")
        elif ending in MEDIA_TYPES and entry.name not in FOR_SITES:
            place = path if entry.name == INDEX else f"{path}{entry.name}"
            found.append((place, PageFile(MEDIA_TYPES[ending], entry.read_bytes())))
    return found
