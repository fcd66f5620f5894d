"""One file of weights into another dialect: tensor by tensor, checked before it is kept.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint, BadConfiguration, BadOutput
from vggkit.files import whole_file
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.statements import write_statements
from vggkit.weights.canonical import CanonicalWeights, build_network
from vggkit.weights.card import INPUT_RANGE, Card
from vggkit.weights.dialects import Dialect, Place, map_keys, to_layout
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identification import Identification
from vggkit.weights.identify import Examination, examine
from vggkit.weights.input_conventions import (
    InputConvention,
    describe_convention,
    find_convention,
    same_convention,
    turn_convention,
)
from vggkit.weights.locate import locate_model
from vggkit.weights.writers import Piece, suffix_of, write_pieces

TOLERANCE: Final[Mapping[str, float]] = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference of the logits that is let through, relative to the largest logit, by the weights'
type: scaling conv1_1 rounds it anew."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was converted, and how nearly both files give the same logits."""

    source: Identification
    """What the file was."""
    target: Path
    """The file that was written."""
    dialect: Dialect
    """Its dialect."""
    tensors: int
    """Tensors in it."""
    dropped: tuple[str, ...]
    """Keys of the source that no network reads, and that were left out."""
    source_preprocessing: Preprocessing | None
    """What the source is fed; None: unknown."""
    preprocessing: Preprocessing | None
    """What the target is to be fed; None: unknown, and then as the source."""
    turned_input: bool
    """conv1_1 was flipped or scaled, so that the target takes another input convention."""
    notes: tuple[str, ...]
    """What is not as it was, in sentences: how an ambiguous source was read, and what of a Classifier's file
    was turned with its input or left behind."""
    compared: str
    """What was compared: `logits`, or `maps of relu3_4` where there is no head."""
    image_pixels: int
    """Side of the random image that both were given."""
    difference: float
    """Largest absolute difference."""
    largest: float
    """Largest absolute value, to read the difference by."""
    tolerance: float
    """Difference up to which the file is kept."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        values = dict(vars(self))
        for name in ("source_preprocessing", "preprocessing"):
            values[name] = values[name].to_dict() if values[name] else None
        said = {"source": self.source.to_dict(), "target": str(self.target)}
        said |= {"dropped": list(self.dropped), "notes": list(self.notes)}
        convention = describe_convention(self.preprocessing) if self.preprocessing else None
        return values | said | {"input_convention": convention}

    def __str__(self) -> str:
        fed = describe_convention(self.preprocessing) if self.preprocessing else "unknown, say --input-convention"
        text = (
            f"{self.target}: {self.source.model} in dialect {self.dialect}, {self.tensors} tensors; "
            f"{self.compared} differ by {self.difference:.1e} at most, of {self.largest:.3g} "
            f"(tolerance {self.tolerance:.1e}); input {fed}"
        )
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Dialect,
    input_convention: InputConvention | Preprocessing | None = None,
    keep_input: bool = False,
    allow_partial: bool = False,
    reading: int = 0,
) -> Conversion:
    """Write the weights of one file in another dialect, and check that both give the same logits.

    Tensors are read, turned and written one at a time. Keras and Caffe take BGR from 0 to 255, the
    others RGB from 0 to 1: where the source's convention is known, conv1_1 is flipped and scaled to the
    target's, and the mean stays in the preprocessing that is recorded, as a mean folded into the bias
    would be wrong at the borders. Where it is unknown the values stay as they are.

    Args:
        source: A file of weights in any dialect, a run's folder, a model's name for its published weights, or
            `hf://owner/name`.
        target: The file to write; its suffix says the format: `.safetensors` or `.pth`, for Keras `.h5`,
            `.weights.h5` or `.npz`, for Caffe `.npz`.
        to: The dialect.
        input_convention: What the source is fed, where the file does not tell: `imagenet`, `caffe`,
            `caffe-rgb`, `caffe-unit`, or a Preprocessing.
        keep_input: Leave conv1_1 and the input convention as they are.
        allow_partial: Convert what is there of a file without a head, and leave out unexpected keys.
        reading: Which network the source is read as, of those that `identify` lists where its tensors may be
            of several.

    What keys and shapes do not say of the network (a cut at a pool, pools that average) is written beside the
    tensors, where the format has room for it; where it has none, such a network is refused.

    Nothing is left behind when it fails. Raises BadCheckpoint for a source that is broken, no VGG or not
    whole, BadConfiguration where the dialect has no keys for the network or the convention contradicts
    the file, UnknownName, and BadOutput where the target cannot be written or gives other logits.
    """
    source, target = locate_model(source), demand_path(target)
    stated = find_convention(input_convention)
    with open_weights(source) as file:
        examination = examine(file, reading=reading)
        found = examination.identification
        configuration = _check_source(examination, allow_partial=allow_partial)
        places = map_keys(configuration, to, trunk_only=found.head is None)
        suffix = suffix_of(target, to)
        if target.exists() and target.samefile(source):
            raise BadOutput(f"{target}: is the source itself; name another file")
        fed = _settle_convention(found, stated)
        turned, turn_first, scales = _turn_input(fed, to, keep=keep_input)
        weights = CanonicalWeights(file, examination)
        pieces = []
        for key, place in places.items():
            shape = place.shape_of(configuration.state_shapes()[key])
            if key in examination.sources:
                dtype = _torch_type(file, examination, key)
                turn = turn_first if key == "features.0.weight" else None
                pieces.append(Piece(place.key, shape, dtype, partial(_read_turned, weights, key, place, turn)))
            elif key in weights.zeros:
                dtype = _torch_type(file, examination, f"{key.removesuffix('bias')}weight")
                pieces.append(Piece(place.key, shape, dtype, partial(_read_turned, weights, key, place, None)))
            elif key.endswith("num_batches_tracked"):  # readers of today ask for what old files lack
                pieces.append(Piece(place.key, shape, torch.int64, lambda: torch.zeros((), dtype=torch.int64)))
        metadata, notes = _write_metadata(examination, turned, to, suffix, scales)
        with _checked_file(target) as beside:
            write_pieces(beside, suffix, pieces, metadata)
            compared = _compare(file, examination, beside, fed=fed, turned=turned, to=to)
        return Conversion(
            source=found,
            target=target,
            dialect=to,
            tensors=len(pieces),
            dropped=found.unexpected,
            source_preprocessing=fed,
            preprocessing=turned,
            turned_input=turn_first is not None,
            notes=(*_say_reading(found), *notes),
            **compared,
        )


def _read_turned(
    weights: Mapping[str, Tensor], key: str, place: Place, turn: Callable[[Tensor], Tensor] | None
) -> Tensor:
    value = weights[key]
    return to_layout(turn(value) if turn else value, place)


def _check_source(examination: Examination, *, allow_partial: bool) -> Configuration:
    """The source's network; raises BadCheckpoint for what cannot or was not asked to be converted."""
    found = examination.identification
    if found.configuration is None:
        raise BadCheckpoint(f"{found.path}: is {found.verdict}")
    if (found.missing or found.misshapen or found.unexpected) and not allow_partial:
        listed = [*found.missing, *found.misshapen, *found.unexpected]
        shown = ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
        raise BadCheckpoint(
            f"{found.path}: {found.verdict} ({shown}); convert what is there of it with allow_partial"
        )
    return found.configuration


