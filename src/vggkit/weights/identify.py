"""Identification of a file of weights by its keys and shapes, not by its name. No torch here.

Most files hold a network of the paper's table, or one that their metadata states, in a known dialect: then all keys
and shapes agree, and nothing is left to determine. The others are read layer by layer:
`layer_matches` puts their modules in the places of a VGG by name or by order, and `layer_matching` lists the
networks that these shapes may be of.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

from vggkit.errors import BadConfiguration
from vggkit.models.configuration import MODELS, Configuration
from vggkit.weights.card import METADATA_KEY, Card, parse_card
from vggkit.weights.dialects import Dialect, Place, Source, list_zero_biases, locate_keys, map_keys
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identification import Identification, Reading
from vggkit.weights.input_conventions import Evidence, find_evidence, read_statements
from vggkit.weights.layer_matches import Sheet, lay_out
from vggkit.weights.layer_matching import Recognition, choose_sheet, list_networks
from vggkit.weights.locate import locate_model
from vggkit.weights.verdict import describe_shapes, name_other_network, write_load_line, write_verdict


@dataclass(frozen=True, kw_only=True)
class Examination:
    """An identification, and where each tensor lies; what loading and converting start from."""

    identification: Identification
    """The identification of the file."""
    file: WeightFile
    """The file, of which keys and shapes are used."""
    card: Card | None = None
    """The card of a Classifier's file."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """For each canonical key of the network that the file holds, its source."""
    labels: tuple[str, ...] | None = None
    """Class names, from a card or from the metadata of a converted file."""
    chosen: Sheet | None = None
    """The file's modules in their places, as this reading has them; None where its keys name all of them."""

    @cached_property
    def sheets(self) -> list[Sheet]:
        """The file's modules in their places, for every reading of its head; none without convolutions."""
        return lay_out(self.file.entries, self.file.modules)

    @property
    def is_nameless(self) -> bool:
        """Whether no names in the file identify its layers."""
        return not self.sheets or self.sheets[0].scheme == "order"

    def lay_out_for(self, configuration: Configuration) -> Sheet | None:
        """The file's modules in the places that this network has for most of them."""
        return choose_sheet([self.chosen, *self.sheets] if self.chosen else self.sheets, configuration)


def identify(path: str | Path) -> Identification:
    """Identify the network in a file of weights by its shapes, never by its name, and without loading it whole.

    Args:
        path: A file, a run's folder, a model's name for its published weights, or `hf://owner/name`.

    Raises BadCheckpoint for a file that is broken or unsafe, or holds no tensors. A network that is no VGG
    is no error: its `is_vgg` is False and its `verdict` describes what was found.
    """
    with open_weights(locate_model(path)) as file:
        return examine(file).identification


def examine(file: WeightFile, *, reading: int = 0) -> Examination:
    """Identify an open file, and find its tensors.

    Args:
        file: The open file.
        reading: Which of the networks that it may contain is wanted, where there are several; see `Identification`.

    Raises BadCheckpoint, and BadConfiguration for a reading that there is not.
    """
    card = parse_card(file.metadata, file.path) if METADATA_KEY in file.metadata else None
    statements = read_statements(file)
    known = _find_known(file, card.configuration if card is not None else statements.configuration)
    if known is not None:
        first = known.sources["features.0.weight"].place, known.sources["features.0.bias"].place.key
        evidence = find_evidence(file, first, card, statements)
        matches = [known]
    else:
        sheets = lay_out(file.entries, file.modules)
        evidence = find_evidence(file, sheets[0].first if sheets else None, card, statements)
        other = name_other_network(file.entries)
        if other is not None and card is None:
            sheets = []
        matches = [
            _Match(found, sheet.locate(found.configuration), _name_dialect(file, sheet), sheet)
            for sheet, found in list_networks(sheets, card, statements, evidence.network)
        ]
        if not matches:
            verdict = other or f"not a VGG: {describe_shapes(file.entries, sheets[0] if sheets else None)}"
            return Examination(identification=_describe_other(file, verdict), file=file)
    if not 0 <= reading < len(matches):
        raise BadConfiguration(
            f"{file.path}: reading={reading} is none of its readings, which are 0 to {len(matches) - 1}; "
            "vggkit identify lists them"
        )
    examinations = [
        _compare(file, match, evidence, reading=number if len(matches) > 1 else None, card=card)
        for number, match in enumerate(matches)
    ]
    readings = tuple(
        Reading(match.recognition.configuration, match.recognition.description, each.identification.load_line)
        for match, each in zip(matches, examinations, strict=True)
    )
    chosen = examinations[reading]
    return replace(chosen, identification=replace(chosen.identification, readings=readings, reading=reading))


@dataclass(frozen=True, slots=True)
class _Match:
    """A network that the file's shapes may be of, and where each of its tensors lies there, of any shape."""

    recognition: Recognition
    sources: Mapping[str, Source]
    dialect: Dialect | str
    sheet: Sheet | None = None
    """The file's modules in their places, where they were needed for it."""


def _find_known(file: WeightFile, stated: Configuration | None) -> _Match | None:
    """The network that the file states, or a row of the table, that its keys and shapes are in a dialect."""
    for dialect in get_args(Dialect):
        for configuration in [stated] if stated is not None else _list_rows(file, dialect):
            sources = locate_keys(file.entries, configuration, dialect)
            if sources is not None:
                return _Match(Recognition(configuration, configuration.num_classes), sources, dialect)
    return None


