"""A folder of explanations: an overlay for each image, its map, a table of all, and a contact sheet.

Shape letters: H and W places of a map.
"""

import hashlib
import io
import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from vggkit._version import __version__
from vggkit.errors import BadOutput
from vggkit.explanations.contact_sheet import MOST_CELLS, draw_cell, draw_sheet
from vggkit.explanations.explain import Explained
from vggkit.explanations.overlay import draw_panel, encode_image
from vggkit.explanations.plan import ExplanationPlan
from vggkit.files import demand_writable, whole_file, write_text
from vggkit.hardware import count_threads
from vggkit.images.dataset import ImageSample

ABOUT: Final = "explanations.json"
"""States what the folder's maps are; a folder with it may be written into again."""
SHEET: Final = "contact_sheet.jpg"
OWN_NAMES: Final = frozenset({ABOUT, SHEET, "explanations.csv", "check.json"})
OVERLAY: Final = ".jpg"


class ExplanationFolder:
    """Writes explanations into a folder, in threads.

    Args:
        folder: A new or empty folder, or one of explanations, whose files of the same names are replaced.
        plan: What is explained.
        places: The images' places: an overlay has the path of its image below their common folder.
        with_maps: Whether each map is written, too, as `NAME.npy`.

    Raises BadOutput where the folder cannot be written to, or holds other files.
    """

    def __init__(
        self, folder: Path, plan: ExplanationPlan, places: Iterable[str | Path | ImageSample], *, with_maps: bool
    ) -> None:
        self.folder, self._plan, self._with_maps = folder, plan, with_maps
        self._root = _find_root(places)
        self._cells: list[Future[Any]] = []
        demand_writable(folder / ABOUT)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
            raise BadOutput(f"{folder}: holds other files, which overlays could replace; name a new folder")

    def begin(self) -> None:
        """Make the folder, and state in it what its maps are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self._plan
        about = {
            "vggkit": __version__,
            "method": plan.method,
            "layer": plan.layer,
            "map": f"{plan.sides[0]} × {plan.sides[1]} float32, not scaled",
            "overlay": "scaled by the 99th percentile of the map's values above 0; what is 0 or less has no colour",
        }
        write_text(self.folder / ABOUT, json.dumps(about, ensure_ascii=False, indent=1) + "\n")

    def write_each(self, explained: Iterable[Explained]) -> Iterator[Explained]:
        """Each of them again, in order, once its files are written."""
        threads = count_threads()
        with ThreadPoolExecutor(threads, thread_name_prefix="overlay") as pool:
            ahead: deque[tuple[Explained, Future[None]]] = deque()
            for each in explained:
                ahead.append((each, pool.submit(self._write, each)))
                if each.pixels is not None and len(self._cells) < MOST_CELLS:
                    self._cells.append(pool.submit(draw_cell, each.pixels, each.explanation))
                while len(ahead) > 2 * threads or (ahead and ahead[0][1].done()):
                    first, future = ahead.popleft()
                    future.result()
                    yield first
            for first, future in ahead:
                future.result()
                yield first

    def name_overlay(self, path: str) -> str:
        """The overlay's place below the folder, of an image's path; paths that differ have places that do."""
        below = path.replace("\\", "/")
        if self._root and below.startswith(f"{self._root}/"):
            below = below[len(self._root) + 1 :]
        below = re.sub(r"[/#]+", "/", below)
        pieces = [re.sub(r'[\x00-\x1f:*?"<>|]', "_", piece) for piece in below.split("/")]
        name = "/".join(piece for piece in pieces if piece not in ("", ".", ".."))
        if name != below or "." not in pieces[-1] or name in OWN_NAMES:  # another path may end in the same name
            name = f"{name or 'image'}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
        return name if name.endswith(OVERLAY) else name + OVERLAY

    def name_map(self, path: str) -> str:
        """The map's place, of an image's path."""
        return self.name_overlay(path).removesuffix(OVERLAY) + ".npy"

    def write_sheet(self) -> Path | None:
        """Write the contact sheet of the first images; None where there are fewer than two."""
        if len(self._cells) < 2:
            return None
        target = self.folder / SHEET
        with whole_file(target) as beside:
            beside.write_bytes(encode_image(draw_sheet([each.result() for each in self._cells]), ".jpg"))
        return target

    def _write(self, explained: Explained) -> None:
        explanation = explained.explanation
        if explained.pixels is None or explanation.map is None:
            return
        target = self.folder / self.name_overlay(explained.image.path)
        _put(target, encode_image(draw_panel(explained.pixels, explanation), OVERLAY))
        if self._with_maps:
            file = io.BytesIO()
            np.save(file, explanation.map)
            _put(self.folder / self.name_map(explained.image.path), file.getvalue())


def _put(target: Path, data: bytes) -> None:
    """Whole or not at all; unlike `whole_file` without waiting for the disk, for there may be thousands."""
    beside = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(data)
        beside.replace(target)
    except OSError as problem:
        raise BadOutput(f"{target}: cannot be written ({problem.strerror or problem})") from problem


def _find_root(places: Iterable[str | Path | ImageSample]) -> str:
    """The folder that places have in common, as their images' paths begin; empty where there is none."""
    roots = []
    for place in places:
        path = place.path if isinstance(place, ImageSample) else str(place)
        roots.append(path if Path(path).is_dir() else os.path.dirname(path))  # noqa: PTH120 (as it is written)
    if not roots or len({os.path.isabs(root) for root in roots}) > 1:  # noqa: PTH117
        return ""
    return os.path.commonpath(roots).replace("\\", "/")
