"""What a file says of itself, and what its first filters tell: the network's input, and whose it is."""

import json
from dataclasses import dataclass

from vggkit.errors import BadCheckpoint, VggkitError
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.statements import Statements
from vggkit.weights.card import METADATA_KEY, Card
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.input_conventions import match_fingerprint
from vggkit.weights.layer_matches import Sheet


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of the input, and from where."""

    preprocessing: Preprocessing | None = None
    evidence: str | None = None
    network: str | None = None
    labels: tuple[str, ...] | None = None


def find_evidence(file: WeightFile, sheet: Sheet | None, card: Card | None, statements: Statements) -> Evidence:
    """A card's word before other metadata's, and that before the fingerprint's."""
    matched = _match_first(file, sheet) if sheet is not None else None
    network = matched[0] if matched else None
    if card is not None:
        return Evidence(card.preprocessing, "card", network, card.labels)
    if statements.preprocessing is not None:
        return Evidence(statements.preprocessing, "metadata", network, statements.labels)
    if matched is not None:
        return Evidence(matched[1], "fingerprint", network, statements.labels)
    return Evidence(labels=statements.labels)


def read_card_of(file: WeightFile) -> Card | None:
    if METADATA_KEY not in file.metadata:
        return None
    try:
        return Card.from_dict(json.loads(file.metadata[METADATA_KEY]))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise BadCheckpoint(f"{file.path}: its vggkit card is not JSON ({problem})") from problem
    except VggkitError as problem:
        raise BadCheckpoint(f"{file.path}: {problem}") from problem


def read_statements(file: WeightFile) -> Statements:
    """The network, preprocessing and labels that a file states."""
    try:
        return Statements.read(file.metadata)
    except (ValueError, TypeError, RecursionError, VggkitError) as problem:
        raise BadCheckpoint(
            f"{file.path}: what it says of its network, input or labels cannot be read ({problem})"
        ) from problem


def _match_first(file: WeightFile, sheet: Sheet) -> tuple[str, Preprocessing] | None:
    """The network and convention of conv1_1 by its fingerprint."""
    first = sheet.trunk[min(sheet.trunk)]
    window = sheet.window(first)
    if (window.out, window.into, window.kernel) != (64, 3, 3) or "bias" not in first.keys:
        return None
    if first.shapes["bias"] != (64,):
        return None
    filters = file.read_array(first.keys["weight"])
    filters = filters.transpose(3, 2, 0, 1) if sheet.channels_last else filters
    return match_fingerprint(filters, file.read_array(first.keys["bias"]))
