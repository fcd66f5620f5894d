"""A Classifier: a VGG that knows how to feed itself and what its answers mean.

Shape letters: N pictures, C channels, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vggkit.errors import BadCheckpoint
from vggkit.images.preprocessing import Preprocessing, suit_preprocessing
from vggkit.networks.card import Card, read_card
from vggkit.networks.checkpoints import read_weights, take_weights, write_weights
from vggkit.networks.configurations import Configuration, Head, Scheme, configure
from vggkit.networks.vgg import VGG


class Classifier:
    """A network with its preprocessing, labels and provenance; one `.safetensors` file holds all of it.

    Args:
        network: The VGG; its number of classes is the number of labels.
        labels: Class names in the order of the logits.
        preprocessing: How a picture becomes the network's input.
        provenance: Data, recipe, metrics, licence of the weights, versions; any JSON values.

    Raises BadConfiguration where these do not fit together.
    """

    def __init__(
        self,
        network: VGG,
        *,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.card = Card(
            configuration=network.configuration,
            preprocessing=preprocessing,
            labels=tuple(labels),
            provenance=provenance or {},
        )

    @property
    def configuration(self) -> Configuration:
        """What the network is."""
        return self.card.configuration

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the network's input."""
        return self.card.preprocessing

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.card.labels

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it comes from."""
        return self.card.provenance

    @classmethod
    def create(
        cls,
        model: str | Configuration = "vgg11",
        *,
        labels: Sequence[str],
        weights: str | Path | None = None,
        preprocessing: Preprocessing | None = None,
        in_channels: int | None = None,
        head: Head | None = None,
        dropout: float | None = None,
        until: str | None = None,
        initialization: Scheme = "kaiming",
    ) -> Self:
        """A Classifier to train, with random weights or starting from a file's.

        Args:
            model: A name of `list_models()`, or a Configuration.
            labels: Class names.
            weights: A `.safetensors` or `.pth` file with torchvision's keys. Its last layer is
                renewed where the number of classes differs, its head where another one is asked for;
                `provenance["weights"]` says which keys kept random values.
            preprocessing: None: ImageNet's at 224 pixels, grey for one channel.
            in_channels: 3, or 1 for grey pictures; first filters of `weights` are adapted.
            head: `fc`, `dense` or `pool`.
            dropout: Chance in [0, 1).
            until: Last layer of the trunk, such as `relu3_4`.
            initialization: Scheme of the random values; see `initialize`.

        Raises UnknownName, BadConfiguration and BadCheckpoint.
        """
        configuration = configure(
            model, num_classes=len(labels), in_channels=in_channels, head=head, dropout=dropout, until=until
        )
        preprocessing = preprocessing or suit_preprocessing(in_channels=configuration.in_channels)
        # Fitting together is checked before a network of half a gigabyte is built.
        Card(configuration=configuration, preprocessing=preprocessing, labels=tuple(labels))
        provenance: dict[str, Any] = {}
        found: dict[str, Tensor] = {}
        if weights is not None:
            found, fresh = take_weights(configuration, read_weights(weights), source=str(weights))
            provenance["weights"] = {"file": Path(weights).name, "taken": len(found), "random": fresh}
        network = VGG(configuration, initialization=initialization)
        network.load_state_dict(found, strict=False)
        return cls(network, labels=labels, preprocessing=preprocessing, provenance=provenance)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The Classifier that `save` wrote; raises BadCheckpoint."""
        card = read_card(path)
        weights = read_weights(path)
        expected = card.configuration.state_shapes()
        found = {key: tuple(value.shape) for key, value in weights.items()}
        if found != expected:
            wrong = sorted(key for key in expected.keys() | found if expected.get(key) != found.get(key))
            raise BadCheckpoint(f"{path}: its weights do not fit its own configuration ({', '.join(wrong[:4])} …)")
        with torch.device("meta"):
            network = VGG(card.configuration)
        network.load_state_dict(weights, assign=True)
        network.requires_grad_(True)
        return cls(network, labels=card.labels, preprocessing=card.preprocessing, provenance=card.provenance)

    def save(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Write everything to one `.safetensors` file, whole or not at all.

        Args:
            path: The file; its folders are made.
            provenance: Entries to set in what is already known, in the file and here.

        Raises BadOutput.
        """
        if provenance:
            self.card = Card(
                configuration=self.configuration,
                preprocessing=self.preprocessing,
                labels=self.labels,
                provenance={**self.provenance, **provenance},
            )
        write_weights(path, self.network.state_dict(), self.card.to_metadata())

    def __repr__(self) -> str:
        return (
            f"Classifier({self.configuration.model}, head={self.configuration.head!r}, "
            f"{len(self.labels)} classes, {self.preprocessing.crop_pixels} pixels)"
        )


def load(path: str | Path) -> Classifier:
    """The Classifier in a file, or the best one of a run's folder: network, weights, preprocessing,
    labels and provenance; raises BadCheckpoint.
    """
    best = Path(path) / "best.safetensors"
    return Classifier.load(best if best.is_file() else path)
