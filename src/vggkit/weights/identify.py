"""Identification of a file of weights by its keys and shapes, not by its name. No torch here.

Most files hold a network of the paper's table, or one that their metadata states, in a known dialect: then all keys
and shapes agree, and nothing is left to determine. The others are read layer by layer:
`layer_positions` puts their modules in the places of a VGG by name or by order, and `candidate_networks` lists the
networks that these shapes may be of.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from vggkit.errors import BadConfiguration
from vggkit.models.configuration import MODELS, Configuration
from vggkit.weights.candidate_networks import Candidate, choose_positions, list_candidates
from vggkit.weights.card import METADATA_KEY, Card, parse_card
from vggkit.weights.dialects import Dialect, Place, Source, list_zero_biases, locate_keys, map_keys
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identification import Identification, Reading
from vggkit.weights.identify_messages import describe_shapes, write_load_line, write_verdict
from vggkit.weights.input_conventions import Evidence, find_evidence, read_statements
from vggkit.weights.layer_positions import LayerPositions, list_positions
from vggkit.weights.locate import locate_model
from vggkit.weights.other_networks import name_other_network


@dataclass(frozen=True, kw_only=True)
class IdentifiedFile:
    """A file with its identification and the place of each tensor, from which it is loaded or converted."""

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
    chosen: LayerPositions | None = None
    """The file's modules in their places, as this reading has them; None where its keys name all of them."""

    @cached_property
    def all_positions(self) -> list[LayerPositions]:
        """The file's modules in their places, for every reading of its head; none without convolutions."""
        return list_positions(self.file.entries, self.file.modules)

    @property
    def is_nameless(self) -> bool:
        """Whether no names in the file identify its layers."""
        return not self.all_positions or self.all_positions[0].scheme == "order"

    def positions_for(self, configuration: Configuration) -> LayerPositions | None:
        """The file's modules in the places that this network has for most of them."""
        return choose_positions(
            [self.chosen, *self.all_positions] if self.chosen else self.all_positions, configuration
        )


def identify(path: str | Path | Mapping[str, Any]) -> Identification:
    """Identify the network in a file of weights by its shapes, never by its name, and without loading it whole.

    Args:
        path: A file, a run's folder, a model's name for its published weights, or `hf://owner/name`; or a state
            dict in memory, such as `network.state_dict()`.

    Raises BadCheckpoint for a file that is broken or unsafe, or holds no tensors. A network that is no VGG
    is no error: its `is_vgg` is False and its `verdict` describes what was found.
    """
    with open_weights(path if isinstance(path, Mapping) else locate_model(path)) as file:
        found = identify_file(file)
        return (identify_file(file, void=True) if _is_void(file, found) else found).identification


def _is_void(file: WeightFile, found: IdentifiedFile) -> bool:
    """Whether the head's values are NaN, by its first bias, which is a small tensor."""
    places = (
        source.place.key
        for key, source in found.sources.items()
        if key.startswith("classifier.") and key.endswith("bias")
    )
    return found.card is None and (first := next(places, None)) is not None and not file.is_finite(first)


def identify_file(file: WeightFile, *, reading: int = 0, void: bool = False) -> IdentifiedFile:
    """Identify an open file, and find its tensors.

    Args:
        file: The open file.
        reading: Which of the networks that it may contain is wanted, where there are several; see `Identification`.
        void: Whether the head's values are NaN; they are not read here.

    Raises BadCheckpoint, and BadConfiguration for a reading that there is not.
    """
    card = parse_card(file.metadata, file.path) if METADATA_KEY in file.metadata else None
    statements = read_statements(file)
    known = _find_known(file, card.configuration if card is not None else statements.configuration)
    if known is not None:
        first = known.sources["features.0.weight"].place, known.sources["features.0.bias"].place.key
        evidence = find_evidence(file, first, card, statements)
        candidates = [known]
    else:
        all_positions = list_positions(file.entries, file.modules)
        evidence = find_evidence(file, all_positions[0].first if all_positions else None, card, statements)
        other = name_other_network(file.entries)
        if other is not None and card is None:
            all_positions = []
        candidates = [
            _LocatedCandidate(
                candidate, positions.locate(candidate.configuration), _name_dialect(file, positions), positions
            )
            for positions, candidate in list_candidates(all_positions, card, statements, evidence.network)
        ]
        if not candidates:
            verdict = (
                other or f"not a VGG: {describe_shapes(file.entries, all_positions[0] if all_positions else None)}"
            )
            return IdentifiedFile(identification=_describe_other(file, verdict), file=file)
    if not 0 <= reading < len(candidates):
        raise BadConfiguration(
            f"{file.path}: reading={reading} is none of its readings, which are 0 to {len(candidates) - 1}; "
            "vggkit identify lists them"
        )
    identified_files = [
        _compare(file, located, evidence, reading=number if len(candidates) > 1 else None, card=card, void=void)
        for number, located in enumerate(candidates)
    ]
    readings = tuple(
        Reading(located.candidate.configuration, located.candidate.description, each.identification.load_line)
        for located, each in zip(candidates, identified_files, strict=True)
    )
    chosen = identified_files[reading]
    return replace(chosen, identification=replace(chosen.identification, readings=readings, reading=reading))


