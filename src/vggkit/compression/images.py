"""The images of a compression, each in one role: to fit, to choose by, and to report on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vggkit.compression.records import ImageRole
from vggkit.errors import BadData
from vggkit.images.class_names import shorten_names
from vggkit.images.dataset import ImageDataset, ImageSample, identify_images
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.several_labels import demand_task
from vggkit.images.splits import divide, hold_out
from vggkit.weights.card import read_entry
from vggkit.weights.model import Model

VALIDATION_SHARE: Final = 0.4
"""Of data without splits: half of it to choose by and half to report on."""
MOST_CHOSEN_BY: Final = 2_000
"""Images at most that points are compared on, drawn evenly."""
TOGETHER: Final = 32
"""Images in a batch of calibration."""
_CALIBRATION: Final = ((64, 2_000), (128, 500), (10**9, 64))
"""Images that layers are fitted on, at most, by the side of images in pixels up to which it holds."""


@dataclass(frozen=True, slots=True)
class RoleImages:
    """The images of each role."""

    fit: Sequence[ImageSample]
    """Channels are ranked, layers fitted and weights trained on them."""
    choose: Sequence[ImageSample]
    """Points are compared on them."""
    report: Sequence[ImageSample]
    """Accuracy before and after is measured on them, once."""
    roles: tuple[ImageRole, ...]
    """The same for people."""


def divide_roles(dataset: ImageDataset, model: Model, *, seed: int = 0) -> RoleImages:
    """Fit on the training split, choose on the validation split, report on the test split.

    Data that the Classifier was trained on is divided as it was then, so that no image that it learnt from is
    chosen by or reported on. Without a test split the validation split is halved, class by class; data without
    splits gives 60 % of each class to fit on.

    Raises BadData where classes are others than the Classifier's, or too few images are there.
    """
    demand_task(dataset, model.task)
    unknown = sorted(set(dataset.labels) - set(model.labels))
    if unknown:
        raise BadData(
            f"{dataset.name}: the Classifier does not know {shorten_names(unknown)}; take its own classes"
        )
    splits = dict(_divide_as_trained(dataset, model, seed=seed).splits)
    names = {name: name for name in splits}
    if "test" not in splits:
        halves = _halve(dataset, splits["val"], seed=seed)
        splits |= {"val": halves[0], "test": halves[1]}
        names |= {"val": "half of val", "test": "the other half of val"}
    chosen = _thin(splits["val"], MOST_CHOSEN_BY)
    found = {"fit": splits["train"], "choose": chosen, "report": splits["test"]}
    sources = {"fit": names["train"], "choose": names["val"], "report": names["test"]}
    if len(chosen) < len(splits["val"]):
        sources["choose"] = f"{len(chosen):,} images of {names['val']}"
    roles = tuple(
        ImageRole(
            purpose=purpose,  # type: ignore[arg-type]
            images=len(images),
            split=sources[purpose],
            digest=identify_images(images),
        )
        for purpose, images in found.items()
    )
    return RoleImages(found["fit"], found["choose"], found["report"], roles)


def _divide_as_trained(dataset: ImageDataset, model: Model, *, seed: int) -> ImageDataset:
    trained_on: Mapping[str, object] = read_entry(model.provenance, "data")
    if trained_on.get("fingerprint") == dataset.fingerprint():
        return hold_out(
            dataset,
            validation_share=trained_on["validation_share"],  # type: ignore[arg-type]
            seed=trained_on["seed"],  # type: ignore[arg-type]
            fold=trained_on.get("fold"),  # type: ignore[arg-type]
            copy_groups=trained_on.get("ties", ()),  # type: ignore[arg-type]
        )
    return divide(dataset, validation_share=VALIDATION_SHARE, seed=seed)


def _halve(
    dataset: ImageDataset, images: Sequence[ImageSample], *, seed: int
) -> tuple[Sequence[ImageSample], Sequence[ImageSample]]:
    """Two halves of each class, groups undivided."""
    labels = tuple(sorted({label for image in images for label in image.classes}))
    whole = ImageDataset(dataset.name, labels, {"all": tuple(images)}, task=dataset.task)
    halved = divide(whole, validation_share=0.5, seed=seed)
    return halved.splits["train"], halved.splits["val"]


def _thin(images: Sequence[ImageSample], most: int) -> tuple[ImageSample, ...]:
    """So many at most, evenly from all."""
    count = min(most, len(images))
    return tuple(images[place * len(images) // count] for place in range(count))


def prepare_calibration(
    images: Sequence[ImageSample], preprocessing: Preprocessing, *, most: int | None = None
) -> tuple[Tensor, ...]:
    """Batches of preprocessed images (N, C, H, W) that layers are fitted on; raises BadImage."""
    side = preprocessing.crop_pixels
    usual = next(count for pixels, count in _CALIBRATION if side <= pixels)
    return tuple(_batch(_thin(images, most or usual), preprocessing))


def _batch(images: Sequence[ImageSample], preprocessing: Preprocessing) -> Iterator[Tensor]:
    for first in range(0, len(images), TOGETHER):
        some = [preprocessing.see(image) for image in images[first : first + TOGETHER]]
        yield torch.from_numpy(np.stack(some))
