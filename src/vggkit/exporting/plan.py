"""The input, output and metadata of an exported program. No torch here.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, get_args

from vggkit._version import __version__
from vggkit.engines.onnx_graph import StoredWeights
from vggkit.engines.outputs import Output
from vggkit.errors import BadConfiguration, UnknownName
from vggkit.exporting.formats import FormatName
from vggkit.models.configuration import Configuration
from vggkit.task import USUAL_THRESHOLD
from vggkit.weights.card import Card, read_entry

INPUT: Final = "images"
"""The name of a program's input: images (N, H, W, C), uint8, RGB."""
FITTED: Final = "fitted"
"""Output of the images (N, C, H, W) after resizing and cropping, levels from 0 to 255; for checks alone."""
METADATA_VERSION: Final = 1
StoredPrecision = StoredWeights
"""The precision of the weights in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """The computation of an exported program.

    Its input is `images` (N, H, W, C), uint8: RGB from 0 to 255, as in a PIL image or an OpenCV array in RGB order,
    and a fourth channel if the network has four. Its output is `probabilities` (N, K), float32, after the
    Classifier's temperature.
    """

    card: Card
    """The Classifier."""
    format: FormatName
    """The format of its file."""
    resize: bool = False
    """Whether the program resizes and crops images of any size; else images have the network's size."""
    precision: StoredPrecision = "fp32"
    """The precision of the weights in the file; the program computes in float32 in both cases."""
    outputs: tuple[Output, ...] = ("probabilities",)
    """Its outputs: names of `engines.outputs`, or `fitted`."""

    @classmethod
    def of(cls, card: Card, to: FormatName, *, resize: bool = False, precision: StoredPrecision = "fp32") -> Self:
        """The plan for a Classifier; raises UnknownName, and BadConfiguration for a filter that no program has."""
        if precision not in get_args(StoredPrecision):
            raise UnknownName.of("precision of the weights in a file", precision, get_args(StoredPrecision))
        if precision == "int8" and to not in ("onnx", "web"):
            raise BadConfiguration(
                f"precision int8 is stored in ONNX files and sites alone, and this is {to}; fp16 halves the file"
            )
        interpolation = card.preprocessing.interpolation
        if resize and interpolation not in ("bilinear", "bicubic"):
            raise BadConfiguration(
                f"resize must be off for this Classifier: it resizes images by {interpolation}, which exported "
                "programs have no operation for (they have bilinear and bicubic); resize them with Pillow"
            )
        return cls(card=card, format=to, resize=resize, precision=precision)

    @property
    def configuration(self) -> Configuration:
        """The network."""
        return self.card.configuration

    @property
    def crop_pixels(self) -> int:
        """Side of the images that the Classifier's preprocessing gives the network."""
        return self.card.preprocessing.crop_pixels

    @property
    def least_pixels(self) -> int:
        """Smallest side of an input image."""
        if self.resize:
            return 1
        return self._least_side if self.is_dynamic else self.crop_pixels

    @property
    def is_dynamic(self) -> bool:
        """Whether height and width are dynamic, from `least_pixels`.

        An FC head's matrices fix the size, and so does a dense head's window for images smaller than it. A site's
        page always gives the Classifier's own.
        """
        return self.resize or (
            self.format != "web" and self.configuration.head != "fc" and self.crop_pixels >= self._least_side
        )

    @property
    def _least_side(self) -> int:
        """Smallest side of the sizes for which the head has the same graph."""
        side = self.configuration.minimum_side
        if self.configuration.head == "dense":
            return side * self.configuration.grid
        return 2 * side if self.format == "pt2" else side  # torch.export holds a map of one pixel apart

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """(N, H, W, C), with names for dynamic sizes."""
        sides: tuple[int | str, ...] = ("H", "W") if self.is_dynamic else (self.crop_pixels,) * 2
        return ("N", *sides, self.card.preprocessing.decoded_channels)

    def to_metadata(self, versions: Mapping[str, str]) -> dict[str, str]:
        """The metadata of the file: texts by name, JSON where a value is not a text.

        `labels` is a list in the order of the probabilities. Where `task` is single-label, a prediction below
        `threshold` is "unknown"; where it is multi-label, each class is predicted from its own of the `thresholds`.

        Args:
            versions: Of the packages that write the file.
        """
        card, several = self.card, self.card.task == "multi-label"
        licence = card.provenance.get("licence") or read_entry(card.provenance, "weights").get("licence")
        network = {"model": self.configuration.model, "configuration": self.configuration.to_dict()}
        values: dict[str, Any] = {
            "labels": list(card.labels),
            "task": card.task,
            "threshold": card.threshold,
            **({"thresholds": list(card.thresholds or (USUAL_THRESHOLD,) * len(card.labels))} if several else {}),
            "temperature": card.temperature,
            "input": {"name": INPUT, "shape": list(self.input_shape), "type": "uint8", "channels": self.channels}
            | {"least_pixels": self.least_pixels, "resized_inside": self.resize},
            "preprocessing": card.preprocessing.to_dict(),
            "network": network,
            "versions": {"vggkit": __version__, **versions},
            "licence": str(licence or "unknown"),
            "stored_precision": self.precision,
            "metadata_version": METADATA_VERSION,
        }
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in values.items()
        }

    @property
    def channels(self) -> str:
        """The order of the input's channels."""
        return "RGB" if self.card.preprocessing.decoded_channels == 3 else "RGB and a fourth"