def _settle_convention(found: Identification, stated: Preprocessing | None) -> Preprocessing | None:
    """What the source is fed, from the file or as stated; raises BadConfiguration where these differ."""
    if stated is None:
        return found.preprocessing
    if found.preprocessing is not None and not same_convention(stated, found.preprocessing):
        raise BadConfiguration(
            f"{found.path}: input convention {describe_convention(stated)} was stated, but the file's "
            f"{found.evidence} says {found.input_convention}; leave it out"
        )
    if stated.channels != found.in_channels:
        raise BadConfiguration(
            f"{found.path}: its network takes {found.in_channels} channels, which {describe_convention(stated)} "
            "does not give"
        )
    return found.preprocessing or stated


def _turn_input(
    fed: Preprocessing | None, to: Dialect, *, keep: bool
) -> tuple[Preprocessing | None, Callable[[Tensor], Tensor] | None, tuple[float, ...]]:
    """What the target is fed, what makes conv1_1 fit it, None where nothing changes, and its factors by channel."""
    if fed is None or keep:
        return fed, None, ()
    turned, factors = turn_convention(fed, caffe=to in ("keras", "caffe"))
    flip = turned.channel_order != fed.channel_order
    if not flip and all(factor == 1 for factor in factors):
        return turned, None, ()
    scale = torch.tensor(factors, dtype=torch.float64)[None, :, None, None]

    def turn(filters: Tensor) -> Tensor:
        return ((filters.flip(1) if flip else filters).double() * scale).to(filters.dtype)

    return turned, turn, factors


def _torch_type(file: WeightFile, examination: Examination, key: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, file.entries[examination.sources[key].place.key].dtype)
    return found


def _write_metadata(
    examination: Examination,
    preprocessing: Preprocessing | None,
    to: Dialect,
    suffix: str,
    scales: tuple[float, ...],
) -> tuple[dict[str, str], list[str]]:
    """A Classifier stays one where its keys stay canonical; otherwise what it says is kept under other names.

    With it come sentences on what of a Classifier is not as it was.
    """
    found, card = examination.identification, examination.card
    assert found.configuration is not None
    if card is not None and to == "torchvision" and suffix == ".safetensors" and preprocessing is not None:
        provenance = {**card.provenance, "converted": {"file": found.path.name, "dialect": found.dialect}}
        kept = replace(card, preprocessing=preprocessing, provenance=provenance)
        if not scales or INPUT_RANGE not in card.activation_ranges:
            return kept.to_metadata(), []
        turned, note = _turn_ranges(kept, scales)
        return turned.to_metadata(), [note]
    notes = []
    labelled = suffix not in (".npz", ".h5", ".weights.h5")
    if card is not None:
        lost = [
            name
            for name, is_there in (
                ("labels", not labelled),
                ("temperature", card.temperature != 1),
                ("threshold", card.threshold != 0),
                ("ranges for int8", bool(card.activation_ranges)),
                ("provenance", bool(card.provenance)),
            )
            if is_there
        ]
        notes.append(
            "the target is no Classifier, which only dialect torchvision in a .safetensors file can be"
            + (f"; dropped: {', '.join(lost)}" if lost else "")
        )
    elif examination.labels is not None and not labelled:
        notes.append(f"dropped, as a {suffix} file cannot store them: labels")
    if suffix == ".npz":
        return {}, notes
    metadata = {"format": "pt"} if suffix == ".safetensors" else {}
    return metadata | write_statements(
        found.configuration, preprocessing=preprocessing, labels=examination.labels if labelled else None
    ), notes


