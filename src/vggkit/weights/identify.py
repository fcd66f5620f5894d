"""What a file of weights really is, by its shapes and not by its name.

Shape letters: O and I channels (or numbers) out and in, K side of a window.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration, Head
from vggkit.weights.card import Card
from vggkit.weights.dialects import Dialect, map_keys
from vggkit.weights.evidence import Evidence, find_evidence, read_card_of, read_statements
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.input_conventions import describe_convention
from vggkit.weights.layer_matches import Sheet, Source, lay_out
from vggkit.weights.layer_matching import Recognition
from vggkit.weights.locate import locate_model
from vggkit.weights.readings import choose_sheet, list_networks
from vggkit.weights.verdicts import describe_shapes, name_other_network, say_verdict, write_load_line


@dataclass(frozen=True, slots=True)
class Reading:
    """One of the networks that a file's tensors may be of."""

    configuration: Configuration
    """The network."""
    said: str
    """What tells it from the other readings, such as `cut at pool2`; empty where there is no other."""
    load_line: str | None
    """The line of Python that loads the file so, with `import vggkit as vk`; None where nothing would."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {"settings": self.configuration.to_dict(), "said": self.said, "load_line": self.load_line}


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What a file of weights is."""

    path: Path
    """The file."""
    is_vgg: bool
    """Whether its shapes are those of a VGG, whole or in part."""
    verdict: str
    """One sentence for people."""
    dialect: Dialect | str | None = None
    """How its keys are written; `ordered` where no name says which layer is which and their order does."""
    configuration: Configuration | None = None
    """The network; `.model` is its row of the paper's table, or `custom`. Where the file has no head,
    or no last layer, it has the paper's."""
    batch_norm: bool = False
    """Batch normalisation behind each convolution."""
    num_classes: int | None = None
    """Length of the logits; None where the file has no last layer."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits, where the file keeps them."""
    in_channels: int | None = None
    """Channels of the images."""
    head: Head | None = None
    """fc or pool; None where the file has none. The dense head holds the same weights as fc."""
    until: str | None = None
    """The last layer of a cut trunk; None: the trunk is whole."""
    dtype: str | None = None
    """torch's name of the weights' type, `mixed` for several."""
    container: str
    """The file's format: `safetensors`, `pytorch`, `npz`, `keras-h5`, `keras-3`, `keras-archive`."""
    stripped: tuple[str, ...] = ()
    """Wrappers and prefixes that were taken off, such as `state_dict` and `module.`."""
    complete: bool = False
    """Every tensor of the network is there, in its shape."""
    missing: tuple[str, ...] = ()
    """Keys that the network needs and the file lacks, as its dialect names them."""
    misshapen: tuple[str, ...] = ()
    """Keys of another shape than the network's, with both shapes."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that are none of the network's."""
    preprocessing: Preprocessing | None = None
    """What the network is to be fed, with its input convention; None: unknown."""
    evidence: str | None = None
    """Where `preprocessing` is known from: `card`, `metadata` or `fingerprint`."""
    load_line: str | None = None
    """The line of Python that loads it, with `import vggkit as vk`; None where nothing would."""
    readings: tuple[Reading, ...] = ()
    """Every network that its tensors may be of, as activations, pools and cuts have none; this one is the first,
    unless another was asked for. None where it is no VGG."""
    reading: int = 0
    """Which of them this is."""

    @property
    def input_convention(self) -> str | None:
        """Channel order, range, mean and std in a few words; None: unknown, say `--input-convention`."""
        return describe_convention(self.preprocessing) if self.preprocessing else None

    @property
    def model(self) -> str | None:
        """The paper's network by its name here, `custom` for another VGG, None for no VGG."""
        return self.configuration.model if self.configuration else None

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `configuration` is the model's name, `settings` all of its Configuration."""
        return {
            "path": str(self.path),
            "is_vgg": self.is_vgg,
            "verdict": self.verdict,
            "dialect": self.dialect,
            "configuration": self.model,
            "settings": self.configuration.to_dict() if self.configuration else None,
            "batch_norm": self.batch_norm,
            "num_classes": self.num_classes,
            "labels": list(self.labels) if self.labels else None,
            "in_channels": self.in_channels,
            "head": self.head,
            "until": self.until,
            "dtype": self.dtype,
            "container": self.container,
            "stripped": list(self.stripped),
            "complete": self.complete,
            "missing": list(self.missing),
            "misshapen": list(self.misshapen),
            "unexpected": list(self.unexpected),
            "input_convention": self.input_convention,
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "evidence": self.evidence,
            "load_line": self.load_line,
            "readings": [reading.to_dict() for reading in self.readings],
            "reading": self.reading,
        }

    def __str__(self) -> str:
        return f"{self.path}: {self.verdict}"


