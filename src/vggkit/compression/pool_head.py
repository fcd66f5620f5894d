"""The pool head in place of fully connected layers: the mean of each channel of the last map, and one matrix.

VGG11's fully connected layers hold 93 % of its parameters. One matrix on channel means is solved in closed form, on
features that are computed once (Lin, Chen and Yan 2014, "Network in network", arXiv:1312.4400, section 3.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vggkit.compression.rebuild import build_network, copy_state
from vggkit.errors import BadConfiguration
from vggkit.images.dataset import ImageSample
from vggkit.models.configure import configure
from vggkit.training.linear_probe import fit_probe
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model

OnProgress = Callable[[str, int, int | None], None]


def fit_pool_head(
    model: Model,
    train: Sequence[ImageSample],
    val: Sequence[ImageSample],
    *,
    device: torch.device,
    seed: int = 0,
    on_progress: OnProgress = lambda what, done, total: None,
    log: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """The Classifier with a pool head, solved on training images; its trunk is the same.

    Args:
        model: The Classifier.
        train: Labelled images that the head is solved on.
        val: Others, whose loss is logged.
        device: Where features are computed.
        seed: Of the cross-validation that chooses the penalty.
        on_progress: Called with the current task, how much of it is done, and of how much.
        log: Called with messages, as sentences.

    Raises BadConfiguration where the head is one already, and BadImage for an image that cannot be read.
    """
    if model.configuration.head == "pool" and not model.configuration.hidden:
        raise BadConfiguration("the network has a pool head already; leave out head='pool'")
    configuration = configure(replace(model.configuration, head="fc"), head="pool")
    state = {key: value for key, value in copy_state(model.network).items() if key.startswith("features.")}
    shapes = configuration.state_shapes()
    state |= {key: torch.zeros(shapes[key]) for key in shapes if key not in state}
    made = Model(
        build_network(configuration, state),
        labels=model.labels,
        preprocessing=model.preprocessing,
        task=model.task,
        origin=model.origin,
        provenance=model.provenance,
    )
    recipe = Recipe(trainable="head", augmentation="none", batch_size=32, seed=seed)
    fit_probe(made, {"train": train, "val": val}, recipe, device=device, epoch=0, on_progress=on_progress, log=log)
    return made
