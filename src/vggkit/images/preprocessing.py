"""The preparation of images for a network: the `Preprocessing` record and its only implementation.

Shape letters: C channels, H and W pixels.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vggkit.arguments import is_number, plain_number
from vggkit.errors import BadConfiguration, UnknownName
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSource, take_one
from vggkit.images.resizing import Interpolation, resize, resize_part

ChannelOrder = Literal["RGB", "BGR", "L", "RGBX"]
FitMode = Literal["crop", "pad", "stretch"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
GREY_MEAN: Final = 0.449
GREY_STD: Final = 0.226

CROP_PIXELS: Final = 224
"""Height and width of the input of the paper's networks."""
MOST_RESIZED: Final = 2**24
"""Pixels of a resized image that only an extremely elongated image would exceed."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The conversion of images to a network's input; the defaults are those of torchvision's ImageNet weights.

    By default the short side is resized, the middle cropped, each channel taken as (value - mean) / std;
    on PIL images the result is torchvision's `weights.transforms()` to within one of 255 levels.

    Raises BadConfiguration for impossible values.
    """

    fit_mode: FitMode = "crop"
    """How an image becomes square: crop (the middle of the resized image), pad (the whole image,
    on the mean colour), stretch (the whole image, without its aspect ratio)."""
    resize_pixels: int = 256
    """Short side after resizing, for fit_mode=crop alone; the sides keep their ratio."""
    crop_pixels: int = CROP_PIXELS
    """Height and width of the network's input; with fit_mode=crop, black where the resized image is smaller."""
    interpolation: Interpolation = "bilinear"
    """Resampling filter, antialiased when shrinking."""
    channel_order: ChannelOrder = "RGB"
    """Order of the channels; L is one channel, grey (ITU-R 601), and RGBX is four as files and arrays hold them: a
    fourth beside the colours, such as infrared, depth or alpha."""
    full_value: float = 1.0
    """The value of a channel at 255 before mean and std are applied: 1, or 255 as in Caffe."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from each channel, in the order of `channel_order` and on the scale of `full_value`."""
    std: tuple[float, ...] = IMAGENET_STD
    """Each channel is divided by it."""
    reduced_decoding: bool = False
    """Decode JPEGs at the smallest of 1/8, 1/4 and 1/2 of their size that still need no enlarging: large images
    are read faster, and their pixels differ slightly."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
                value = tuple(map(plain_number, value))
            object.__setattr__(self, field.name, plain_number(value))
        self._check()

    def _check(self) -> None:
        def demand(holds: bool, name: str, rule: str) -> None:
            if not holds:
                value = getattr(self, name)
                numbers = isinstance(value, tuple) and all(map(is_number, value))
                shown = " ".join(f"{number:g}" for number in value) if numbers else repr(value)
                raise BadConfiguration(f"{name} must be {rule}; got {shown}")

        for name in ("resize_pixels", "crop_pixels"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            demand(whole, name, "a whole number of 1 or more")
        choices = {"fit_mode": FitMode, "interpolation": Interpolation, "channel_order": ChannelOrder}
        for name, known in choices.items():
            demand(getattr(self, name) in get_args(known), name, f"one of {', '.join(get_args(known))}")
        demand(isinstance(self.reduced_decoding, bool), "reduced_decoding", "true or false")
        demand(is_number(self.full_value) and self.full_value > 0, "full_value", "a number above 0")
        count = self.channels
        for name in ("mean", "std"):
            values = getattr(self, name)
            each = isinstance(values, tuple) and len(values) == count and all(map(is_number, values))
            demand(each, name, f"{count} number{'s' * (count > 1)}, one for each channel ({self.channel_order})")
        demand(all(value > 0 for value in self.std), "std", "above 0")

    @property
    def channels(self) -> int:
        """Channels C of the result."""
        return len(self.channel_order)

    @property
    def decoded_channels(self) -> int:
        """Channels that an image is decoded to: 4 where the network takes a fourth, else 3."""
        return 4 if self.channel_order == "RGBX" else 3

    @property
    def least_side(self) -> int | None:
        """Pixels of the shorter side that `decode` must leave so that nothing is enlarged; None: all of them."""
        if not self.reduced_decoding:
            return None
        return self.resize_pixels if self.fit_mode == "crop" else self.crop_pixels

    def with_reduced_decoding(self, reduced_decoding: bool) -> Self:
        """The same, but where that is true JPEGs are decoded at a smaller scale, as `reduced_decoding` says."""
        return replace(self, reduced_decoding=True) if reduced_decoding else self

    def __call__(self, image: ImageSource) -> NDArray[np.float32]:
        """The network's input (C, crop, crop), float32, for one image, such as its RGB pixels (H, W, 3), uint8.

        Raises BadImage where it cannot be read, and BadInput for anything but an image and for ambiguous values.
        """
        return self.see(take_one(image, name="the image"))

    def see(self, image: ImageSample) -> NDArray[np.float32]:
        """The same for an ImageSample; raises BadImage."""
        return self.normalize(self.fit(image.decode(least_side=self.least_side, channels=self.decoded_channels)))

    def fit(self, pixels: Pixels) -> Pixels:
        """RGB pixels (crop, crop, 3) by `fit_mode`, for RGB pixels (H, W, 3) of any size; or with four channels."""
        crop = self.crop_pixels
        match self.fit_mode:
            case "crop":
                return self._fit_middle(pixels)
            case "stretch":
                return resize(pixels, (crop, crop), self.interpolation)
            case "pad":
                height, width = pixels.shape[:2]
                longest = max(height, width)
                size = max(1, round(crop * width / longest)), max(1, round(crop * height / longest))
                return _lay_on(self.mean_colour(), crop, resize(pixels, size, self.interpolation))

    def locate(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The area that `fit` uses of an image of this size: left, top, right and bottom edge in its pixels.

        Edges lie outside of the image where the network sees padding there.

        >>> Preprocessing().locate(512, 1024)
        (288.0, 32.0, 736.0, 480.0)
        """
        crop = self.crop_pixels
        if self.fit_mode == "stretch":
            return 0.0, 0.0, float(width), float(height)
        visible = (height, width)
        if self.fit_mode == "pad":
            longest = max(visible)
            size = max(1, round(crop * width / longest)), max(1, round(crop * height / longest))
        else:
            size = self._resized_size(*visible)
            if size[0] * size[1] > MOST_RESIZED:
                longest = 64 * min(visible)
                visible = min(height, longest), min(width, longest)
                size = self._resized_size(*visible)
        edges = []
        for whole, side, resized in zip((width, height), reversed(visible), size, strict=True):
            first = round((resized - crop) / 2) if resized >= crop else -((crop - resized) // 2)
            start, scale = max(0, whole - side) // 2, side / resized
            edges.append((start + first * scale, start + (first + crop) * scale))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def resize(self, pixels: Pixels, *, most_pixels: int = MOST_RESIZED) -> Pixels:
        """RGB pixels (H, W, 3) whose short side is `resize_pixels`, uncropped but for the ends of an image so long
        that it would have more than `most_pixels`.
        """
        height, width = pixels.shape[:2]
        longest = max(1, most_pixels // self.resize_pixels**2) * min(height, width)
        pixels = _without_far_ends(pixels, longest)
        return resize(pixels, self._resized_size(*pixels.shape[:2]), self.interpolation)

    def _fit_middle(self, pixels: Pixels) -> Pixels:
        """The middle of the resized image."""
        size = self._resized_size(*pixels.shape[:2])
        if size[0] * size[1] > MOST_RESIZED:
            # Resized as a whole it would need gigabytes.
            pixels = _without_far_ends(pixels, 64 * min(pixels.shape[:2]))
            size = self._resized_size(*pixels.shape[:2])
        columns, rows = (_middle(side, self.crop_pixels) for side in size)
        part = resize_part(pixels, size, self.interpolation, columns, rows)
        return _lay_on((0,) * pixels.shape[2], self.crop_pixels, part)

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        short, long = sorted((width, height))
        # torchvision's rounding: the long side is cut to whole pixels.
        long = max(1, int(self.resize_pixels * long / short))
        return (self.resize_pixels, long) if width <= height else (long, self.resize_pixels)

    def mean_colour(self) -> tuple[int, ...]:
        """RGB, or all four channels, nearest to zero once normalised, as the network's own padding is."""
        levels = [min(255, max(0, round(255 * mean / self.full_value))) for mean in self.mean]
        if self.channel_order == "RGBX":
            return tuple(levels)
        by_channel = dict(zip(self.channel_order, levels, strict=True))
        red, green, blue = (by_channel.get(channel, levels[0]) for channel in "RGB")
        return red, green, blue

    def normalize(self, pixels: Pixels) -> NDArray[np.float32]:
        """Channels first, in order, scaled: (C, H, W) float32 for RGB pixels (H, W, 3) already fitted."""
        if self.channel_order == "L":
            planes = np.asarray(Image.fromarray(pixels).convert("L"))[None]
        else:
            planes = (pixels[..., ::-1] if self.channel_order == "BGR" else pixels).transpose(2, 0, 1)
        out = np.empty(planes.shape, np.float32)
        out[...] = planes
        # torchvision's operations in torchvision's order: the same bits.
        if self.full_value != 255:
            out /= np.float32(255)
            if self.full_value != 1:
                out *= np.float32(self.full_value)
        out -= np.asarray(self.mean, np.float32)[:, None, None]
        out /= np.asarray(self.std, np.float32)[:, None, None]
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


def choose_preprocessing(crop_pixels: int = 224, *, in_channels: int = 3) -> Preprocessing:
    """The preprocessing for a network whose input has this side.

    From 224 pixels on a border of an eighth is cut away, as for ImageNet (256 to 224); smaller
    images keep their whole short side.

    Raises BadConfiguration for channels that no image has.
    """
    if in_channels not in (1, 3, 4):
        raise BadConfiguration(
            f"images have 3 channels, 1 as grey, or 4, got in_channels={in_channels}; "
            "such a network is a VGG, but not a Classifier of images"
        )
    order: dict[str, Any] = {}
    if in_channels == 1:
        order = {"channel_order": "L", "mean": (GREY_MEAN,), "std": (GREY_STD,)}
    elif in_channels == 4:
        order = {"channel_order": "RGBX", "mean": (*IMAGENET_MEAN, GREY_MEAN), "std": (*IMAGENET_STD, GREY_STD)}
    resize_pixels = round(crop_pixels * 256 / 224) if crop_pixels >= 224 else crop_pixels
    return Preprocessing(resize_pixels=resize_pixels, crop_pixels=crop_pixels, **order)


def _middle(side: int, crop: int) -> tuple[int, int]:
    """Start and end of the middle part, rounded as torchvision does; all of a side that is shorter."""
    first = round((side - crop) / 2)
    return (first, first + crop) if side >= crop else (0, side)


def _lay_on(colour: tuple[int, ...], side: int, pixels: Pixels) -> Pixels:
    """A square of one colour with the image in its middle."""
    height, width = pixels.shape[:2]
    if height == width == side:
        return pixels
    square = np.empty((side, side, len(colour)), np.uint8)
    square[...] = colour
    # An odd pixel goes to the right and to the bottom, as torchvision has it.
    left, top = (side - width) // 2, (side - height) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _without_far_ends(pixels: Pixels, longest: int) -> Pixels:
    """The middle of an image's longer side, at most so many pixels of it."""
    height, width = pixels.shape[:2]
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[top : top + longest, left : left + longest]
