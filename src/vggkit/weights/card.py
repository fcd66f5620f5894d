"""A Classifier's card: all of its file but the weights, read from the header alone, without torch.

The file is safetensors: plain torchvision keys where the network is torchvision's, and under
`__metadata__` the entry `vggkit`, JSON of `Card.to_dict`. `format_version` grows with the format;
every version that was ever written stays readable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self, get_args

from safetensors import SafetensorError, safe_open

from vggkit.arguments import demand_path, is_number, plain_number
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput, VggkitError
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.task import Activation, Task
from vggkit.weights.class_labels import show_labels
from vggkit.weights.formats.detect import HEAD_BYTES, LFS_POINTER, Format, describe_format, tell_format
from vggkit.weights.origin import WeightsOrigin
from vggkit.weights.storage import Storage

FORMAT_VERSION: Final = 7
"""2: `fit_mode` and `reduced_decoding` of the preprocessing. 3: `temperature` and `threshold`. 4: `ranges`.
5: `origin`, and `images` and `split` for what provenance called `pictures` and `part`. 6: `storage`. 7: `task` and
`thresholds`."""
_WITHOUT_STORAGE: Final = 5
"""Written where the weights are in plain float32 and the task is single-label: versions before 6 read that too."""
_WITHOUT_TASK: Final = 6
"""Written where the task is single-label: version 6 reads that too."""
METADATA_KEY: Final = "vggkit"
INPUT_RANGE: Final = "images"
"""The name among `activation_ranges` of the input of the first convolution, all of its channels together."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything about a Classifier but the values of its weights.

    Raises BadConfiguration where the fields do not fit together.
    """

    configuration: Configuration
    """The network."""
    preprocessing: Preprocessing
    """The conversion of an image to its input, with the input convention."""
    labels: tuple[str, ...]
    """Class names, in the order of the logits."""
    task: Task = "single-label"
    """Whether an image has exactly one class, or any number of them; files before format 7 are single-label."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax or the sigmoid, so that probabilities are calibrated."""
    threshold: float = 0.0
    """Single-label: probability in [0, 1] below which the prediction is "unknown"; 0: never."""
    thresholds: tuple[float, ...] = ()
    """Multi-label: probability in (0, 1] from which each class is predicted, in the order of the labels; empty: 0.5
    for each."""
    activation_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest input of each convolution and matrix, for int8, by its name; empty: not measured."""
    storage: Storage = "fp32"
    """How the file holds kernels and matrices; they are restored in float32."""
    origin: WeightsOrigin = field(default_factory=WeightsOrigin)
    """The origin of the weights; the learning rate of a training and the layers that it trains depend on it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Its origin, for people to read: data, recipe, metrics, licence of the weights, versions; any JSON values."""

    def __post_init__(self) -> None:
        for name, kind, hint in (
            ("configuration", Configuration, "see Configuration.from_dict"),
            ("preprocessing", Preprocessing, "see Preprocessing.from_dict"),
            ("origin", WeightsOrigin, "such as WeightsOrigin(kind='trained')"),
            ("provenance", Mapping, "such as {'data': 'bees'}"),
        ):
            if not isinstance(getattr(self, name), kind):
                got = type(getattr(self, name)).__name__
                raise BadConfiguration(f"{name} must be a {kind.__name__}, {hint}; got {got}")
        if self.storage not in get_args(Storage):
            raise BadConfiguration(f"storage must be one of {', '.join(get_args(Storage))}; got {self.storage!r}")
        if self.task not in get_args(Task):
            raise BadConfiguration(f"task must be one of {', '.join(get_args(Task))}; got {self.task!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "thresholds", self._check_thresholds())
        object.__setattr__(self, "provenance", dict(self.provenance))
        object.__setattr__(self, "activation_ranges", _check_ranges(self.activation_ranges))
        if not all(isinstance(label, str) and label for label in self.labels):
            raise BadConfiguration(f"labels must be names that are not empty; got {show_labels(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise BadConfiguration(f"labels must differ from each other; got {show_labels(self.labels)}")
        for name, least, most in (("temperature", 1e-3, 1e3), ("threshold", 0.0, 1.0)):
            value = plain_number(getattr(self, name))
            if not is_number(value) or not least <= value <= most:
                raise BadConfiguration(f"{name} must be a number from {least:g} to {most:g}; got {value!r}")
            object.__setattr__(self, name, value)
        if len(self.labels) != self.configuration.num_classes:
            raise BadConfiguration(
                f"a network of {self.configuration.num_classes} classes needs as many labels, "
                f"got {len(self.labels)}"
            )
        if self.preprocessing.channels != self.configuration.in_channels:
            raise BadConfiguration(
                f"a network of {self.configuration.in_channels} channels cannot take "
                f"channel_order={self.preprocessing.channel_order!r}"
            )
        if self.preprocessing.crop_pixels < self.configuration.minimum_side:
            raise BadConfiguration(
                f"crop_pixels={self.preprocessing.crop_pixels} is below the "
                f"{self.configuration.minimum_side} pixels that this network needs"
            )

    @property
    def activation(self) -> Activation:
        """How logits become probabilities."""
        return Activation(self.task, self.temperature)

    def _check_thresholds(self) -> tuple[float, ...]:
        """Raise BadConfiguration where the thresholds do not fit the task and the classes."""
        found = tuple(map(plain_number, self.thresholds))
        if self.task == "single-label" and found:
            raise BadConfiguration(
                "thresholds belong to task='multi-label'; a single-label Classifier has threshold"
            )
        if self.task == "multi-label" and self.threshold:
            raise BadConfiguration("threshold belongs to task='single-label'; a multi-label one has thresholds")
        if found and len(found) != len(self.labels):
            raise BadConfiguration(f"{len(self.labels)} classes need as many thresholds, got {len(found)}")
        if not all(is_number(value) and 0 < value <= 1 for value in found):
            raise BadConfiguration(f"thresholds must be numbers above 0 and at most 1; got {found!r:.100}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        stored = {} if self.storage == "fp32" else {"storage": self.storage}
        several = {} if self.task == "single-label" else {"task": self.task, "thresholds": list(self.thresholds)}
        return {
            "format_version": FORMAT_VERSION if several else _WITHOUT_TASK if stored else _WITHOUT_STORAGE,
            "configuration": self.configuration.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": list(self.labels),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "ranges": {name: list(ends) for name, ends in self.activation_ranges.items()},
            **stored,
            **several,
            "origin": self.origin.to_dict(),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The card that `to_dict` gave; raises BadConfiguration for anything else."""
        version = values.get("format_version") if isinstance(values, Mapping) else None
        if not isinstance(version, int) or version < 1:
            raise BadConfiguration("is not a card of vggkit: it states no format_version")
        if version > FORMAT_VERSION:
            raise BadConfiguration(
                f"was written in format {version}, and this vggkit reads up to {FORMAT_VERSION}; update vggkit"
            )
        labels, provenance = values.get("labels"), values.get("provenance", {})
        if not isinstance(labels, list) or not isinstance(provenance, dict):
            raise BadConfiguration("the card's labels must be a list and its provenance a mapping")
        if version < 5:
            origin, provenance = WeightsOrigin.from_provenance(provenance), _rename_entries(provenance)
        else:
            origin = WeightsOrigin.from_dict(values.get("origin", {}))
        return cls(
            configuration=Configuration.from_dict(values.get("configuration", {})),
            preprocessing=Preprocessing.from_dict(values.get("preprocessing", {})),
            labels=tuple(labels),
            task=values.get("task", "single-label"),
            temperature=values.get("temperature", 1.0),
            threshold=values.get("threshold", 0.0),
            thresholds=tuple(values.get("thresholds", ())),
            activation_ranges=values.get("ranges", {}),
            storage=values.get("storage", "fp32"),
            origin=origin,
            provenance=provenance,
        )

    def with_reduced_decoding(self, reduced_decoding: bool) -> Self:
        """The same, but where that is true the Classifier's JPEGs are decoded at a smaller scale."""
        fed = self.preprocessing.with_reduced_decoding(reduced_decoding)
        return self if fed is self.preprocessing else replace(self, preprocessing=fed)

    def of_other_weights(self) -> Self:
        """Without what was fitted to these weights alone: temperature, thresholds, ranges, and fewer bits."""
        return replace(self, temperature=1.0, threshold=0.0, thresholds=(), activation_ranges={}, storage="fp32")

    def to_metadata(self) -> dict[str, str]:
        """The safetensors header's `__metadata__`; raises BadConfiguration where provenance is no JSON."""
        try:
            text = json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as problem:
            raise BadConfiguration(
                "a Classifier's provenance and labels are written as JSON in UTF-8: texts, finite numbers, True, "
                f"False, None, lists and mappings of these ({problem})"
            ) from problem
        return {"format": "pt", METADATA_KEY: text}