@dataclass(frozen=True, kw_only=True)
class Examination:
    """An identification, and where each tensor lies; what loading and converting start from."""

    identification: Identification
    """What the file is."""
    sheet: Sheet | None
    """Its modules in their places; None where it has no convolutions."""
    card: Card | None = None
    """The card of a Classifier's file."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """For each canonical key of the network that the file holds, its source."""
    sheets: tuple[Sheet, ...] = ()
    """Its modules in their places, for every reading of its head."""
    labels: tuple[str, ...] | None = None
    """Class names, from a card or from what converting kept of one."""

    def lay_out_for(self, configuration: Configuration) -> Sheet | None:
        """Its modules in the places that this network has for most of them."""
        return choose_sheet([self.sheet, *self.sheets] if self.sheet else [], configuration)


def identify(path: str | Path) -> Identification:
    """What a file of weights really is: by its shapes, never by its name, and without loading it whole.

    Args:
        path: A file, a run's folder, a model's name for its published weights, or `hf://owner/name`.

    Raises BadCheckpoint for a file that is broken or unsafe, or holds no tensors. A network that is no VGG
    is no error: its `is_vgg` is False and its `verdict` says what was found.
    """
    with open_weights(locate_model(path)) as file:
        return examine(file).identification


def examine(file: WeightFile, *, reading: int = 0) -> Examination:
    """Identify an open file, and find its tensors.

    Args:
        file: The open file.
        reading: Which of the networks that it may hold is taken, where there are several; see `Identification`.

    Raises BadCheckpoint, and BadConfiguration for a reading that there is not.
    """
    card, sheets = read_card_of(file), lay_out(file.entries, file.modules)
    statements = read_statements(file)
    said = find_evidence(file, sheets[0] if sheets else None, card, statements)
    other = name_other_network(file.entries)
    found = [] if other is not None and card is None else list_networks(sheets, card, statements, said.network)
    if not found:
        sheet = sheets[0] if sheets else None
        identification = Identification(
            path=file.path,
            is_vgg=False,
            verdict=other or f"not a VGG: {describe_shapes(file.entries, sheet)}",
            dtype=_name_dtype(file),
            container=file.container,
            stripped=tuple(file.stripped),
            unexpected=tuple(file.entries),
        )
        return Examination(identification=identification, sheet=sheet)
    if not 0 <= reading < len(found):
        raise BadConfiguration(
            f"{file.path}: reading={reading} is none of its readings, which are 0 to {len(found) - 1}; "
            "vggkit identify lists them"
        )
    examinations = [
        _compare(file, sheet, recognition, said, reading=number if len(found) > 1 else None, card=card)
        for number, (sheet, recognition) in enumerate(found)
    ]
    readings = tuple(
        Reading(recognition.configuration, recognition.said, each.identification.load_line)
        for (_, recognition), each in zip(found, examinations, strict=True)
    )
    chosen = examinations[reading]
    identification = replace(chosen.identification, readings=readings, reading=reading)
    return replace(chosen, identification=identification, sheets=tuple(sheets))


def _name_dtype(file: WeightFile) -> str | None:
    """The type of all weights; counters of batch norm aside."""
    types = {entry.dtype for key, entry in file.entries.items() if not key.endswith("num_batches_tracked")}
    return next(iter(types)) if len(types) == 1 else "mixed" if types else None


def _compare(
    file: WeightFile,
    sheet: Sheet,
    recognition: Recognition,
    said: Evidence,
    *,
    card: Card | None,
    reading: int | None,
) -> Examination:
    """What the recognised network needs against what the file holds."""
    configuration = recognition.configuration
    expected = configuration.state_shapes()
    located = {key: source for key, source in sheet.locate(configuration).items() if key in expected}
    sources = {key: source for key, source in located.items() if source.shape == expected[key]}
    # Files older than PyTorch 0.4.1 do not count batches.
    lacking = [key for key in expected if key not in located and not key.endswith("num_batches_tracked")]
    used = {key for source in located.values() for key in source.keys}
    unexpected = tuple(key for key in file.entries if key not in used)
    misshapen = tuple(
        f"{source.place.key} {source.shape} in place of {expected[key]}"
        for key, source in located.items()
        if key not in sources
    )
    dialect = _name_dialect(file, sheet)
    labels = said.labels if len(said.labels or ()) == recognition.num_classes else None
    head = configuration.head if any(key.startswith("classifier.") for key in sources) else None
    missing = _name_missing(lacking, configuration, dialect)
    identification = Identification(
        path=file.path,
        is_vgg=True,
        verdict=say_verdict(
            recognition,
            sheet,
            path=file.path,
            head=head,
            missing=missing,
            misshapen=misshapen,
            unexpected=unexpected,
        ),
        dialect=dialect,
        configuration=configuration,
        batch_norm=configuration.batch_norm,
        num_classes=recognition.num_classes,
        labels=labels,
        in_channels=configuration.in_channels,
        head=head,
        until=configuration.until,
        dtype=_name_dtype(file),
        container=file.container,
        stripped=tuple(file.stripped),
        complete=not lacking and not misshapen,
        missing=missing,
        misshapen=misshapen,
        unexpected=unexpected,
        preprocessing=said.preprocessing,
        evidence=said.evidence,
        load_line=write_load_line(
            recognition,
            path=file.path,
            is_classifier=card is not None,
            missing=lacking,
            others=(*misshapen, *unexpected),
            reading=reading,
            labelled=labels is not None,
        ),
    )
    return Examination(identification=identification, sheet=sheet, card=card, sources=sources, labels=labels)


def _name_dialect(file: WeightFile, sheet: Sheet) -> Dialect | str:
    """The dialect of the keys; `ordered` for names that are none of them."""
    names = [module.name for layer in sheet.head.values() for module in layer.modules]

    def heads(pattern: str) -> bool:
        return all(re.fullmatch(pattern, name) for name in names)

    match sheet.scheme:
        case "index" if heads(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "torchvision"
        case "index" if heads(r"(.*\.)?(pre_logits\.fc[12]|head\.fc)"):
            return "timm"
        case "blocks" if heads(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "blocks"
        case "names" if heads(r"(.*[./])?fc\d+(\.[01])?"):
            first = sheet.trunk[min(sheet.trunk)]
            plain = first.keys["weight"].endswith(f"{first.name}.weight") and not sheet.channels_last
            return "explicit" if plain and file.container != "npz" else "caffe"
        case "keras":
            return "keras"
        case "order" if file.container.startswith("keras") or sheet.channels_last:
            return "keras"
    return "ordered"


def _name_missing(missing: list[str], configuration: Configuration, dialect: str) -> tuple[str, ...]:
    """Canonical keys as the file's dialect would name them, where it can."""
    if dialect == "ordered":
        return tuple(missing)
    try:
        places = map_keys(configuration, dialect)  # type: ignore[arg-type]
    except BadConfiguration:
        try:
            places = map_keys(configuration, dialect, trunk_only=True)  # type: ignore[arg-type]
        except BadConfiguration:
            places = {}
    return tuple(places[key].key if key in places else key for key in missing)
