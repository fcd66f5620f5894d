"""The settings of a perceptual loss, and those of the published losses. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from vggkit.arguments import is_number
from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import list_models

Metric = Literal["features", "lpips", "dists"]
InputScaling = Literal["trunk", "lpips", "none"]
TrunkPooling = Literal["max", "average", "l2"]
Distance = Literal["l1", "l2"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """A perceptual loss: which layers of which VGG are compared, and how.

    Raises BadConfiguration and UnknownName.
    """

    model: str
    """The VGG whose layers are named, such as `vgg19`; its trunk alone is used."""
    content: Mapping[str, float] = field(default_factory=dict)
    """Weight of each layer whose values are compared place by place, such as `{"relu4_2": 1.0}`."""
    style: Mapping[str, float] = field(default_factory=dict)
    """Weight of each layer whose Gram matrices are compared."""
    metric: Metric = "features"
    """features: differences of values and of Gram matrices. lpips: squared differences of values that are
    normalised over the channels, weighted by a calibration. dists: similarity of means and of covariances, weighted
    by a calibration, of the image and of the layers in `content`."""
    content_distance: Distance = "l2"
    """l1: absolute differences. l2: squared differences."""
    content_reduction: Reduction = "mean"
    """mean or sum over the channels and places of an image."""
    style_distance: Distance = "l2"
    """l1: absolute differences of Gram matrices. l2: squared differences."""
    style_reduction: Reduction = "sum"
    """mean or sum over the entries of a Gram matrix."""
    feature_scale: float = 1.0
    """Factor of the values before they are compared."""
    pooling: TrunkPooling = "max"
    """The pooling: max, average, or l2, the weighted root mean square of DISTS."""
    scaling: InputScaling = "trunk"
    """How images enter the trunk. trunk: by the trunk's own mean, standard deviation and channel order. lpips: by
    the shift and scale of LPIPS. none: in [-1, 1] as they are."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """The range in which images are expected unless another one is declared."""
    source: str = ""
    """Where it was published."""

    def __post_init__(self) -> None:
        for name in ("content", "style"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
            for layer, weight in getattr(self, name).items():
                if not isinstance(layer, str) or not is_number(weight) or weight <= 0:
                    raise BadConfiguration(
                        f"{name} must give layers weights above 0, such as {{'relu3_3': 1.0}}; "
                        f"got {layer!r}: {weight!r}"
                    )
        if not self.content and not self.style:
            raise BadConfiguration("a perceptual loss compares layers: give content=, style= or both")
        if self.metric != "features" and self.style:
            raise BadConfiguration(f"style must be empty for metric={self.metric!r}, which has no Gram matrices")
        choices = {"metric": Metric, "content_distance": Distance, "content_reduction": Reduction}
        choices |= {"style_distance": Distance, "style_reduction": Reduction}
        for name, known in (choices | {"pooling": TrunkPooling, "scaling": InputScaling}).items():
            if getattr(self, name) not in get_args(known):
                raise UnknownName.of(name, getattr(self, name), get_args(known))
        if self.model not in list_models():
            raise UnknownName.of("model", self.model, list_models())
        if not is_number(self.feature_scale) or self.feature_scale <= 0:
            raise BadConfiguration(f"feature_scale must be a number above 0; got {self.feature_scale!r}")
        object.__setattr__(self, "input_range", demand_range(self.input_range))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are made anew: a read-only mapping can be neither."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
        return _make, (plain,)

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is compared."""
        return tuple(dict.fromkeys((*self.content, *self.style)))


def _make(values: dict[str, Any]) -> LossConfig:
    return LossConfig(**values)


RANGES: Final = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))


def demand_range(given: tuple[float, float]) -> tuple[float, float]:
    """A declared range of pixel values; raises BadConfiguration for one that images do not come in."""
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if (low, high) not in RANGES:
        known = ", ".join(f"({low:g}, {high:g})" for low, high in RANGES)
        raise BadConfiguration(f"input_range must be one of {known}; got {given!r}")
    return low, high


_TAPS: Final = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
_FIRST: Final = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

