"""The validation images after an epoch: each process measures its part, and the first one computes the metrics.

Shape letters: N images, K classes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.stream import stream_results
from vggkit.errors import BadImage
from vggkit.images.dataset import ImageSample
from vggkit.images.lazy_images import stream_images
from vggkit.models.vgg import VGG
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.objective import Measured, Objective, number_targets
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model


class Diverged(Exception):
    """The loss or its gradient is not finite."""

    def __init__(self, loss: float) -> None:
        super().__init__(loss)
        self.loss = loss


def validate(
    network: VGG,
    classifier: Model,
    images: Sequence[ImageSample],
    recipe: Recipe,
    *,
    device: torch.device,
    group: ProcessGroup,
    on_image: Callable[[int, int], None],
) -> Measured:
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
    found = group.lead(lambda: _measure([row for part in parts for row in part], classifier, images))
    if not math.isfinite(found.loss):
        raise Diverged(found.loss)
    return found


def _measure(logits: Sequence[NDArray[np.float32]], classifier: Model, images: Sequence[ImageSample]) -> Measured:
    """The metrics of logits (K,) of each image."""
    targets = number_targets(images, classifier.labels, classifier.task)
    scores = torch.from_numpy(np.stack(logits)).double()
    return Objective(classifier.task).measure(scores, torch.from_numpy(targets))
