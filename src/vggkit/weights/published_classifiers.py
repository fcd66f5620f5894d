"""Published ImageNet models by their names: tensors for a network, and the file of a Classifier with its labels.

torch is imported when tensors are read, and not before: a Classifier's file that was written once is found
without it.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.errors import BadCheckpoint
from vggkit.files import take_turn, whole_file
from vggkit.models.configuration import Configuration, find_configuration, list_models
from vggkit.paths import find_home
from vggkit.weights.bundled import BUNDLED
from vggkit.weights.card import Card
from vggkit.weights.dialects import Place, map_keys
from vggkit.weights.origin import WeightsOrigin
from vggkit.weights.pretrained import FetchedWeights, fetch
from vggkit.weights.published import PUBLISHED, PublishedWeights, find_published, imagenet_labels

if TYPE_CHECKING:
    from torch import Tensor

    from vggkit.weights.formats.weight_file import WeightFile

FOLDER: Final = "classifiers"
"""The folder in `VGGKIT_HOME` for the files of Classifiers."""
LONGEST_SECONDS: Final = 1800.0
"""Longest wait for another process that writes the same file."""


def is_model_name(place: str | Path) -> bool:
    """Whether `place` is a name of `list_models()` and not a file or folder: an existing path comes first.

    >>> is_model_name("vgg16"), is_model_name("vgg16.pth")
    (True, False)
    """
    return str(place) in list_models() and not Path(place).exists()


def list_classifiers() -> list[str]:
    """The names that `vggkit.load` opens, and every command that takes a MODEL: networks with published ImageNet
    weights, and the classifiers that come with vggkit.

    >>> list_classifiers()[-2:]
    ['vgg19_bn', 'digits']
    """
    return [*(record.model for record in PUBLISHED if record.tag == "imagenet"), *BUNDLED]


def find_published_for(weights: str | Path | None, model: str) -> PublishedWeights | None:
    """The published weights that an option `weights=` names: `imagenet` those of `model`, a model's name its own.

    Raises UnknownName where the named model has none; None where `weights` is a file, or nothing.
    """
    if str(weights) == "imagenet":
        return find_published(model)
    return find_published(str(weights)) if weights is not None and is_model_name(weights) else None


def find_published_file(model: str, *, progress: bool = True) -> Path:
    """The file of the published ImageNet Classifier of that name, with its 1,000 labels and its preprocessing.

    The download (see `fetch`) is written once more as a Classifier's file, `VGGKIT_HOME/classifiers/
    <model>-<first 8 digits of the download's SHA-256>.safetensors`, as large as the download: 507 to 548 MiB.
    From then on the download is not needed and may be deleted.

    Args:
        model: A name of `list_models()`.
        progress: Report downloading and writing on standard error.

    Raises UnknownName where nobody has published such weights, naming the models that have some, BadDownload,
    BadCheckpoint where the downloaded file is not of that network, and BadOutput.
    """
    record = find_published(model)
    folder = find_home() / FOLDER
    path = folder / f"{model}-{record.digest_prefix}.safetensors"
    if path.is_file():
        return path
    fetched = fetch(model, progress=progress)
    path = folder / f"{model}-{fetched.sha256[:8]}.safetensors"

    def wait() -> None:
        if progress:
            sys.stderr.write(f"waiting for another process, which writes {path}\n")

    with take_turn(folder / f".{path.name}.lock", LONGEST_SECONDS, meanwhile=wait):
        if not path.is_file():
            if progress:
                size_mib = fetched.path.stat().st_size / 2**20
                sys.stderr.write(f"writing {model} as a Classifier to {path} ({size_mib:.0f} MiB, once)\n")
            _write_classifier(fetched, path)
    return path


def read_published(model: str, configuration: Configuration, *, progress: bool = True) -> "dict[str, Tensor]":
    """Tensors by canonical key with which a network starts from the published weights of a model.

    Left out are the last layer where its place or its number of classes differs, and a pool head, which no
    published weights have. First filters are adapted to `in_channels`.

    Args:
        model: A name of `list_models()`.
        configuration: The network: the model's, with other classes, channels or head, or cut.
        progress: Report downloading on standard error.

    Raises what `fetch` raises, and BadCheckpoint where the downloaded file is not of that model.
    """
    from vggkit.models.initialization import adapt_filters
    from vggkit.weights.dialects import from_layout
    from vggkit.weights.formats.detect import open_weights

    fetched = fetch(model, progress=progress)
    whole = find_configuration(model)
    last = configuration.fully_connected[-1].index
    same_classes = (whole.fully_connected[-1].index, whole.num_classes) == (last, configuration.num_classes)
    left_out = "classifier." if configuration.head == "pool" else () if same_classes else f"classifier.{last}."
    with open_weights(fetched.path) as file:
        places = _find_places(fetched, file)
        found = {
            key: from_layout(file.read(places[key].key), places[key]).contiguous()
            for key in configuration.state_shapes()
            if key in places and not key.startswith(left_out)
        }
    found["features.0.weight"] = adapt_filters(found["features.0.weight"], configuration.in_channels)
    return found


def _find_places(fetched: FetchedWeights, file: "WeightFile") -> dict[str, Place]:
    """The place of each canonical tensor in the download; raises BadCheckpoint for weights of another network."""
    configuration = find_configuration(fetched.published.model)
    found, wrong = {}, []
    places = map_keys(configuration, fetched.dialect)
    for key, shape in configuration.state_shapes().items():
        entry = file.entries.get(places[key].key)
        if entry is not None and entry.shape == places[key].shape_of(shape):
            found[key] = places[key]
        elif entry is not None or not key.endswith("num_batches_tracked"):  # PyTorch before 0.4.1 had none
            wrong.append(places[key].key)
    if wrong:
        raise BadCheckpoint(
            f"{fetched.path}: does not contain the weights of {configuration.model}; {len(wrong)} tensors are "
            f"missing or of another shape, such as {wrong[0]}; delete the file and run again"
        )
    return found


def _write_classifier(fetched: FetchedWeights, path: Path) -> None:
    """Write the Classifier's file tensor by tensor, whole or not at all."""
    import torch

    from vggkit.weights.dialects import from_layout
    from vggkit.weights.formats.detect import open_weights
    from vggkit.weights.writers import Piece, write_pieces

    record = fetched.published
    card = Card(
        configuration=find_configuration(record.model),
        preprocessing=record.preprocessing,
        labels=imagenet_labels(),
        origin=WeightsOrigin(kind="loaded", source=fetched.path.name),
        provenance={"weights": {"file": fetched.path.name, "dialect": fetched.dialect, **fetched.to_dict()}},
    )
    with open_weights(fetched.path) as file, whole_file(path) as beside:
        places = _find_places(fetched, file)

        def read(key: str) -> "Tensor":
            return from_layout(file.read(places[key].key), places[key]) if key in places else torch.zeros(())

        pieces = [
            Piece(key, shape, file.entries[places[key].key].dtype, partial(read, key))
            if key in places
            else Piece(key, shape, "int64", partial(read, key))
            for key, shape in card.configuration.state_shapes().items()
        ]
        write_pieces(beside, ".safetensors", pieces, card.to_metadata())
