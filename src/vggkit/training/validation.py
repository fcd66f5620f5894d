"""The validation images after an epoch: each process measures its part, and the first one computes the metrics.

Shape letters: N images, K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_results
from vggkit.errors import BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.lazy_images import stream_images
from vggkit.models.vgg import VGG
from vggkit.training.batches import number_classes
from vggkit.training.checkpoint import measure_macro_f1
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model


class Diverged(Exception):
    """The loss or its gradient is not finite."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The metrics of the validation images, each counted once."""

    loss: float
    """Mean cross-entropy in nats, with equal weights and without smoothing."""
    top1: float
    """Share in [0, 1] whose best class is right."""
    macro_f1: float
    """Unweighted mean F1 in [0, 1] of the classes that there are images of."""


def validate(
    network: VGG,
    classifier: Model,
    images: Sequence[ImageSample],
    recipe: Recipe,
    *,
    device: torch.device,
    group: ProcessGroup,
    on_image: Callable[[int, int], None],
) -> Validation:
    """Measure a network on images, in the precision of training; the same values in every process.

    Args:
        network: The network that is measured.
        classifier: Gives the preprocessing and the labels.
        images: All validation images; each process measures its part.
        recipe: Resolved.
        device: Where to compute.
        group: The processes.
        on_image: Called with the number of images done, and of all that this process measures.

    Raises Diverged where logits are not finite, and BadImage for an image that cannot be read any more.
    """
    engine = PyTorchEngine(network, device, precision="bf16" if recipe.precision == "bf16" else "fp32")
    share = group.take_share(images)
    logits: list[NDArray[np.float32]] = []
    overflows = 0
    for done, prediction in enumerate(
        stream_results(engine, classifier.preprocessing, stream_images(share), batch_size=recipe.batch_size or 32),
        start=1,
    ):
        if prediction.overflows:
            overflows = 1
            break
        if prediction.output is None:
            raise BadImage(f"{prediction.problem}; it could be read when the training began")
        logits.append(prediction.output)
        on_image(done, len(share))
    (overflows_anywhere,) = group.maximum(overflows)
    if overflows_anywhere:
        raise Diverged(math.nan)
    parts = group.gather(logits)
    found = group.lead(lambda: _measure([row for part in parts for row in part], classifier.labels, images))
    if not math.isfinite(found.loss):
        raise Diverged(found.loss)
    return found


def _measure(
    logits: Sequence[NDArray[np.float32]], labels: Sequence[str], images: Sequence[ImageSample]
) -> Validation:
    """The metrics of logits (K,) of each image."""
    scores = torch.from_numpy(np.stack(logits)).double()
    right = torch.from_numpy(number_classes(images, labels))
    return Validation(
        loss=F.cross_entropy(scores, right).item(),
        top1=(scores.argmax(1) == right).double().mean().item(),
        macro_f1=measure_macro_f1(scores.argmax(1), right, classes=len(labels)),
    )
