"""The check of a converted file: it is read back as the same network, and gives the same logits.

Shape letters: N images, C channels, H and W pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vggkit.errors import BadConfiguration, BadOutput
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.weights.canonical import build_network
from vggkit.weights.dialects import Dialect
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identify import IdentifiedFile, identify_file
from vggkit.weights.writers import suffix_of

TOLERANCE: Final[Mapping[str, float]] = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of the logits that is accepted, relative to the largest logit, by the weights'
type: scaling conv1_1 rounds its values again."""


def compare_outputs(
    file: WeightFile,
    identified: IdentifiedFile,
    written: Path,
    *,
    source_input: Preprocessing | None,
    target_input: Preprocessing | None,
    to: Dialect,
) -> dict[str, Any]:
    """The difference between the outputs of both networks for one random image; one of them is held at a time.

    Args:
        file: The source, open.
        identified: The identification of the source.
        written: The converted file.
        source_input: The preprocessing of the source's input; None: unknown.
        target_input: The preprocessing of the converted file's input.
        to: Its dialect.

    Raises BadOutput where they differ by more than the tolerance, and BadConfiguration where the written file would
    be read back as another network.
    """
    found, configuration = identified.identification, identified.identification.configuration
    assert configuration is not None
    side = _choose_side(configuration)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    expected = _run(file, identified, _feed(pixels, source_input, configuration))
    with open_weights(written) as again:
        found_again = identify_file(again)
        theirs = found_again.identification.configuration
        differing = _list_differences(configuration, theirs, trunk_only=found.head is None)
        if theirs is None or differing:
            verdict = found_again.identification.verdict
            raise BadConfiguration(
                f"{written.name}: was not saved, as {_describe_format(to, written)} has no room for this network's "
                f"{', '.join(differing) or 'shape'}, and it would be read back as {verdict}; "
                "write .safetensors in dialect torchvision, blocks or explicit"
            )
        given = _run(again, found_again, _feed(pixels, target_input, configuration))
    largest = float(expected.abs().max())
    tolerance = TOLERANCE.get(found.dtype or "", max(TOLERANCE.values())) * largest
    difference = float((expected - given).abs().max())
    compared = "logits" if found.head is not None else f"maps of {configuration.trunk[-1].name}"
    if not difference <= tolerance:  # NaN too
        raise BadOutput(
            f"{written.name}: was not saved, as its {compared} differ from the source's by {difference:.1e}, "
            f"more than {tolerance:.1e}; the weights may be too large or too small for {found.dtype}"
        )
    return {
        "compared": compared,
        "image_pixels": side,
        "difference": difference,
        "largest": largest,
        "tolerance": tolerance,
    }


def _describe_format(to: Dialect, written: Path) -> str:
    return f"a {suffix_of(written, to)} file in dialect {to}"


def _list_differences(one: Configuration, other: Configuration | None, *, trunk_only: bool) -> list[str]:
    """The fields by which two networks of the same tensors differ in their results; dropout and sliding aside."""
    if other is None:
        return []
    names = [] if one.trunk == other.trunk else ["blocks", "kernels", "lrn_after", "until"]
    names += ["pooling"] if any(layer.kind == "pool" for layer in one.trunk) else []
    if not trunk_only:
        names += ["hidden", "ranks", "num_classes"]
        names += ["statistics"] if one.head == "pool" else ["grid"]
        if (one.head == "pool") is not (other.head == "pool"):
            names.append("head")
    return [f"{name}={getattr(one, name)!r}" for name in names if getattr(one, name) != getattr(other, name)]


def _choose_side(configuration: Configuration) -> int:
    """An image side at which an fc head's map needs no pooling, and a cut trunk's map is larger than 1×1."""
    grid = 2 if configuration.head == "pool" else configuration.grid
    return max(32, configuration.minimum_side * grid)


def _feed(pixels: Any, preprocessing: Preprocessing | None, configuration: Configuration) -> Tensor:
    """The image (H, W, 3) as a batch (1, C, H, W); with an unknown preprocessing, numbers between -2 and 2."""
    if preprocessing is not None:
        return torch.from_numpy(preprocessing.normalize(pixels))[None]
    shape = (1, configuration.in_channels, *pixels.shape[:2])
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4 - 2


def _run(file: WeightFile, identified: IdentifiedFile, images: Tensor) -> Tensor:
    network = build_network(file, identified)
    with torch.inference_mode():
        output: Tensor = network(images) if identified.identification.head else network.features(images)
    return output
