"""Construction of a Classifier for a dataset, by its classes, its image size, and the input of loaded weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vggkit.errors import BadConfiguration
from vggkit.images.dataset import ImageDataset, typical_side
from vggkit.images.preprocessing import FitMode, Preprocessing, choose_preprocessing
from vggkit.models.configuration import Configuration, Head, Scheme
from vggkit.models.configure import configure
from vggkit.weights.card import read_entry
from vggkit.weights.input_conventions import find_convention
from vggkit.weights.model import Model


def build_classifier(
    images: ImageDataset,
    model: str | Configuration = "vgg11",
    *,
    blocks: str | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    image_size: int | None = None,
    fit_mode: FitMode | None = None,
    reduced_decoding: bool = False,
    in_channels: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    head: Head | None = None,
    dropout: float | None = None,
    until: str | None = None,
    initialization: Scheme = "kaiming",
    input_convention: str | None = None,
    allow_partial: bool = False,
    seed: int = 0,
) -> Model:
    """A Classifier for a dataset's classes and image size, ready to train.

    Args:
        images: Their labels become the classes, and their task the Classifier's.
        model: A name of `list_models()`, or a Configuration.
        blocks: Output channels of each convolution in place of the model's, such as `64,64/128,128/256,256`.
        weights: A file or a state dict to start from; see `Classifier.create`.
        image_size: Side of the input in pixels; None: 224, or with random weights and smaller
            images their own size, rounded to 32.
        fit_mode: `crop`, `pad` or `stretch`; None: the weights' own, or crop.
        reduced_decoding: Large JPEGs are decoded at a smaller scale; see `Preprocessing`.
        in_channels: 3, 1 for grey, or 4.
        mean: Subtracted from each channel; empty: the weights' own, or ImageNet's.
        std: Each channel is divided by it; empty: as for `mean`.
        head: None: the model's, or below 128 pixels the pool head (the map is 1×1 to 3×3 there, and
            the paper's head would read up to 49 copies of it).
        dropout: Chance in [0, 1).
        until: Last layer of the trunk.
        initialization: Scheme of the random values.
        input_convention: The input convention of `weights`, if the file does not state it; a name of `CONVENTIONS`.
        allow_partial: Take what fits of `weights`.
        seed: The random values depend on it alone.

    Raises what `Classifier.create` raises.
    """
    if blocks is not None:
        model = configure(model, blocks=blocks)
    stated = find_convention(input_convention)
    if weights is None:
        if image_size is None:
            # Whole halvings by the five pools.
            image_size = min(224, max(32, 32 * round(typical_side(images.split("train", "all")) / 32)))
        stated = _resize(stated, image_size, in_channels or 3)
    elif stated is not None:
        stated = _resize(stated, image_size or 224, in_channels or 3)
    if head is None and until is None and image_size is not None and image_size < 128:
        head = "pool"
    if image_size is not None and image_size < (least := configure(model, head=head, until=until).minimum_side):
        raise BadConfiguration(f"image_size must be {least} or more for this network; got {image_size}")
    classifier = Model.create(
        model,
        labels=images.labels,
        task=images.task,
        weights=weights,
        preprocessing=stated,
        in_channels=in_channels,
        head=head,
        dropout=dropout,
        until=until,
        initialization=initialization,
        allow_partial=allow_partial,
        seed=seed,
    )
    # The weights' own input convention, at another size or fitted another way.
    given = preprocessing = classifier.preprocessing
    if image_size is not None and image_size != given.crop_pixels:
        preprocessing = _resize(given, image_size, classifier.configuration.in_channels)
    preprocessing = replace(
        preprocessing,
        fit_mode=fit_mode or given.fit_mode,
        reduced_decoding=reduced_decoding or given.reduced_decoding,
        mean=tuple(mean) or preprocessing.mean,
        std=tuple(std) or preprocessing.std,
    )
    if preprocessing == given:
        return classifier
    return Model(
        classifier.network,
        labels=classifier.labels,
        preprocessing=preprocessing,
        task=classifier.task,
        origin=classifier.origin,
        provenance=classifier.provenance,
    )


def describe_start(classifier: Model) -> str:
    """The network that is about to be trained, and where its weights come from."""
    configuration, pixels = classifier.configuration, classifier.preprocessing.crop_pixels
    cut = f" until {configuration.until}" if configuration.until else ""
    text = f"{configuration.model}{cut}, head {configuration.head}, input {pixels} pixels"
    origin, report = classifier.origin, read_entry(classifier.provenance, "weights")
    if origin.kind == "trained":
        return f"{text}; the weights are a trained Classifier's"
    if origin.kind == "loaded":
        random = len(origin.random_keys)
        loaded = len(classifier.network.state_dict()) - random
        text += f"; {loaded} tensors loaded from {origin.source or 'a file'}, {random} random"
        if reason := report.get("renewed"):
            text += f"; new is {reason}"
        elif reason := report.get("classes"):
            text += f"; {reason}"
    return text


def _resize(convention: Preprocessing | None, image_size: int, in_channels: int) -> Preprocessing:
    """An input convention at a size; None: ImageNet's, or grey."""
    sized = choose_preprocessing(image_size, in_channels=in_channels)
    if convention is None:
        return sized
    return replace(convention, resize_pixels=sized.resize_pixels, crop_pixels=sized.crop_pixels)