def _list_rows(file: WeightFile, dialect: Dialect) -> Iterator[Configuration]:
    """The rows of the table with as many classes and channels as the file has where that dialect keeps them."""
    for row in MODELS.values():
        try:
            places = map_keys(row, dialect)
        except BadConfiguration:
            continue
        filters, bias = places["features.0.weight"], places["classifier.6.bias"]
        first, last = (file.entries.get(place.key) for place in (filters, bias))
        if first is None or last is None or len(first.shape) != 4 or len(last.shape) != 1:
            continue
        channels, classes = first.shape[2 if filters.layout == "hwio" else 1], last.shape[0]
        if channels and classes and _is_listed(file, row, filters, bias):
            yield replace(row, in_channels=channels, num_classes=classes)


def _is_listed(file: WeightFile, row: Configuration, filters: Place, bias: Place) -> bool:
    """Whether the modules without tensors are there too, where torch lists them: another network has fewer."""
    modules: list[str] = []
    if filters.key == "features.0.weight":
        modules += [f"features.{layer.index}" for layer in row.trunk]
    if bias.key == "classifier.6.bias":
        modules += [f"classifier.{index}" for index in range(7)]
    return not file.modules or set(modules) <= set(file.modules)


def _describe_other(file: WeightFile, verdict: str) -> Identification:
    """A file of another network."""
    return Identification(
        path=file.path,
        is_vgg=False,
        verdict=verdict,
        dtype=_name_dtype(file),
        container=file.container,
        stripped=tuple(file.stripped),
        unexpected=tuple(file.entries),
    )


def _name_dtype(file: WeightFile) -> str | None:
    """The type of all weights; counters of batch norm aside."""
    types = {entry.dtype for key, entry in file.entries.items() if not key.endswith("num_batches_tracked")}
    return next(iter(types)) if len(types) == 1 else "mixed" if types else None


def _compare(
    file: WeightFile, match: _Match, evidence: Evidence, *, card: Card | None, reading: int | None
) -> Examination:
    """Compares the tensors that the recognised network needs with those that the file holds."""
    recognition, sheet, dialect = match.recognition, match.sheet, match.dialect
    configuration = recognition.configuration
    expected = configuration.state_shapes()
    located = {key: source for key, source in match.sources.items() if key in expected}
    sources = {key: source for key, source in located.items() if source.shape == expected[key]}
    # Files older than PyTorch 0.4.1 do not count batches.
    known = {*located, *list_zero_biases(configuration, located)}
    lacking = [key for key in expected if key not in known and not key.endswith("num_batches_tracked")]
    used = {key for source in located.values() for key in source.keys}
    unexpected = tuple(key for key in file.entries if key not in used)
    misshapen = tuple(
        f"{source.place.key} {source.shape} in place of {expected[key]}"
        for key, source in located.items()
        if key not in sources
    )
    labels = evidence.labels if len(evidence.labels or ()) == recognition.num_classes else None
    head = configuration.head if any(key.startswith("classifier.") for key in sources) else None
    missing = _name_missing(lacking, configuration, dialect)
    identification = Identification(
        path=file.path,
        is_vgg=True,
        verdict=write_verdict(
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
        preprocessing=evidence.preprocessing,
        evidence=evidence.evidence,
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
    return Examination(
        identification=identification, file=file, card=card, sources=sources, labels=labels, chosen=sheet
    )


def _name_dialect(file: WeightFile, sheet: Sheet) -> Dialect | str:
    """The dialect of the keys; `ordered` for names that are none of them."""
    names = [module.name for layer in sheet.head.values() for module in layer.modules]

    def matches(pattern: str) -> bool:
        return all(re.fullmatch(pattern, name) for name in names)

    match sheet.scheme:
        case "index" if matches(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "torchvision"
        case "index" if matches(r"(.*\.)?(pre_logits\.fc[12]|head\.fc)"):
            return "timm"
        case "blocks" if matches(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "blocks"
        case "names" if matches(r"(.*[./])?fc\d+(\.[01])?"):
            first = sheet.trunk[min(sheet.trunk)]
            plain = first.keys["weight"].endswith(f"{first.name}.weight") and not sheet.channels_last
            return "explicit" if plain and file.container != "npz" else "caffe"
        case "units" if matches(r"(.*\.)?classifier\.\d+"):
            return "mmpretrain"
        case "keras":
            return "keras"
        case "order" if file.container.startswith("keras") or sheet.channels_last:
            return "keras"
    return "ordered"


def _name_missing(missing: list[str], configuration: Configuration, dialect: str) -> tuple[str, ...]:
    """Canonical keys as the file's dialect would name them, where it can."""
    if dialect == "ordered" or not missing:
        return tuple(missing)
    try:
        places = map_keys(configuration, dialect)  # type: ignore[arg-type]
    except BadConfiguration:
        try:
            places = map_keys(configuration, dialect, trunk_only=True)  # type: ignore[arg-type]
        except BadConfiguration:
            places = {}
    return tuple(places[key].key if key in places else key for key in missing)