def demand_classifier(given: object, verb: str) -> Card:
    """The card of the Classifier that is passed to a function, of its network as it is now.

    Raises BadInput for anything else, with the code that makes a Classifier of it, and BadConfiguration where the
    network was changed to one that no Configuration describes.
    """
    card = getattr(given, "card", None)
    if isinstance(card, Card):
        return card
    hint = ""
    if isinstance(getattr(given, "configuration", None), Configuration):
        hint = (
            "; make one of a network: vggkit.Classifier(network, labels=[…], preprocessing=vggkit.Preprocessing())"
        )
    raise BadInput(f"{verb} takes a Classifier or its place, got {type(given).__name__}{hint}")


def find_card(path: str | Path) -> Card | None:
    """The card in a file, None for a file of weights without one; raises BadCheckpoint for any other file."""
    path = demand_path(path)
    if not path.is_file():
        raise BadCheckpoint(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if _find_format(path) != "safetensors":
        return None
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, MemoryError, UnicodeError) as problem:
        raise BadCheckpoint(f"{path}: is not a whole safetensors file ({problem})") from problem
    return parse_card(metadata, path)


def parse_card(metadata: Mapping[str, str], path: Path) -> Card | None:
    """The card in a file's metadata, None where there is none; raises BadCheckpoint, naming the path."""
    if METADATA_KEY not in metadata:
        return None
    try:
        return Card.from_dict(json.loads(metadata[METADATA_KEY]))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise BadCheckpoint(f"{path}: its vggkit card is not JSON ({problem})") from problem
    except VggkitError as problem:
        raise BadCheckpoint(f"{path}: {problem}") from problem