@dataclass(frozen=True, slots=True)
class _LocatedCandidate:
    """A candidate with the source of each of its tensors in the file, of any shape."""

    candidate: Candidate
    sources: Mapping[str, Source]
    dialect: Dialect | str
    positions: LayerPositions | None = None
    """The file's modules in their places, where they were needed for it."""


def _find_known(file: WeightFile, stated: Configuration | None) -> _LocatedCandidate | None:
    """The network that the file states, or a row of the table, that its keys and shapes are in a dialect."""
    for dialect in get_args(Dialect):
        for configuration in [stated] if stated is not None else _list_rows(file, dialect):
            sources = locate_keys(file.entries, configuration, dialect)
            if sources is not None:
                return _LocatedCandidate(Candidate(configuration, configuration.num_classes), sources, dialect)
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
    file: WeightFile,
    located: _LocatedCandidate,
    evidence: Evidence,
    *,
    card: Card | None,
    reading: int | None,
    void: bool,
) -> IdentifiedFile:
    """Compares the tensors that the recognised network needs with those that the file holds."""
    candidate, positions, dialect = located.candidate, located.positions, located.dialect
    configuration = candidate.configuration
    expected = configuration.state_shapes()
    present = {key: source for key, source in located.sources.items() if key in expected}
    sources = {key: source for key, source in present.items() if source.shape == expected[key]}
    # Files older than PyTorch 0.4.1 do not count batches.
    known = {*present, *list_zero_biases(configuration, present)}
    lacking = [key for key in expected if key not in known and not key.endswith("num_batches_tracked")]
    used = {key for source in present.values() for key in source.keys}
    unexpected = tuple(key for key in file.entries if key not in used)
    misshapen = tuple(
        f"{source.place.key} {source.shape} in place of {expected[key]}"
        for key, source in present.items()
        if key not in sources
    )
    labels = evidence.labels if len(evidence.labels or ()) == candidate.num_classes else None
    head = configuration.head if any(key.startswith("classifier.") for key in sources) else None
    missing = _name_missing(lacking, configuration, dialect)
    identification = Identification(
        path=file.path,
        is_vgg=True,
        verdict=write_verdict(
            candidate,
            positions,
            path=file.path,
            head=head,
            missing=missing,
            misshapen=misshapen,
            unexpected=unexpected,
            void=void,
        ),
        dialect=dialect,
        configuration=configuration,
        batch_norm=configuration.batch_norm,
        num_classes=candidate.num_classes,
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
            candidate,
            path=file.path,
            is_classifier=card is not None,
            missing=lacking,
            others=(*misshapen, *unexpected),
            reading=reading,
            labelled=labels is not None,
            void=void,
        ),
    )
    return IdentifiedFile(
        identification=identification, file=file, card=card, sources=sources, labels=labels, chosen=positions
    )


def _name_dialect(file: WeightFile, positions: LayerPositions) -> Dialect | str:
    """The dialect of the keys; `ordered` for names that are none of them."""
    names = [module.name for layer in positions.head.values() for module in layer.modules]

    def matches(pattern: str) -> bool:
        return all(re.fullmatch(pattern, name) for name in names)

    match positions.scheme:
        case "index" if matches(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "torchvision"
        case "index" if matches(r"(.*\.)?(pre_logits\.fc[12]|head\.fc)"):
            return "timm"
        case "blocks" if matches(r"(.*\.)?classifier\.\d+(\.[01])?"):
            return "blocks"
        case "names" if matches(r"(.*[./])?fc\d+(\.[01])?"):
            first = positions.trunk[min(positions.trunk)]
            plain = first.keys["weight"].endswith(f"{first.name}.weight") and not positions.channels_last
            return "explicit" if plain and file.container != "npz" else "caffe"
        case "units" if matches(r"(.*\.)?classifier\.\d+"):
            return "mmpretrain"
        case "keras":
            return "keras"
        case "order" if file.container.startswith("keras") or positions.channels_last:
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
