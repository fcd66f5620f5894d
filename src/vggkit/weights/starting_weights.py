"""The weights of a file that a new network starts from: its classes, its preprocessing, and the use of each key."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vggkit.errors import BadCheckpoint, BadConfiguration
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.weights.canonical import CanonicalWeights
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.formats.weight_file import WeightFile
from vggkit.weights.identify import IdentifiedFile, identify_file
from vggkit.weights.last_layer import LastLayer, order_rows
from vggkit.weights.locate import locate_model
from vggkit.weights.model_file import LoadedWeights, select_weights
from vggkit.weights.published import name_imagenet_classes
from vggkit.weights.published_classifiers import find_published_for


def adapt_preprocessing(identified: IdentifiedFile, in_channels: int) -> Preprocessing | None:
    """The preprocessing of a file's weights, for so many channels; None where it is unknown."""
    stated = identified.identification.preprocessing
    if stated is None or stated.channels == in_channels:
        return stated
    if stated.channels != 3 or in_channels not in (1, 4):
        return None
    # Filters summed over the channels see grey images on the mean of their scales, and so they do a fourth channel.
    mean, std = sum(stated.mean) / 3, sum(stated.std) / 3
    if in_channels == 4:
        if stated.channel_order != "RGB":
            return None
        return replace(stated, channel_order="RGBX", mean=(*stated.mean, mean), std=(*stated.std, std))
    return replace(stated, channel_order="L", mean=(mean,), std=(std,))


def list_classes(identified: IdentifiedFile) -> tuple[str, ...] | None:
    """The classes that a file names, in the order of its logits; None where it names none."""
    return identified.card.labels if identified.card is not None else identified.labels


def find_labels(model: str | Configuration, weights: str | Path | Mapping[str, Tensor] | None) -> tuple[str, ...]:
    """The classes that starting weights state, where no labels are given; raises BadConfiguration without any."""
    if weights is not None:
        name = model if isinstance(model, str) else model.model
        if not isinstance(weights, Mapping) and find_published_for(weights, name) is not None:
            return name_imagenet_classes(())
        with open_weights(weights if isinstance(weights, Mapping) else locate_model(weights)) as file:
            known = list_classes(identify_file(file))
        if known is not None:
            return known
    stated = "the weights state no classes" if weights is not None else "there are no weights that state classes"
    raise BadConfiguration(f"labels are needed, as {stated}; write labels=['ant', 'bee'], by the logits' order")


def find_networks(identified: IdentifiedFile) -> list[Configuration]:
    """The networks that a file may be read as, each with its last layer; none where that is not known."""
    found = identified.identification
    if found.head is None or found.num_classes is None or found.configuration is None:
        return []
    return [found.configuration, *(reading.configuration for reading in found.readings)]


def load_starting_weights(
    file: WeightFile,
    identified: IdentifiedFile,
    configuration: Configuration,
    last: LastLayer,
    *,
    allow_partial: bool,
) -> LoadedWeights:
    """The weights of a file that a network starts from, its last layer by class; raises BadCheckpoint."""
    found = identified.identification
    if allow_partial and not found.is_vgg and identified.is_nameless:
        raise BadCheckpoint(f"{file.path}: is {found.verdict}; no part of it is recognised as a VGG")
    weights = CanonicalWeights(file, identified, configuration)
    # A head on a trunk that ends elsewhere reads other numbers, even where there are as many.
    pooled = configuration.head == "pool" and bool(found.readings)
    channels = configuration.in_channels
    ends = [replace(reading.configuration, in_channels=channels).trunk for reading in found.readings]
    loaded = select_weights(
        configuration,
        weights,
        source=str(file.path),
        other_classes=last.reason if last.rows is None else None,
        allow_partial=allow_partial,
        holds=found.verdict,
        head_fits=not pooled or configuration.trunk in ends,
    )
    if last.rows is None:
        return loaded
    return replace(loaded, tensors=order_rows(loaded.tensors, configuration, last.rows))


def describe_use(
    identified: IdentifiedFile, loaded: LoadedWeights, last: LastLayer, configuration: Configuration
) -> dict[str, Any]:
    """The use of each key of the file, for provenance."""
    found, positions = identified.identification, identified.positions_for(configuration)
    keeps_head = loaded.reinitialised is None and last.rows is not None
    reading = {"reading": positions.description} if positions is not None and positions.description else {}
    return reading | {
        "file": found.path.name,
        "dialect": found.dialect,
        "input_convention": found.input_convention,
        "taken": len(loaded.tensors),
        "random": list(loaded.random),
        "renewed": loaded.reinitialised,
        "classes": last.reason if keeps_head else None,
        "used": list(loaded.tensors),
        "missing": list(loaded.missing),
        "ignored": list(loaded.ignored),
    }
