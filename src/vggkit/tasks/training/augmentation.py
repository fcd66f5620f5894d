"""Random views of a training picture, drawn by torchvision from a seed of its own."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from vggkit.errors import MissingExtra
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing

View = Callable[[Pixels, int], Pixels]
"""Takes RGB pixels (H, W, 3) and a seed, gives fitted pixels (crop, crop, 3)."""


def see_photos(preprocessing: Preprocessing) -> View:
    """A random part (a third to all of the picture), resized to the network's input, mirrored half the time.

    Raises MissingExtra without torchvision.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as problem:
        raise MissingExtra.of("torchvision", "augmentation", "train") from problem
    crop = preprocessing.crop_pixels
    filters = v2.InterpolationMode(preprocessing.interpolation)
    transform = v2.Compose(
        [v2.RandomResizedCrop((crop, crop), scale=(0.35, 1.0), interpolation=filters), v2.RandomHorizontalFlip()]
    )

    def view(pixels: Pixels, seed: int) -> Pixels:
        # torchvision draws from torch's generator; the state around is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return np.asarray(transform(Image.fromarray(pixels)))

    return view


def see_whole(preprocessing: Preprocessing) -> View:
    """The picture as it is when predicting; nothing is random."""
    return lambda pixels, seed: preprocessing.fit(pixels)
