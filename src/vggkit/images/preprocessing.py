"""What a network is fed: the `Preprocessing` record and its only implementation.

Shape letters: C channels, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.images.decoding import Pixels

ChannelOrder = Literal["RGB", "BGR", "L"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a network's input; the defaults are those of torchvision's ImageNet weights.

    The short side is resized, the middle cropped, each channel taken as (value - mean) / std.
    On PIL pictures the result equals torchvision's `weights.transforms()` bit for bit.

    Raises BadConfiguration for values that cannot be.
    """

    resize_pixels: int = 256
    """Short side after resizing; the sides keep their ratio."""
    crop_pixels: int = 224
    """Height and width of the middle part that the network sees; black where the picture ends before."""
    interpolation: Interpolation = "bilinear"
    """Resampling filter, antialiased when shrinking."""
    channel_order: ChannelOrder = "RGB"
    """Order of the channels; L is one channel, grey (ITU-R 601)."""
    full_value: float = 1.0
    """What a channel at its brightest (255) counts before mean and std: 1, or 255 as Caffe had it."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from each channel, in the order of `channel_order` and on the scale of `full_value`."""
    std: tuple[float, ...] = IMAGENET_STD
    """Each channel is divided by it."""

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else value)
        self._check()

    def _check(self) -> None:
        def demand(holds: bool, name: str, rule: str) -> None:
            if not holds:
                raise BadConfiguration(f"{name} must be {rule}; got {getattr(self, name)!r}")

        for name in ("resize_pixels", "crop_pixels"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            demand(whole, name, "a whole number of 1 or more")
        for name, choices in (("interpolation", Interpolation), ("channel_order", ChannelOrder)):
            demand(getattr(self, name) in get_args(choices), name, f"one of {', '.join(get_args(choices))}")
        demand(_is_number(self.full_value) and self.full_value > 0, "full_value", "a number above 0")
        count = self.channels
        for name in ("mean", "std"):
            values = getattr(self, name)
            each = isinstance(values, tuple) and len(values) == count and all(map(_is_number, values))
            demand(each, name, f"{count} number{'s' * (count > 1)} for channel_order={self.channel_order!r}")
        demand(all(value > 0 for value in self.std), "std", "above 0")

    @property
    def channels(self) -> int:
        """Channels C of the result."""
        return len(self.channel_order)

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """The network's input (C, crop, crop), float32, for RGB pixels (H, W, 3), uint8."""
        return self.normalize(self.fit(pixels))

    def fit(self, pixels: Pixels) -> Pixels:
        """Resized and cropped RGB pixels (crop, crop, 3)."""
        image = Image.fromarray(_without_far_ends(pixels))
        width, height = image.size
        short, long = sorted((width, height))
        # torchvision's rounding: the long side is cut to whole pixels.
        long = max(1, int(self.resize_pixels * long / short))
        size = (self.resize_pixels, long) if width <= height else (long, self.resize_pixels)
        if size != image.size:
            image = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = _first(image.width, self.crop_pixels), _first(image.height, self.crop_pixels)
        return np.asarray(image.crop((left, top, left + self.crop_pixels, top + self.crop_pixels)))

    def normalize(self, pixels: Pixels) -> NDArray[np.float32]:
        """Channels first, in order, scaled: (C, H, W) float32 for RGB pixels (H, W, 3) already fitted."""
        if self.channel_order == "L":
            planes = [np.asarray(Image.fromarray(pixels).convert("L"))]
        else:
            planes = [pixels[..., "RGB".index(channel)] for channel in self.channel_order]
        out = np.empty((len(planes), *pixels.shape[:2]), np.float32)
        for plane, values, result in zip(planes, _table_of_values(self), out, strict=True):
            np.take(values, plane, out=result, mode="clip")  # "raise" would buffer
        return out

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON or YAML."""
        values = asdict(self)
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record that `to_dict` gave; raises BadConfiguration for anything else."""
        if not isinstance(values, Mapping):
            raise BadConfiguration(f"a preprocessing is a mapping of its fields, got {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise BadConfiguration(str(UnknownName.of("field of a preprocessing", name, known)))
        return cls(**values)


def suit_preprocessing(crop_pixels: int = 224, *, in_channels: int = 3) -> Preprocessing:
    """The preprocessing for a network that sees pictures of this side.

    From 224 pixels on a border of an eighth is cut away, as for ImageNet (256 to 224); smaller
    pictures are seen whole across their short side, where every pixel counts.

    Raises BadConfiguration for channels that no picture has.
    """
    if in_channels not in (1, 3):
        raise BadConfiguration(
            f"pictures have 3 channels, or 1 as grey, got in_channels={in_channels}; "
            "such a network is a VGG, but not a Classifier of pictures"
        )
    grey: dict[str, Any] = {"channel_order": "L", "mean": (0.449,), "std": (0.226,)} if in_channels == 1 else {}
    resize_pixels = round(crop_pixels * 256 / 224) if crop_pixels >= 224 else crop_pixels
    return Preprocessing(resize_pixels=resize_pixels, crop_pixels=crop_pixels, **grey)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _first(side: int, crop: int) -> int:
    """Where the middle part starts, rounded as torchvision does; before the picture where that is smaller."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


def _without_far_ends(pixels: Pixels) -> Pixels:
    """The middle of a picture over 64 times as long as wide: resized whole it would take gigabytes, to no use."""
    height, width = pixels.shape[:2]
    longest = 64 * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[top : top + longest, left : left + longest]


@lru_cache(maxsize=16)
def _table_of_values(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What each of the 256 values becomes, by channel: (C, 256), computed as torchvision does."""
    values = np.arange(256, dtype=np.float32)
    if preprocessing.full_value != 255:
        values = values / np.float32(255)
        if preprocessing.full_value != 1:
            values = values * np.float32(preprocessing.full_value)
    mean, std = (np.asarray(v, np.float32)[:, None] for v in (preprocessing.mean, preprocessing.std))
    table: NDArray[np.float32] = (values - mean) / std
    return table
