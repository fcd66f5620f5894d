"""Conversion of a file of weights to another dialect: tensor by tensor, and checked before it is saved.

torch is imported when the first tensor is to be read, after all that can be refused without it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint, BadConfiguration, BadOutput
from vggkit.files import whole_file
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.statements import write_statements
from vggkit.weights.card import INPUT_RANGE, Card
from vggkit.weights.dialects import Dialect, Place, map_keys, to_layout
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identification import Identification
from vggkit.weights.identify import IdentifiedFile, identify_file
from vggkit.weights.input_conventions import (
    InputConvention,
    describe_convention,
    find_convention,
    same_convention,
    turn_convention,
)
from vggkit.weights.locate import locate_model
from vggkit.weights.writers import Piece, suffix_of, write_pieces

if TYPE_CHECKING:
    from torch import Tensor

    from vggkit.weights.canonical import CanonicalWeights


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion, with the difference between the logits of both files."""

    source: Identification
    """The identification of the source."""
    target: Path
    """The file that was written."""
    dialect: Dialect
    """Its dialect."""
    tensors: int
    """Tensors in it."""
    dropped: tuple[str, ...]
    """Keys of the source that no network reads, and that were left out."""
    source_preprocessing: Preprocessing | None
    """The preprocessing of the source; None: unknown."""
    preprocessing: Preprocessing | None
    """The preprocessing of the target; None: unknown, as that of the source."""
    turned_input: bool
    """conv1_1 was flipped or scaled, so that the target takes another input convention."""
    notes: tuple[str, ...]
    """Changes, in sentences: how an ambiguous source was read, and which parts of a Classifier's file were
    converted with its input or dropped."""
    compared: str
    """The outputs that were compared: `logits`, or `maps of relu3_4` where there is no head."""
    image_pixels: int
    """Side of the random image that both networks were compared on."""
    difference: float
    """Largest absolute difference."""
    largest: float
    """Largest absolute value, for comparison with the difference."""
    tolerance: float
    """Largest difference with which the file is saved."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        values = dict(vars(self))
        for name in ("source_preprocessing", "preprocessing"):
            values[name] = values[name].to_dict() if values[name] else None
        plain = {"source": self.source.to_dict(), "target": str(self.target)}
        plain |= {"dropped": list(self.dropped), "notes": list(self.notes)}
        convention = describe_convention(self.preprocessing) if self.preprocessing else None
        return values | plain | {"input_convention": convention}

    def __str__(self) -> str:
        known = self.preprocessing
        convention = describe_convention(known) if known else "unknown, state --input-convention"
        text = (
            f"{self.target}: {self.source.model} in dialect {self.dialect}, {self.tensors} tensors; "
            f"{self.compared} differ by {self.difference:.1e} at most, of {self.largest:.3g} "
            f"(tolerance {self.tolerance:.1e}); input {convention}"
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
        target: The file to write; its suffix decides the format: `.safetensors` or `.pth`, for Keras `.h5`,
            `.weights.h5` or `.npz`, for Caffe `.npz`.
        to: The dialect.
        input_convention: The preprocessing of the source, where the file does not state it: `imagenet`, `caffe`,
            `caffe-rgb`, `caffe-unit`, or a Preprocessing.
        keep_input: Leave conv1_1 and the input convention as they are.
        allow_partial: Convert a file without a head too, and leave out unexpected keys.
        reading: Which network the source is read as, of those that `identify` lists where its tensors may be
            of several.

    Properties of the network that keys and shapes do not determine (a cut at a pool, average pooling) are written
    as metadata, where the format has room for it; where it has none, such a network is refused.

    Nothing is left behind when it fails. Raises BadCheckpoint for a source that is broken, no VGG or not
    whole, BadConfiguration where the dialect has no keys for the network or the convention contradicts
    the file, UnknownName, and BadOutput where the target cannot be written or gives other logits.
    """
    source, target = locate_model(source), demand_path(target)
    stated, suffix = find_convention(input_convention), suffix_of(target, to)
    with open_weights(source) as file:
        identified = identify_file(file, reading=reading)
        found = identified.identification
        configuration = _check_source(identified, allow_partial=allow_partial)
        places = map_keys(configuration, to, trunk_only=found.head is None)
        if target.exists() and target.samefile(source):
            raise BadOutput(f"{target}: is the source itself; name another file")
        source_input = _resolve_convention(found, stated)
        target_input, turn_first, scales = _turn_input(source_input, to, keep=keep_input)
        # The checks above need no torch.
        from vggkit.weights.canonical import CanonicalWeights
        from vggkit.weights.parity import compare_outputs

        pieces = _list_pieces(CanonicalWeights(file, identified), identified, places, turn_first)
        metadata, notes = _write_metadata(identified, target_input, to, suffix, scales)
        with _checked_file(target) as beside:
            write_pieces(beside, suffix, pieces, metadata)
            compared = compare_outputs(
                file, identified, beside, source_input=source_input, target_input=target_input, to=to
            )
        return Conversion(
            source=found,
            target=target,
            dialect=to,
            tensors=len(pieces),
            dropped=found.unexpected,
            source_preprocessing=source_input,
            preprocessing=target_input,
            turned_input=turn_first is not None,
            notes=(*_describe_reading(found), *notes),
            **compared,
        )