PRESETS: Final[Mapping[str, LossConfig]] = {
    "johnson": LossConfig(
        model="vgg16",
        content={"relu3_3": 1.0},
        style=dict.fromkeys(("relu1_2", "relu2_2", "relu3_3", "relu4_3"), 1.0),
        source="Johnson, Alahi and Fei-Fei 2016, arXiv 1603.08155, section 3.2 and 4.1",
    ),
    # Their energies with Gram matrices that are not divided, 1 / (4 C² M²), are ours with divided ones and 1/4.
    "gatys": LossConfig(
        model="vgg19",
        content={"relu4_2": 0.5},
        style=dict.fromkeys(_FIRST, 1 / 4 / 5),
        content_reduction="sum",
        pooling="average",
        source="Gatys, Ecker and Bethge 2016, CVPR, equations 1, 3 and 4; arXiv 1508.06576",
    ),
    "srgan": LossConfig(
        model="vgg19",
        content={"relu5_4": 1.0},
        feature_scale=1 / 12.75,
        input_range=(-1.0, 1.0),
        source="Ledig et al. 2017, arXiv 1609.04802, section 2.2.1 and 3.2: VGG54",
    ),
    "srgan-vgg22": LossConfig(
        model="vgg19",
        content={"relu2_2": 1.0},
        feature_scale=1 / 12.75,
        input_range=(-1.0, 1.0),
        source="Ledig et al. 2017, arXiv 1609.04802, section 2.2.1 and 3.2: VGG22",
    ),
    "esrgan": LossConfig(
        model="vgg19",
        content={"conv5_4": 1.0},
        content_distance="l1",
        source="Wang et al. 2018, arXiv 1809.00219, section 3.3: before the activation",
    ),
    "real-esrgan": LossConfig(
        model="vgg19",
        content={"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0},
        content_distance="l1",
        source="Wang et al. 2021, arXiv 2107.10833, section 4.1",
    ),
    "pix2pixhd": LossConfig(
        model="vgg19",
        content=dict(zip(_FIRST, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0), strict=True)),
        content_distance="l1",
        scaling="none",
        input_range=(-1.0, 1.0),
        source="Wang et al. 2018, arXiv 1711.11585, section 3.3",
    ),
    "lpips": LossConfig(
        model="vgg16",
        content=dict.fromkeys(_TAPS, 1.0),
        metric="lpips",
        scaling="lpips",
        input_range=(-1.0, 1.0),
        source="Zhang et al. 2018, arXiv 1801.03924, equation 1; version 0.1, VGG",
    ),
    "dists": LossConfig(
        model="vgg16",
        content=dict.fromkeys(_TAPS, 1.0),
        metric="dists",
        pooling="l2",
        source="Ding et al. 2020, arXiv 2004.07728, equations 5 to 7",
    ),
}
"""The published losses by name."""


METRICS: Final[Mapping[str, LossConfig]] = {
    "lpips": PRESETS["lpips"],
    "dists": PRESETS["dists"],
    "gram": replace(PRESETS["johnson"], content={}),
    "content": replace(PRESETS["johnson"], style={}),
}
"""What images are compared by, all with VGG16: LPIPS, DISTS, and the style and the content term of `johnson`."""


def find_preset(name: str) -> LossConfig:
    """The published loss of that name; raises UnknownName."""
    if name not in PRESETS:
        raise UnknownName.of("perceptual loss", name, tuple(PRESETS))
    return PRESETS[name]


def demand_calibration(given: object, config: LossConfig) -> None:
    """Raise BadConfiguration where the loss needs a calibration and none is given, or the reverse."""
    if config.metric == "features" and given is not None:
        raise BadConfiguration("calibration= is for lpips and dists; this loss has none")
    if config.metric != "features" and given is None:
        files = {
            "lpips": "weights/v0.1/vgg.pth, which comes with the package lpips",
            "dists": "weights.pt, which comes with the package dists_pytorch (github.com/dingkeyan93/DISTS)",
        }
        raise BadConfiguration(
            f"{config.metric} needs its trained weights: give calibration= (--calibration), the file "
            f"{files[config.metric]}"
        )
