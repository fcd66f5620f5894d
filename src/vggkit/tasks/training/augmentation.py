"""Random views of a training picture, drawn by torchvision from a seed of their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image

from vggkit.errors import MissingExtra
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing
from vggkit.tasks.training.recipe import Augmentation


@dataclass(frozen=True, slots=True)
class View:
    """How a picture is seen in training; it can be sent to the processes that load pictures."""

    preprocessing: Preprocessing
    """Gives the network's input size."""
    fitted: bool
    """Whether the picture is fitted first, as it is when predicting."""
    transform: Callable[[Image.Image], Image.Image] | None
    """What is random; None: nothing."""

    @classmethod
    def of(cls, augmentation: Augmentation, preprocessing: Preprocessing) -> Self:
        """The view that a settled recipe's augmentation names.

        - `photo`: a random part (a third to all of the picture), resized to the network's input,
          mirrored half the time.
        - `shift`: the fitted picture moved by up to an eighth each way over black, and never
          mirrored, so that digits and letters stay what they are.
        - `none`: the picture as it is when predicting.

        Raises MissingExtra without torchvision.
        """
        if augmentation == "none":
            return cls(preprocessing, fitted=True, transform=None)
        try:
            from torchvision.transforms import v2
        except ImportError as problem:
            raise MissingExtra.of("torchvision", "augmentation", "train") from problem
        crop = preprocessing.crop_pixels
        if augmentation == "shift":
            return cls(preprocessing, fitted=True, transform=v2.RandomCrop((crop, crop), padding=max(1, crop // 8)))
        filters = v2.InterpolationMode(preprocessing.interpolation)
        part = v2.RandomResizedCrop((crop, crop), scale=(0.35, 1.0), interpolation=filters)
        # Padded or stretched pictures are seen so in training too, and parts are taken of that.
        whole = preprocessing.fit_mode != "crop"
        return cls(preprocessing, fitted=whole, transform=v2.Compose([part, v2.RandomHorizontalFlip()]))

    def __call__(self, pixels: Pixels, seed: int) -> Pixels:
        """RGB pixels (crop, crop, 3) for RGB pixels (H, W, 3); the same seed gives the same view."""
        if self.fitted:
            pixels = self.preprocessing.fit(pixels)
        if self.transform is None:
            return pixels
        # torchvision draws from torch's generator; the state around is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return np.asarray(self.transform(Image.fromarray(pixels)))