def _turn_ranges(card: Card, scales: tuple[float, ...]) -> tuple[Card, str]:
    """The card with what conv1_1 reads on its new scale; without ranges where its channels are scaled apart.

    A filter times a factor sees the same numbers where its input is divided by it. Of all channels one range
    was kept, which only one factor turns exactly.
    """
    if max(scales) - min(scales) <= 1e-9 * max(scales):
        low, high = card.activation_ranges[INPUT_RANGE]
        factor = 1 / scales[0]
        activation_ranges = {**card.activation_ranges, INPUT_RANGE: (low * factor, high * factor)}
        return replace(
            card, activation_ranges=activation_ranges
        ), f"ranges for int8: those of the input turned with it, times {factor:.6g}"
    provenance = {name: value for name, value in card.provenance.items() if name != "ranges"}
    return replace(card, activation_ranges={}, provenance=provenance), (
        "ranges for int8: dropped, as the channels of the input are scaled differently; "
        "vggkit bench MODEL IMAGES --keep-ranges measures them anew"
    )


def _say_reading(found: Identification) -> list[str]:
    """How a source that can be read in several ways was read."""
    if len(found.readings) < 2:
        return []
    taken = found.readings[found.reading]
    others = [f"reading={n} {each.said}" for n, each in enumerate(found.readings) if n != found.reading]
    return [f"the source was read as {taken.said} (reading={found.reading}); it may be {' or '.join(others)}"]


@contextmanager
def _checked_file(target: Path) -> Iterator[Path]:
    """A path with the target's own name, in a folder of its own beside it; what is there at the end is kept."""
    with whole_file(target) as beside, TemporaryDirectory(prefix=".vggkit-", dir=target.parent) as folder:
        written = Path(folder) / target.name
        yield written
        written.replace(beside)


def _compare(
    file: WeightFile,
    examination: Examination,
    written: Path,
    *,
    fed: Preprocessing | None,
    turned: Preprocessing | None,
    to: Dialect,
) -> dict[str, Any]:
    """Both networks on one random image; raises BadOutput where they differ. One is held at a time.

    Raises BadConfiguration where the written file would be read back as another network.
    """
    found, configuration = examination.identification, examination.identification.configuration
    assert configuration is not None
    side = _suit_side(configuration)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    expected = _run(file, examination, _feed(pixels, fed, configuration))
    with open_weights(written) as again:
        found_again = examine(again)
        theirs = found_again.identification.configuration
        differing = _list_differences(configuration, theirs, trunk_only=found.head is None)
        if theirs is None or differing:
            said = found_again.identification.verdict
            raise BadConfiguration(
                f"{written.name}: was not kept, as {_describe_format(to, written)} has no room for this network's "
                f"{', '.join(differing) or 'shape'}, and it would be read back as {said}; "
                "write .safetensors in dialect torchvision, blocks or explicit"
            )
        given = _run(again, found_again, _feed(pixels, turned, configuration))
    largest = float(expected.abs().max())
    tolerance = TOLERANCE.get(found.dtype or "", max(TOLERANCE.values())) * largest
    difference = float((expected - given).abs().max())
    compared = "logits" if found.head is not None else f"maps of {configuration.trunk[-1].name}"
    if not difference <= tolerance:  # NaN too
        raise BadOutput(
            f"{written.name}: was not kept, as its {compared} differ from the source's by {difference:.1e}, "
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
    """The fields in which two networks of the same tensors compute something else; dropout and sliding aside."""
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


def _suit_side(configuration: Configuration) -> int:
    """A side at which an fc head's map needs no pooling, and a cut has more than one place."""
    grid = 2 if configuration.head == "pool" else configuration.grid
    return max(32, configuration.minimum_side * grid)


def _feed(pixels: Any, preprocessing: Preprocessing | None, configuration: Configuration) -> Tensor:
    """The image (H, W, 3) as a batch (1, C, H, W); where what is fed is unknown, numbers between -2 and 2."""
    if preprocessing is not None:
        return torch.from_numpy(preprocessing.normalize(pixels))[None]
    shape = (1, configuration.in_channels, *pixels.shape[:2])
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4 - 2


def _run(file: WeightFile, examination: Examination, images: Tensor) -> Tensor:
    network = build_network(file, examination)
    with torch.inference_mode():
        output: Tensor = network(images) if examination.identification.head else network.features(images)
    return output
