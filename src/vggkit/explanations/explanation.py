"""The record of an explanation: which places of an image speak for a class.

Shape letters: H and W places of a map.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_path
from vggkit.errors import BadInput, BadOutput
from vggkit.escaping import escape_controls
from vggkit.explanations.contact_sheet import MOST_CELLS, draw_cell, draw_sheet
from vggkit.explanations.overlay import IMAGE_ENDINGS, SHOWN_PIXELS, draw_panel, encode_image, show_pixels
from vggkit.explanations.plan import Method
from vggkit.files import whole_file
from vggkit.images.dataset import ImageSample

MOST_SHOWN: Final = 6
"""Explanations that a notebook shows."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explanation:
    """Which places of an image speak for a class, by one method."""

    path: str
    """The image's file, or its name."""
    label: str | None
    """The class that is explained; None where there is a problem."""
    probability: float | None
    """The probability of that class, in [0, 1]; None where there is a problem."""
    contrast: str | None = None
    """The class that it is contrasted with: the map explains the difference of the two scores; None: no other."""
    method: Method
    """How it was computed."""
    layer: str | None
    """The layer whose map is explained; None where the pixels are."""
    map: NDArray[np.float32] | None = field(repr=False)
    """(H, W) not scaled. grad-cam and layer-cam: 0 or more, in units of the score (logit). integrated-gradients and
    occlusion: the share of each place in the score, below 0 where it speaks against the class. saliency: the
    largest absolute gradient of the score among the channels. None where there is a problem."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Where the map lies on the image: left, top, right and bottom edge in pixels of it."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image in pixels."""
    image: ImageSample = field(repr=False)
    """The image."""
    problem: str | None = None
    """Why the image cannot be read, or that the network's values for it overflow."""

    @property
    def title(self) -> str:
        """The class with its probability, such as `bee 93.1 %`, or `bee, not ant`."""
        if self.problem is not None:
            return "not explained"
        if self.contrast is not None:
            return f"{self.label}, not {self.contrast}"
        percent = 100 * (self.probability or 0)
        return f"{self.label} {percent:.1f} %" if percent >= 0.05 else f"{self.label} < 0.1 %"

    @property
    def source(self) -> str:
        """Method and layer, such as `grad-cam at relu5_3`."""
        return f"{self.method} at {self.layer}" if self.layer else self.method

    def find_peak(self) -> tuple[float, float] | None:
        """Where the map is largest, in pixels of the image from its left and its top; None where nothing speaks for
        the class. It is the middle of a place of the map, which may cover many pixels.
        """
        if self.map is None or self.map.max() <= 0:
            return None
        row, column = np.unravel_index(self.map.argmax(), self.map.shape)
        left, top, right, bottom = self.box
        across, down = (column + 0.5) / self.map.shape[1], (row + 0.5) / self.map.shape[0]
        return float(left + across * (right - left)), float(top + down * (bottom - top))

    def save(self, path: str | Path) -> None:
        """Write the explanation, whole or not at all.

        Args:
            path: .png, .jpg or .webp: the image, and beside it the image under the map as heat: the hottest percent
                of the map's places above 0 has the brightest colour, and what is 0 or less has none. .npy: the map,
                (H, W) float32, as it is.

        Raises BadOutput where it cannot be written, BadInput where there is a problem and so no map, and BadImage
        where the image is no longer readable.
        """
        path = demand_path(path)
        ending = path.suffix.lower()
        if ending != ".npy" and ending not in IMAGE_ENDINGS:
            raise BadOutput(f"{path}: must end in {', '.join(IMAGE_ENDINGS)}, or in .npy for the map")
        if self.map is None:
            raise BadInput(f"there is nothing to save: {self.problem}")
        if ending == ".npy":
            with whole_file(path) as beside, open(beside, "wb") as out:
                np.save(out, self.map)
            return
        pixels = show_pixels(self.image.decode(), SHOWN_PIXELS * 2)
        with whole_file(path) as beside:
            beside.write_bytes(encode_image(draw_panel(pixels, self), ending))

    def _repr_html_(self) -> str:
        if self.map is None:
            return f"<p>{escape(escape_controls(str(self.problem)))}</p>"
        pixels = show_pixels(self.image.decode(), SHOWN_PIXELS)
        source = base64.b64encode(encode_image(draw_panel(pixels, self), ".jpg")).decode("ascii")
        name = escape(escape_controls(f"{self.path}: {self.title}, {self.source}"))
        image = f'<img src="data:image/jpeg;base64,{source}" alt="{name}">'
        return f"<figure>{image}<figcaption>{name}</figcaption></figure>"

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON, without the map."""
        values = {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "contrast": self.contrast,
            "method": self.method,
            "layer": self.layer,
        }
        return values | ({"problem": self.problem} if self.problem else {})


@dataclass(frozen=True, slots=True, eq=False)
class Explanations(Sequence[Explanation]):
    """Explanations of images, in their order."""

    items: tuple[Explanation, ...]
    """One for each image."""

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> Explanation: ...
    @overload
    def __getitem__(self, place: slice) -> "Explanations": ...
    def __getitem__(self, place: int | slice) -> "Explanation | Explanations":
        found = self.items[place]
        return found if isinstance(found, Explanation) else Explanations(found)

    def __repr__(self) -> str:
        if not self.items:
            return "Explanations()"
        failed = sum(each.problem is not None for each in self.items)
        more = f", {failed:,} failed" if failed else ""
        return f"Explanations({self.items[0].source} of {len(self):,} image{'s' * (len(self) != 1)}{more})"

    def save(self, path: str | Path) -> None:
        """Write what `Explanation.save` does of a single image; of several a contact sheet of the first 60.

        Args:
            path: .png, .jpg or .webp; of a single image .npy, too.

        Raises BadOutput, BadInput where no image was explained, and BadImage where one is no longer readable.
        """
        path = demand_path(path)
        if len(self) == 1:
            self.items[0].save(path)
            return
        if path.suffix.lower() not in IMAGE_ENDINGS:
            raise BadOutput(f"{path}: a contact sheet must end in {', '.join(IMAGE_ENDINGS)}")
        shown = [each for each in self.items if each.map is not None][:MOST_CELLS]
        if not shown:
            raise BadInput("there is nothing to save: no image was explained")
        cells = [draw_cell(each.image.decode(), each) for each in shown]
        with whole_file(path) as beside:
            beside.write_bytes(encode_image(draw_sheet(cells), path.suffix))

    def _repr_html_(self) -> str:
        return "".join(each._repr_html_() for each in self.items[:MOST_SHOWN])
