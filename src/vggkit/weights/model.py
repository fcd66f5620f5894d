"""The Model: a VGG with its preprocessing, labels and provenance, in one file.

Shape letters: N images, C channels, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vggkit.arguments import demand_count
from vggkit.errors import BadCheckpoint, BadConfiguration
from vggkit.hardware import derive_seed
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing
from vggkit.models.configuration import Configuration, Head, Scheme
from vggkit.models.configure import configure
from vggkit.models.structure import check_values
from vggkit.models.vgg import VGG
from vggkit.task import Task
from vggkit.weights.card import Card
from vggkit.weights.class_labels import read_labels
from vggkit.weights.classifier_file import read_card
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identify import identify_file
from vggkit.weights.last_layer import match_last_layer
from vggkit.weights.locate import locate_model
from vggkit.weights.model_file import read_weights, write_weights
from vggkit.weights.origin import WeightsOrigin
from vggkit.weights.pretrained import fetch
from vggkit.weights.published import name_imagenet_classes
from vggkit.weights.published_classifiers import find_published_for
from vggkit.weights.starting_weights import (
    adapt_preprocessing,
    describe_use,
    find_labels,
    find_networks,
    list_classes,
    load_starting_weights,
)


class Model:
    """A network with its preprocessing, labels and provenance; one `.safetensors` file holds all of it.

    `vggkit.Classifier` is a Model with the verbs as methods.

    Args:
        network: The VGG; its number of classes is the number of labels.
        labels: Class names in the order of the logits, or a mapping of them to their numbers; see `read_labels`.
        preprocessing: How an image becomes the network's input.
        task: Whether an image has exactly one class (single-label) or any number of them (multi-label).
        temperature: Logits are divided by it before the softmax or the sigmoid.
        threshold: Single-label: probability below which the prediction is "unknown"; 0: never.
        thresholds: Multi-label: probability from which each class is predicted; empty: 0.5 for each.
        activation_ranges: Smallest and largest input of each convolution and matrix, for int8, as
            `measure_ranges` gives them.
        origin: Where the weights come from; None: they are random. A training chooses by it what learns, and its
            learning rate.
        provenance: For people: data, recipe, metrics, licence of the weights, versions; any JSON values.

    Raises BadConfiguration where these do not fit together.
    """

    def __init__(
        self,
        network: VGG,
        *,
        labels: Iterable[str] | Mapping[str, int] | Mapping[int, str],
        preprocessing: Preprocessing,
        task: Task = "single-label",
        temperature: float = 1.0,
        threshold: float = 0.0,
        thresholds: Sequence[float] = (),
        activation_ranges: Mapping[str, tuple[float, float]] | None = None,
        origin: WeightsOrigin | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self._card = Card(
            configuration=network.configuration,
            preprocessing=preprocessing,
            labels=read_labels(labels),
            task=task,
            temperature=temperature,
            threshold=threshold,
            thresholds=tuple(thresholds),
            activation_ranges=activation_ranges or {},
            origin=WeightsOrigin() if origin is None else origin,
            provenance={} if provenance is None else provenance,
        )

    @property
    def network(self) -> VGG:
        """The VGG; it can be replaced by another one."""
        return self._network

    @network.setter
    def network(self, network: VGG) -> None:
        if not isinstance(network, VGG):
            inner = next((name for name in ("module", "_orig_mod") if hasattr(network, name)), None)
            raise BadConfiguration(
                f"a Classifier's network is a vggkit.VGG, got {type(network).__name__}"
                + (f"; give what it wraps, its .{inner}, and keep the wrapper beside it" if inner else "")
            )
        self._network = network

    @property
    def card(self) -> Card:
        """Everything that its file states except the weights, of the network as it is now, changed layers included.

        Raises BadConfiguration, naming the module, where no Configuration describes the network, or the
        labels are not as many as its classes.
        """
        before, now = self._card.configuration, self.network.configuration
        if now == before:
            return self._card
        if now.num_classes != len(self.labels):
            raise BadConfiguration(
                f"the network has {now.num_classes} classes now, and there are {len(self.labels)} labels; name "
                "them all: clf = vggkit.Classifier(clf.network, labels=[…], preprocessing=clf.preprocessing)"
            )
        same = replace(now, dropout=before.dropout) == before
        return replace(self._card if same else self._card.of_other_weights(), configuration=now)

    @card.setter
    def card(self, card: Card) -> None:
        self._card = card

    @property
    def configuration(self) -> Configuration:
        """The configuration of the network as it is now; raises what `card` does."""
        return self.card.configuration

    @property
    def preprocessing(self) -> Preprocessing:
        """The conversion of an image to the network's input."""
        return self._card.preprocessing

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self._card.labels

    @property
    def task(self) -> Task:
        """Whether an image has exactly one class (single-label) or any number of them (multi-label)."""
        return self._card.task

    @property
    def temperature(self) -> float:
        """Logits are divided by it before the softmax or the sigmoid."""
        return self._card.temperature

    @property
    def threshold(self) -> float:
        """Probability below which the prediction is "unknown"; 0: never."""
        return self._card.threshold

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Multi-label: probability from which each class is predicted; empty: 0.5 for each."""
        return self._card.thresholds

    @property
    def activation_ranges(self) -> Mapping[str, tuple[float, float]]:
        """Smallest and largest input of each convolution and matrix, for int8; empty if they were not measured."""
        return self._card.activation_ranges

    @property
    def origin(self) -> WeightsOrigin:
        """The origin of the weights: random, loaded from a file, or trained by vggkit."""
        return self._card.origin

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Data, recipe, metrics, licence of the weights and versions, by name."""
        return self._card.provenance

    @classmethod
    def create(
        cls,
        model: str | Configuration = "vgg11",
        *,
        labels: Iterable[str] | Mapping[str, int] | Mapping[int, str] | None = None,
        task: Task = "single-label",
        weights: str | Path | Mapping[str, Tensor] | None = None,
        preprocessing: Preprocessing | None = None,
        in_channels: int | None = None,
        head: Head | None = None,
        dropout: float | None = None,
        until: str | None = None,
        initialization: Scheme = "kaiming",
        allow_partial: bool = False,
        seed: int | None = None,
    ) -> Self:
        """A Classifier to train, with random weights or starting from a file's.

        Args:
            model: A name of `list_models()`, or a Configuration.
            labels: Class names in the order of the logits, or a mapping of them to their numbers; None: those that
                `weights` state.
            task: Whether an image has exactly one class (single-label) or any number of them (multi-label).
            weights: `imagenet`, the model's published weights; the name of a model with published weights;
                a file of a VGG's weights in any dialect that `identify` knows; a run's folder;
                `hf://owner/name`; or a state dict in memory, such as `network.state_dict()`. The last layer is
                reinitialised where its classes differ by number or by name, and the head where another one is
                requested; the same classes in another order keep their rows. `provenance["weights"]` reports
                what became of every key.
            preprocessing: None: that of `weights`, where their input convention is known; else
                ImageNet's at 224 pixels, grey for one channel.
            in_channels: 3, 1 for grey images, or 4; first filters of `weights` are adapted.
            head: `fc`, `dense` or `pool`.
            dropout: Chance in [0, 1).
            until: Last layer of the trunk, such as `relu3_4`.
            initialization: Scheme of the random values; see `initialize`.
            allow_partial: Take what fits of `weights`: missing tensors keep random values,
                unexpected ones are left.
            seed: The random values depend on it alone; None: on the current state of torch's generator.

        Raises UnknownName, BadConfiguration, BadCheckpoint and, for published weights, BadDownload.
        """
        labels = find_labels(model, weights) if labels is None else read_labels(labels)
        configuration = configure(
            model, num_classes=len(labels), in_channels=in_channels, head=head, dropout=dropout, until=until
        )
        published = None if isinstance(weights, Mapping) else find_published_for(weights, configuration.model)
        if published is not None and published.preprocessing.channels == configuration.in_channels:
            preprocessing = preprocessing or published.preprocessing
        # Fitting together is checked before anything is fetched, and a network of half a gigabyte built.
        fallback = preprocessing or choose_preprocessing(in_channels=configuration.in_channels)
        Card(configuration=configuration, preprocessing=fallback, labels=labels)
        provenance: dict[str, Any] = {}
        origin = WeightsOrigin()
        found: Mapping[str, Tensor] = {}
        fetched = fetch(published.model) if published is not None else None
        if weights is not None:
            place: Path | Mapping[str, Tensor]
            if fetched is not None:
                place = fetched.path
            else:
                place = weights if isinstance(weights, Mapping) else locate_model(weights)
            with open_weights(place) as file:
                identified = identify_file(file)
                preprocessing = preprocessing or adapt_preprocessing(identified, configuration.in_channels)
                known = name_imagenet_classes(labels) if fetched is not None else list_classes(identified)
                last = match_last_layer(labels, known, configuration=configuration, holds=find_networks(identified))
                loaded = load_starting_weights(file, identified, configuration, last, allow_partial=allow_partial)
            found = loaded.tensors
            provenance["weights"] = describe_use(identified, loaded, last, configuration)
            name = identified.identification.path.name
            origin = WeightsOrigin(kind="loaded", source=name, random_keys=tuple(loaded.random))
        if fetched is not None:
            provenance["weights"] |= fetched.to_dict()
        preprocessing = preprocessing or fallback
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(derive_seed(demand_count("seed", seed, least=0), "weights"))
            network = VGG(configuration, initialization=initialization)
        network.load_state_dict(found, strict=False)
        return cls(
            network, labels=labels, preprocessing=preprocessing, task=task, origin=origin, provenance=provenance
        )

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
        if card.storage != "fp32":  # 16-bit floats; integers were restored when they were read
            network.float()
        network.requires_grad_(True)
        loaded = cls(
            network,
            labels=card.labels,
            preprocessing=card.preprocessing,
            task=card.task,
            temperature=card.temperature,
            threshold=card.threshold,
            thresholds=card.thresholds,
            activation_ranges=card.activation_ranges,
            origin=card.origin,
            provenance=card.provenance,
        )
        loaded.card = card
        return loaded

    def calibrate(
        self,
        *,
        temperature: float | None = None,
        threshold: float | None = None,
        thresholds: Sequence[float] | None = None,
        about: Mapping[str, Any],
    ) -> None:
        """Set the temperature and the thresholds of predictions; `save` stores them.

        Args:
            temperature: Logits are divided by it before the softmax or the sigmoid; None: unchanged.
            threshold: Single-label: probability below which the prediction is "unknown"; None: unchanged.
            thresholds: Multi-label: probability from which each class is predicted; None: unchanged.
            about: The data that it was found on, for `provenance["calibration"]`.

        Raises BadConfiguration for impossible values.
        """
        _demand_mapping("about", about)
        self.card = replace(
            self.card,
            temperature=self.temperature if temperature is None else temperature,
            threshold=self.threshold if threshold is None else threshold,
            thresholds=self.thresholds if thresholds is None else tuple(thresholds),
            provenance={**self.provenance, "calibration": dict(about)},
        )

    def keep_ranges(
        self, activation_ranges: Mapping[str, tuple[float, float]], *, about: Mapping[str, Any]
    ) -> None:
        """Set the ranges of the layers' inputs, which int8 needs; `save` stores them.

        Args:
            activation_ranges: The result of `measure_ranges`.
            about: The data that they were measured on, for `provenance["ranges"]`.

        Raises BadConfiguration for what cannot be ranges.
        """
        _demand_mapping("about", about)
        self.card = replace(
            self.card, activation_ranges=activation_ranges, provenance={**self.provenance, "ranges": dict(about)}
        )

    def save(self, path: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
        """Write everything to one `.safetensors` file, whole or not at all.

        Args:
            path: The file; its folders are made.
            provenance: Entries to set in the provenance, in the file and here.

        A network whose layers were changed is written as it is now. Raises BadConfiguration where no
        Configuration describes it, as `card` does, BadInput for values that are not finite, and BadOutput.
        """
        card = self.card
        check_values(self.network)
        if provenance is not None:
            _demand_mapping("provenance", provenance)
            card = replace(card, provenance={**self.provenance, **provenance})
        metadata = card.to_metadata()
        write_weights(path, self.network.state_dict(), metadata, storage=card.storage)
        self.card = card

    def __repr__(self) -> str:
        configuration = self._card.configuration
        task = "" if self.task == "single-label" else f"{self.task}, "
        return (
            f"Classifier({configuration.model}, head={configuration.head!r}, "
            f"{task}{len(self.labels)} classes, {self.preprocessing.crop_pixels} pixels)"
        )


def _demand_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise BadConfiguration(f"{name} must be a mapping, such as {{'data': 'bees'}}; got {value!r:.100}")
