"""The record of an export. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkit.exporting.formats import FORMATS, FormatName
from vggkit.exporting.parity import Parity
from vggkit.exporting.plan import StoredPrecision
from vggkit.task import Task
from vggkit.weights.convert import Conversion


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The result of an export."""

    path: Path
    """The file."""
    files: tuple[Path, ...]
    """All of its files: OpenVINO's .xml has its weights in a .bin."""
    format: FormatName
    """Its format."""
    size_bytes: int
    """Total size in bytes."""
    precision: StoredPrecision
    """The precision of the weights in the file."""
    input_shape: tuple[int | str, ...] | None
    """Shape (N, H, W, C) of a program's input, uint8, with names for dynamic sizes; None for weights."""
    least_pixels: int | None
    """Smallest H and W of a program's input; None for weights."""
    resize: bool
    """Whether the program resizes and crops."""
    parity: Parity | None
    """The check of a program by its runtime; None for weights."""
    conversion: Conversion | None
    """The conversion and check of weights; None for programs."""
    snippet: str
    """Python code that classifies an image with the file, without vggkit."""
    task: Task = "single-label"
    """Whether an image has exactly one class, or any number of them."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        plain = {
            "path": str(self.path),
            "files": [str(path) for path in self.files],
            "parity": self.parity and self.parity.to_dict(),
            "conversion": self.conversion and self.conversion.to_dict(),
        }
        return values | plain

    def __str__(self) -> str:
        files = ", ".join(map(str, self.files)) if self.format != "web" else f"{self.path}: {len(self.files)} files"
        text = f"{files}: {FORMATS[self.format].title}, {self.size_bytes / 1e6:,.1f} MB"
        if self.input_shape is None:
            assert self.conversion is not None
            notes = "".join(f"\n{note}" for note in self.conversion.notes)
            return (
                f"{text}\nchecked: read back, logits differ by {self.conversion.difference:.1e} at most "
                f"(tolerance {self.conversion.tolerance:.1e}){notes}"
            )
        shape = " × ".join(map(str, self.input_shape))
        free = "H" in self.input_shape
        sides = f", H and W from {self.least_pixels} pixels" if free and not self.resize else ""
        inside = "resizing, cropping, normalisation" if self.resize else "normalisation"
        ends = "softmax" if self.task == "single-label" else "sigmoid, thresholds"
        stored = {"fp32": "", "fp16": ", weights stored in float16", "int8": ", weights stored in int8"}[
            self.precision
        ]
        return (
            f"{text}{stored}\ntakes uint8 RGB images, {shape}{sides}; {inside}, {ends} and labels are inside\n"
            f"{self.parity}"
        )
