"""Random views of a training image (crop, mirror, colours), and images of a batch mixed with each other.

Every draw is made here with NumPy from the view's own seed, as torchvision's classes make them from
torch's generator; only RandAugment's operations are torchvision's, so that without it nothing else is.

mixup: Zhang et al. 2018, arXiv:1710.09412. CutMix: Yun et al. 2019, arXiv:1905.04899.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import importlib.util
import math
from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vggkit.errors import BadConfiguration, MissingExtra
from vggkit.images.decoding import Pixels
from vggkit.images.preprocessing import Preprocessing
from vggkit.images.resizing import resize
from vggkit.training.recipe import Recipe

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

PART_SCALE: Final = (0.35, 1.0)
"""Share of a photo's area that a view shows."""
PART_RATIO: Final = (3 / 4, 4 / 3)
"""Width through height of that part, before it is made square."""
ERASED_SCALE: Final = (0.02, 0.33)
"""Share of a view's area that is erased."""
ERASED_RATIO: Final = (0.3, 3.3)
"""Aspect ratio, height over width, of the erased rectangle."""
OPERATIONS: Final = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color"),
    *("Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""RandAugment's, by torchvision's names."""
SIGNED: Final = frozenset(OPERATIONS[1:10])
"""Those that go either way."""
STRONGEST: Final = 30
"""RandAugment's highest magnitude."""


@dataclass(frozen=True, slots=True)
class View:
    """A random view of an image in training: a function of its pixels and a seed, safe in any thread."""

    preprocessing: Preprocessing
    """Gives the network's input size, and the colour of the erased rectangle."""
    augmentation: Literal["none", "shift", "photo"]
    """The kind of random crop."""
    mirror: Literal["none", "random", "alternating"]
    """The kind of random mirroring."""
    rand_augment: int | None
    """Magnitude of RandAugment's two operations; None: none."""
    random_erasing: float
    """Chance that a rectangle is erased."""
    shift_pixels: int | None = None
    """Farthest move of augmentation=shift; None: an eighth of the input's side."""

    @classmethod
    def of(cls, recipe: Recipe, preprocessing: Preprocessing) -> Self:
        """The view that a resolved recipe describes, its steps in this order.

        - augmentation=`photo`: a random part (a third to all of the image), resized to the network's
          input (Szegedy 2015). `shift`: the fitted image moved by up to `shift_pixels` each way over black.
          `none`: the image as it is when predicting.
        - mirror: left and right exchanged.
        - rand_augment: two random operations of RandAugment's fourteen (Cubuk 2020).
        - random_erasing: a rectangle painted over in the mean colour (Zhong 2020).

        Raises MissingExtra for rand_augment without torchvision, BadConfiguration for it with four channels.
        """
        assert recipe.augmentation != "auto", "the recipe is resolved"
        assert recipe.mirror != "auto", "the recipe is resolved"
        if recipe.rand_augment is not None and importlib.util.find_spec("torchvision") is None:
            raise MissingExtra.of("torchvision", "RandAugment", "train")
        if recipe.rand_augment is not None and preprocessing.decoded_channels == 4:
            raise BadConfiguration("rand_augment changes the colours of three channels, and these images have 4")
        return cls(
            preprocessing,
            recipe.augmentation,
            recipe.mirror,
            recipe.rand_augment,
            float(recipe.random_erasing),
            recipe.shift_pixels,
        )

    def __call__(self, pixels: Pixels, *, seed: int, mirrored: bool | None = None) -> Pixels:
        """RGB pixels (crop, crop, 3) for RGB pixels (H, W, 3); the same seed gives the same view.

        Args:
            pixels: The image, uint8.
            seed: Of every draw.
            mirrored: Whether left and right are exchanged; None: drawn, unless mirror is none.
        """
        return self.vary(self.prepare(pixels), seed=seed, mirrored=mirrored)

    def prepare(self, pixels: Pixels) -> Pixels:
        """The result of the steps that all views share: RGB pixels (crop, crop, 3), or of any size for photos."""
        # In training, too, images are padded or stretched, and crops are taken of the result.
        if self.augmentation == "photo" and self.preprocessing.fit_mode == "crop":
            return pixels
        return self.preprocessing.fit(pixels)

    def vary(self, pixels: Pixels, *, seed: int, mirrored: bool | None = None) -> Pixels:
        """A view of what `prepare` gave; the arguments are `__call__`'s."""
        draws = np.random.default_rng(seed)
        if self.augmentation == "photo":
            crop = self.preprocessing.crop_pixels
            top, left, height, width = draw_part(draws, *pixels.shape[:2])
            part = pixels[top : top + height, left : left + width]
            pixels = resize(part, (crop, crop), self.preprocessing.interpolation)
        elif self.augmentation == "shift":
            farthest = self.shift_pixels or max(1, self.preprocessing.crop_pixels // 8)
            down, right = draws.integers(-farthest, farthest, 2, endpoint=True).tolist()
            pixels = _shift(pixels, down, right)
        if mirrored is None:
            mirrored = self.mirror != "none" and draws.random() < 0.5
        if mirrored:
            pixels = pixels[:, ::-1]
        if self.rand_augment is not None:
            pixels = _rand_augment(pixels, self.rand_augment, draws)
        if self.random_erasing and draws.random() < self.random_erasing:
            pixels = _erase(pixels, draw_erased(draws, *pixels.shape[:2]), self.preprocessing.mean_colour())
        return pixels


def draw_part(draws: np.random.Generator, height: int, width: int) -> Box:
    """The random crop of a photo (height, width), distributed as in torchvision's RandomResizedCrop.

    Where ten parts in turn reach over the edge, as in images that are very long, it is the middle one.
    """
    for _ in range(10):
        area = height * width * draws.uniform(*PART_SCALE)
        ratio = math.exp(draws.uniform(math.log(PART_RATIO[0]), math.log(PART_RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = draws.integers((height - down + 1, width - across + 1)).tolist()
            return top, left, down, across
    least, most = PART_RATIO
    down = min(height, max(1, round(width / least)))
    across = min(width, max(1, round(height * most)))
    return (height - down) // 2, (width - across) // 2, down, across


def draw_erased(draws: np.random.Generator, height: int, width: int) -> Box:
    """The erased area of a view (height, width), distributed as in torchvision's RandomErasing; it may be empty."""
    for _ in range(10):
        area = height * width * draws.uniform(*ERASED_SCALE)
        ratio = math.exp(draws.uniform(math.log(ERASED_RATIO[0]), math.log(ERASED_RATIO[1])))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if down < height and across < width:
            top, left = draws.integers((height - down + 1, width - across + 1)).tolist()
            return top, left, down, across
    return 0, 0, 0, 0


def measure_strength(name: str, magnitude: int, height: int, width: int) -> float:
    """The strength of an operation of RandAugment at a magnitude of 0 to 30, as in torchvision.

    Shears are slopes, shifts are pixels, rotations degrees, colours a change of the factor 1; Posterize
    keeps so many bits, and Solarize inverts what is above that share of the brightest. 0 where there is
    no more or less.
    """
    share = magnitude / STRONGEST
    match name:
        case "ShearX" | "ShearY":
            return 0.3 * share
        case "TranslateX":
            return 150 / 331 * width * share
        case "TranslateY":
            return 150 / 331 * height * share
        case "Rotate":
            return 30 * share
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 0.9 * share
        case "Posterize":
            return round(8 - 4 * share)
        case "Solarize":
            return 1 - share
        case _:
            return 0.0


def apply_operation(image: Image.Image, name: str, strength: float) -> Image.Image:
    """An RGB image after one of `OPERATIONS`, black in areas outside the image."""
    from torchvision.transforms.v2 import functional as F

    changed: Image.Image
    match name:
        case "ShearX" | "ShearY":
            degrees = math.degrees(math.atan(strength))
            shear = [degrees, 0.0] if name == "ShearX" else [0.0, degrees]
            changed = F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX" | "TranslateY":
            move = [int(strength), 0] if name == "TranslateX" else [0, int(strength)]
            changed = F.affine(image, angle=0.0, translate=move, scale=1.0, shear=[0.0, 0.0])
        case "Rotate":
            changed = F.rotate(image, angle=strength)
        case "Brightness":
            changed = F.adjust_brightness(image, brightness_factor=1.0 + strength)
        case "Color":
            changed = F.adjust_saturation(image, saturation_factor=1.0 + strength)
        case "Contrast":
            changed = F.adjust_contrast(image, contrast_factor=1.0 + strength)
        case "Sharpness":
            changed = F.adjust_sharpness(image, sharpness_factor=1.0 + strength)
        case "Posterize":
            changed = F.posterize(image, bits=int(strength))
        case "Solarize":
            changed = F.solarize(image, threshold=255.0 * strength)
        case "AutoContrast":
            changed = F.autocontrast(image)
        case "Equalize":
            changed = F.equalize(image)
        case _:
            assert name == "Identity", name
            changed = image
    return changed


def _rand_augment(pixels: Pixels, magnitude: int, draws: np.random.Generator) -> Pixels:
    """Two operations, each any of them and either way."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    for number, flipped in zip(draws.integers(len(OPERATIONS), size=2), draws.integers(2, size=2), strict=True):
        name = OPERATIONS[number]
        strength = measure_strength(name, magnitude, image.height, image.width)
        image = apply_operation(image, name, -strength if flipped and name in SIGNED else strength)
    return np.asarray(image)


def _shift(pixels: Pixels, down: int, right: int) -> Pixels:
    """The image moved over black; negative: up and to the left."""
    height, width = pixels.shape[:2]
    moved = np.zeros_like(pixels)
    moved[max(0, down) : height + down, max(0, right) : width + right] = pixels[
        max(0, -down) : height - down, max(0, -right) : width - right
    ]
    return moved


def _erase(pixels: Pixels, box: Box, colour: tuple[int, ...]) -> Pixels:
    top, left, height, width = box
    erased = pixels.copy()
    erased[top : top + height, left : left + width] = colour
    return erased


@dataclass(frozen=True, slots=True)
class Mixing:
    """Mixup and CutMix of a batch; with both alphas above 0 each batch gets one of the two, at even odds."""

    mixup: float
    """Alpha of mixup's Beta(alpha, alpha); 0: none."""
    cutmix: float
    """Alpha of CutMix's; 0: none."""
    classes: int
    """K."""

    @classmethod
    def of(cls, recipe: Recipe, classes: int) -> Self | None:
        """The mixing of a recipe; None where it has neither."""
        if not (recipe.mixup or recipe.cutmix):
            return None
        return cls(float(recipe.mixup), float(recipe.cutmix), classes)

    def __call__(self, images: Tensor, targets: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
        """Each image with the one before it in the batch, which is shuffled already.

        Args:
            images: (N, C, H, W), floating point; left as it is.
            targets: (N,), int64; or (N, K), float32.
            seed: The proportion and the place of the mixed-in image depend on it alone.

        Returns images like those given, and the share of each class in them: (N, K), float32.
        """
        draws = np.random.default_rng(seed)
        cuts = bool(self.cutmix) and (not self.mixup or draws.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = float(draws.beta(alpha, alpha))
        others = images.roll(1, 0)
        if cuts:
            top, bottom, left, right = _draw_cut(draws, share, images.shape[-2], images.shape[-1])
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
            # The area beyond the edge is not mixed in.
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            mixed = torch.lerp(others, images, share)
        shares = targets if targets.dim() == 2 else F.one_hot(targets, self.classes).float()
        return mixed, torch.lerp(shares.roll(1, 0), shares, share)


def _draw_cut(draws: np.random.Generator, share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """First and last row and column of a rectangle of the image's shape, its middle anywhere in the image."""
    half = 0.5 * math.sqrt(1 - share)
    down, across = draws.integers((height, width)).tolist()
    reach_down, reach_across = int(half * height), int(half * width)
    return (
        max(0, down - reach_down),
        min(height, down + reach_down),
        max(0, across - reach_across),
        min(width, across + reach_across),
    )
