"""Images of a batch mixed with each other, and their classes with them.

mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vggkit.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Mixing:
    """What mixes a batch; with both alphas above 0 each batch gets one of the two, at even odds."""

    mixup: float
    """Alpha of mixup's Beta(alpha, alpha); 0: none."""
    cutmix: float
    """Alpha of CutMix's; 0: none."""
    classes: int
    """K."""

    @classmethod
    def of(cls, recipe: Recipe, classes: int) -> Self | None:
        """What the recipe asks for; None where it asks for neither."""
        if not (recipe.mixup or recipe.cutmix):
            return None
        return cls(float(recipe.mixup), float(recipe.cutmix), classes)

    def __call__(self, images: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Each image with the one before it in the batch, which is shuffled already.

        Args:
            images: (N, C, H, W), floating point; left as it is.
            targets: (N,), int64.
            seed: The share and the place of what is mixed in depend on it alone.

        Returns images like those given, and the share of each class in them: (N, K), float32.
        """
        draws = np.random.default_rng(seed)
        cuts = bool(self.cutmix) and (not self.mixup or draws.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        kept = float(draws.beta(alpha, alpha))
        others = images.roll(1, 0)
        if cuts:
            top, bottom, left, right = _draw_cut(draws, kept, images.shape[-2], images.shape[-1])
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
            # What is cut off at the edge is not mixed in.
            kept = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            mixed = torch.lerp(others, images, kept)
        shares = F.one_hot(targets, self.classes).float()
        return mixed, torch.lerp(shares.roll(1, 0), shares, kept)


def _draw_cut(draws: np.random.Generator, kept: float, height: int, width: int) -> tuple[int, int, int, int]:
    """First and last row and column of a rectangle of the image's shape, its middle anywhere in the image."""
    half = 0.5 * math.sqrt(1 - kept)
    down, across = draws.integers((height, width)).tolist()
    reach_down, reach_across = int(half * height), int(half * width)
    return (
        max(0, down - reach_down),
        min(height, down + reach_down),
        max(0, across - reach_across),
        min(width, across + reach_across),
    )