def _list_pieces(
    weights: "CanonicalWeights",
    identified: IdentifiedFile,
    places: Mapping[str, Place],
    turn_first: "Callable[[Tensor], Tensor] | None",
) -> list[Piece]:
    """The tensors of the target, each read when it is written."""
    configuration = identified.identification.configuration
    assert configuration is not None
    shapes = configuration.state_shapes()
    pieces = []
    for key, place in places.items():
        source = identified.sources.get(key) or weights.zeros.get(key)
        if source is not None:
            turn = turn_first if key == "features.0.weight" else None
            dtype = identified.file.entries[source.place.key].dtype
            read = partial(_read_turned, weights, key, place, turn)
            pieces.append(Piece(place.key, place.shape_of(shapes[key]), dtype, read))
        elif key.endswith("num_batches_tracked"):  # current readers require it, and old files lack it
            pieces.append(Piece(place.key, (), "int64", _make_zero))
    return pieces


def _read_turned(
    weights: "CanonicalWeights", key: str, place: Place, turn: "Callable[[Tensor], Tensor] | None"
) -> "Tensor":
    value = weights[key]
    return to_layout(turn(value) if turn else value, place)


def _make_zero() -> "Tensor":
    import torch

    return torch.zeros((), dtype=torch.int64)


def _check_source(identified: IdentifiedFile, *, allow_partial: bool) -> Configuration:
    """The source's network; raises BadCheckpoint where it cannot be converted, or only with `allow_partial`."""
    found = identified.identification
    if found.configuration is None:
        raise BadCheckpoint(f"{found.path}: is {found.verdict}")
    if (found.missing or found.misshapen or found.unexpected) and not allow_partial:
        listed = [*found.missing, *found.misshapen, *found.unexpected]
        shown = ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
        raise BadCheckpoint(
            f"{found.path}: {found.verdict} ({shown}); convert the tensors that are there with allow_partial"
        )
    return found.configuration


def _resolve_convention(found: Identification, stated: Preprocessing | None) -> Preprocessing | None:
    """The preprocessing of the source, from the file or as stated; raises BadConfiguration where these differ."""
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
    source_input: Preprocessing | None, to: Dialect, *, keep: bool
) -> "tuple[Preprocessing | None, Callable[[Tensor], Tensor] | None, tuple[float, ...]]":
    """The target's preprocessing, the function that adapts conv1_1 to it (None: unchanged), and its factors."""
    if source_input is None or keep:
        return source_input, None, ()
    turned, factors = turn_convention(source_input, caffe=to in ("keras", "caffe"))
    flip = turned.channel_order != source_input.channel_order
    if not flip and all(factor == 1 for factor in factors):
        return turned, None, ()

    def turn(filters: "Tensor") -> "Tensor":
        import torch

        scale = torch.tensor(factors, dtype=torch.float64)[None, :, None, None]
        return ((filters.flip(1) if flip else filters).double() * scale).to(filters.dtype)

    return turned, turn, factors


def _write_metadata(
    identified: IdentifiedFile,
    preprocessing: Preprocessing | None,
    to: Dialect,
    suffix: str,
    scales: tuple[float, ...],
) -> tuple[dict[str, str], list[str]]:
    """The target's metadata, and notes on what changed in a Classifier's file.

    A Classifier stays one where its keys stay canonical; otherwise its network, preprocessing and labels are
    written under the keys of `statements`.
    """
    found, card = identified.identification, identified.card
    assert found.configuration is not None
    if card is not None and to == "torchvision" and suffix == ".safetensors" and preprocessing is not None:
        provenance = {**card.provenance, "converted": {"file": found.path.name, "dialect": found.dialect}}
        converted = replace(card, preprocessing=preprocessing, provenance=provenance)
        if not scales or INPUT_RANGE not in card.activation_ranges:
            return converted.to_metadata(), []
        turned, note = _turn_ranges(converted, scales)
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
    elif identified.labels is not None and not labelled:
        notes.append(f"dropped, as a {suffix} file cannot store them: labels")
    if suffix == ".npz":
        return {}, notes
    metadata = {"format": "pt"} if suffix == ".safetensors" else {}
    return metadata | write_statements(
        found.configuration, preprocessing=preprocessing, labels=identified.labels if labelled else None
    ), notes


def _turn_ranges(card: Card, scales: tuple[float, ...]) -> tuple[Card, str]:
    """The card with conv1_1's input range on its new scale; without ranges where channels are scaled differently.

    A filter times a factor gives the same output where its input is divided by the factor. The range is that of all
    channels together, so only a common factor converts it exactly.
    """
    if max(scales) - min(scales) <= 1e-9 * max(scales):
        low, high = card.activation_ranges[INPUT_RANGE]
        factor = 1 / scales[0]
        activation_ranges = {**card.activation_ranges, INPUT_RANGE: (low * factor, high * factor)}
        return replace(
            card, activation_ranges=activation_ranges
        ), f"ranges for int8: the input's are converted with it, times {factor:.6g}"
    provenance = {name: value for name, value in card.provenance.items() if name != "ranges"}
    return replace(card, activation_ranges={}, provenance=provenance), (
        "ranges for int8: dropped, as the channels of the input are scaled differently; "
        "vggkit bench MODEL IMAGES --keep-ranges measures them again"
    )


def _describe_reading(found: Identification) -> list[str]:
    """The reading of a source that can be read in several ways."""
    if len(found.readings) < 2:
        return []
    taken = found.readings[found.reading]
    others = [f"reading={n} {each.description}" for n, each in enumerate(found.readings) if n != found.reading]
    return [
        f"the source was read as {taken.description} (reading={found.reading}); it may be {' or '.join(others)}"
    ]


@contextmanager
def _checked_file(target: Path) -> Iterator[Path]:
    """A path with the target's name in a temporary folder beside it; the file is moved to the target at the end."""
    with whole_file(target) as beside, TemporaryDirectory(prefix=".vggkit-", dir=target.parent) as folder:
        written = Path(folder) / target.name
        yield written
        written.replace(beside)
