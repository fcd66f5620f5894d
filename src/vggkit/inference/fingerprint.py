"""Fingerprints of results, so that different results are not mixed: model, engine, options, images."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.info import EngineInfo, is_same_engine
from vggkit.engines.model_weights import ModelFile, find_weights
from vggkit.errors import BadOutput, VggkitError
from vggkit.hardware import count_threads
from vggkit.images.dataset import ImageSample

if TYPE_CHECKING:
    from vggkit.weights.model import Model

FORMAT_VERSION: Final = 2
"""Version of the record in a file of results; 1 counted rows as `pictures`, and had a sentence as its engine."""
PIECE_BYTES: Final = 1 << 24
"""Of weights, that a thread digests at once."""


def describe_network(
    classifier: "Model | ModelFile", *, precision: str = "fp32", layer: str = "", reduced_decoding: bool = False
) -> dict[str, Any]:
    """Everything that the vectors of a layer in a precision depend on, for JSON; the weights as a digest."""
    card = classifier.card.with_reduced_decoding(reduced_decoding).to_dict()
    names = ["configuration", "preprocessing"]
    names += [name for name in ("temperature", "task") if layer == "probabilities" and name in card]
    names += ["ranges"] if precision == "int8" else []
    return {"weights": digest_weights(classifier)} | {name: card[name] for name in names}


def describe_labels(classifier: "Model | ModelFile") -> dict[str, Any]:
    """Everything that its predictions depend on besides the logits, for JSON."""
    card = classifier.card.to_dict()
    several = [name for name in ("task", "thresholds") if name in card]
    return {name: card[name] for name in ("labels", "temperature", "threshold", *several)}


def digest_weights(classifier: "Model | ModelFile") -> str:
    """32 hexadecimal digits of every weight's name and shape and of its bits in float32, in memory as in a file."""
    weights = find_weights(classifier if isinstance(classifier, ModelFile) else classifier.network)
    keys = [key for key in weights.configuration.state_shapes() if not key.endswith("num_batches_tracked")]
    read = weights.read(keys)
    pieces = [piece for values in read.values() for piece in _divide(values)]
    with ThreadPoolExecutor(count_threads(), thread_name_prefix="digest") as pool:
        digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        found = hashlib.sha256(b"".join(digests))
    found.update("".join(f"{key} {values.shape} " for key, values in read.items()).encode())
    return found.hexdigest()[:32]


def _divide(values: NDArray[np.float32]) -> Iterator[memoryview]:
    """Its bytes, in pieces that threads share."""
    whole = np.ascontiguousarray(values).data.cast("B")
    for first in range(0, len(whole), PIECE_BYTES):
        yield whole[first : first + PIECE_BYTES]


def list_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two such descriptions, in words: `top: 5 then, 3 now`."""
    found = []
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += list_differences(before, after)
        else:
            found.append(f"{name}: {_shorten(before)} then, {_shorten(after)} now")
    return found


def _shorten(value: object) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:3]))
        return f"{shown} and {len(value) - 3} more" if len(value) > 3 else shown or "none"
    text = str(value)
    return f"{text[:57]}…" if len(text) > 58 else text


def demand_same(then: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raise BadOutput where results were made with something else.

    Args:
        then: The record in a file, perhaps of version 0.1.
        now: The record of the requested results.
        what: The beginning of the message.
    """
    info, recorded = EngineInfo(**now["engine"]), then.get("engine")
    if is_same_engine(recorded, info):
        then = {**then, "engine": now["engine"]}
    elif isinstance(recorded, str):
        now = {**now, "engine": info.describe()}
    differing = list_differences(then, now)
    if differing:
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise BadOutput(
            f"{what} ({'; '.join(differing[:4])}{more}). Name another file with --out, or give --overwrite to "
            "start again"
        )


class ImageDigest:
    """A digest of images in their order: of names, and of sizes where these are known without reading."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()

    def add(self, image: ImageSample) -> None:
        """The next image."""
        weight = ""
        if image.storage is None or image.storage.quick:
            try:
                weight = image.weigh()
            except (VggkitError, OSError):
                weight = "missing"
        # Names need not be text.
        self._found.update(f"{image.path}\0{weight}\n".encode(errors="surrogateescape"))

    def hex(self) -> str:
        """16 hexadecimal digits of all up to here."""
        return self._found.hexdigest()[:16]


def name_place(place: str | Path) -> str:
    """A model's place as it is found from another folder too."""
    path = Path(place)
    return str(path.resolve()) if path.exists() else str(place)