def _find_format(path: Path) -> Format:
    """The format of a file of weights; raises BadCheckpoint, naming it, for any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    known = tell_format(head)
    if known is not None:
        return known
    advice = "name a Classifier's .safetensors file, or a run's folder"
    if head.startswith(LFS_POINTER):
        advice = "run `git lfs pull` where it was cloned"
    raise BadCheckpoint(f"{path}: is {describe_format(head)}, not a Classifier's safetensors file; {advice}")


def read_entry(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A mapping in provenance by the names that lead to it; empty where there is none, for it may hold anything."""
    found: object = values
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _rename_entries(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of a file of format 1 to 4 with the current names."""
    renamed = {"data": {"pictures": "images"}, "metrics": {"part": "split"}}
    renamed["calibration"] = renamed["data"] | renamed["metrics"]
    return {
        name: {renamed[name].get(key, key): entry for key, entry in value.items()}
        if name in renamed and isinstance(value, Mapping)
        else value
        for name, value in provenance.items()
    }


def _check_ranges(activation_ranges: object) -> dict[str, tuple[float, float]]:
    """Ranges as pairs of numbers; raises BadConfiguration for what cannot be ranges."""
    checked: dict[str, tuple[float, float]] = {}
    for name, ends in (
        activation_ranges.items() if isinstance(activation_ranges, Mapping) else [("", activation_ranges)]
    ):
        pair = tuple(map(plain_number, ends)) if isinstance(ends, list | tuple) else ()
        finite = all(map(is_number, pair))
        if len(pair) != 2 or not finite or not pair[0] <= 0 <= pair[1]:
            raise BadConfiguration(
                "ranges must be pairs of finite numbers by the names of layers, the first at most 0 and the second "
                f"at least 0; got {name}: {ends!r}"
            )
        checked[str(name)] = (float(pair[0]), float(pair[1]))
    return checked
