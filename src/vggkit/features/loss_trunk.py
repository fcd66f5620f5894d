"""The part of a VGG that a perceptual loss compares, and how images enter it.

Shape letters: N images, C channels, H and W pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggkit.engines.winograd import is_worth_it, transform_filters
from vggkit.errors import BadConfiguration, BadInput
from vggkit.features.convolution import Kernel, convolve, turn
from vggkit.features.loss_config import LossConfig
from vggkit.features.pooling import pool_first_largest, pool_largest
from vggkit.features.side_by_side import is_thread_alike
from vggkit.hardware import computes_bf16
from vggkit.images.preprocessing import Preprocessing, choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.models.features import Features
from vggkit.models.layers import widen
from vggkit.models.vgg import VGG
from vggkit.weights.identify import identify
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model
from vggkit.weights.published_classifiers import is_model_name

LPIPS_SHIFT: Final = (-0.030, -0.088, -0.188)
LPIPS_SCALE: Final = (0.458, 0.448, 0.450)


class LossTrunk(Features):
    """The layers that a loss compares and those below, with the given network's tensors as constants.

    Args:
        network: The VGG.
        preprocessing: What its images must be normalised to.
        config: The loss.
        input_range: The range of the images that `forward` takes.
        dtype: What the layers compute in.
        winograd: Of convolutions of many channels in float32 on a CPU, what Winograd's algorithm computes: nothing,
            the gradients, or everything.
        rounds_gradients: Compute the gradients of convolutions in bfloat16, where the device does so natively.
    """

    def __init__(
        self,
        network: VGG,
        preprocessing: Preprocessing,
        config: LossConfig,
        *,
        input_range: tuple[float, float],
        dtype: torch.dtype,
        winograd: Literal["nothing", "gradients", "everything"] = "nothing",
        rounds_gradients: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        whole = network.configuration
        cut = replace(
            whole,
            until=_deepest(config, whole),
            head="pool",
            statistics="mean",
            hidden=(),
            ranks=None,
            num_classes=1,
            pooling="average" if config.pooling == "average" else "max",
        )
        with torch.device("meta"):
            copy = VGG(cut)
        values = network.features.state_dict()
        shared = {key: values[key].detach() for key in copy.features.state_dict()}
        copy.features.load_state_dict(shared, assign=True)
        copy.classifier = nn.Sequential()  # never read
        copy.requires_grad_(False)
        exact = dtype != torch.bfloat16 and winograd != "everything"
        # Another memory format rounds differently than the published implementations, and where two values of a
        # pool are nearly equal the gradient takes another way.
        self._memory_format = torch.contiguous_format if exact else torch.channels_last
        copy.to(dtype).eval()
        if dtype == torch.bfloat16:  # others share their memory with the network
            copy.to(memory_format=self._memory_format)
        self._prepare(copy, cut, config.layers, frozen=True)
        self._pools_roots = config.pooling == "l2"
        self._is_flipped = config.scaling == "trunk" and preprocessing.channel_order == "BGR"
        shift, scale = _find_scaling(config, preprocessing, input_range)
        self.register_buffer("_shift", shift, persistent=False)
        self.register_buffer("_scale", scale, persistent=False)
        self._is_direct = exact
        self._processor_rounds = rounds_gradients and computes_bf16("cpu")
        self._has_rounded_ties = winograd == "everything"
        self._kernels: dict[nn.Module, int] = {}
        for layer in self._trunk if winograd != "nothing" or rounds_gradients else ():
            module = copy.features[layer.index]
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                self._kernels[module] = layer.index
                has_tiles = winograd != "nothing" and is_worth_it(module.weight, threads=1)
                tiles = transform_filters(module.weight) if has_tiles else None
                turned = turn(module.weight).to(torch.bfloat16) if rounds_gradients else None
                if turned is not None:
                    turned = turned.contiguous(memory_format=self._memory_format)
                self.register_buffer(f"_tiles_{layer.index}", tiles, persistent=False)
                self.register_buffer(f"_turned_{layer.index}", turned, persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`{name: value}` of images (N, 3, H, W), RGB in the declared range."""
        # Divided, as the published implementations do: a product with the reciprocal rounds differently.
        scaled = (widen(images) - self.get_buffer("_shift")) / self.get_buffer("_scale")
        scaled = scaled.flip(1) if self._is_flipped else scaled
        dtype = next(self.network.features.parameters()).dtype
        return super().forward(scaled.to(dtype).contiguous(memory_format=self._memory_format))

    def is_faster_side_by_side(self, images: Tensor) -> bool:
        """Whether two passes at a time, on half of the processors each, are faster and as exact as one by one."""
        return images.device.type == "cpu" and not self._is_direct and _is_plain(images) and is_thread_alike()

    def _apply_layer(self, module: nn.Module, values: Tensor, *, in_place: bool) -> Tensor:
        match module:
            case nn.MaxPool2d() if self._pools_roots:
                return _pool_roots(values)
            case nn.MaxPool2d() if not torch.is_grad_enabled():
                return pool_largest(values)
            case nn.MaxPool2d() if self._has_rounded_ties and _is_plain(values):
                return pool_first_largest(values)
            case nn.Conv2d() if module in self._kernels and _is_plain(values):
                return convolve(values, self._find_kernel(module, values))
        return super()._apply_layer(module, values, in_place=in_place)

    def _find_kernel(self, module: nn.Conv2d, values: Tensor) -> Kernel:
        index, is_on_cpu = self._kernels[module], values.device.type == "cpu"
        has_gain = is_worth_it(module.weight, threads=torch.get_num_threads())
        return Kernel(
            module.weight.detach(),
            None if module.bias is None else module.bias.detach(),
            tiles=getattr(self, f"_tiles_{index}") if is_on_cpu and has_gain else None,
            turned=getattr(self, f"_turned_{index}") if self._processor_rounds or not is_on_cpu else None,
            is_direct=self._is_direct,
        )


def _is_plain(values: Tensor) -> bool:
    """Whether nothing but these values decides what is computed, and in which precision."""
    return (
        values.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(values.device.type)
    )


def _find_scaling(
    config: LossConfig, preprocessing: Preprocessing, input_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Shift and scale (1, 3, 1, 1): what the trunk reads is (images - shift) / scale, in RGB order."""
    low, high = input_range
    match config.scaling:
        case "none":  # the range becomes [-1, 1]
            shift, scale = [(low + high) / 2] * 3, [(high - low) / 2] * 3
        case "lpips":
            shift = [low + (each + 1) / 2 * (high - low) for each in LPIPS_SHIFT]
            scale = [each * (high - low) / 2 for each in LPIPS_SCALE]
        case "trunk":
            full = preprocessing.full_value
            mean, std = preprocessing.mean, preprocessing.std
            if preprocessing.channel_order == "BGR":
                mean, std = mean[::-1], std[::-1]
            shift = [low + each / full * (high - low) for each in mean]
            scale = [each / full * (high - low) for each in std]
    return torch.tensor(shift)[None, :, None, None], torch.tensor(scale)[None, :, None, None]


def _pool_roots(values: Tensor) -> Tensor:
    """The root of the mean of squares, weighted by a Hann window of 3×3, at every other place."""
    window = torch.tensor([0.25, 0.5, 0.25], dtype=values.dtype, device=values.device)
    kernel = (window[:, None] * window).expand(values.shape[1], 1, 3, 3)
    squares = F.conv2d(values.square(), kernel, stride=2, padding=1, groups=values.shape[1])
    return (squares + 1e-12).sqrt()


def open_trunk(given: VGG | Model | str | Path, config: LossConfig, name: str) -> tuple[VGG, Preprocessing]:
    """The network of `trunk=`, and what its images must be normalised to.

    Raises BadConfiguration where it does not fit the loss, BadInput for what is no network, and BadCheckpoint.
    """
    if isinstance(given, VGG):
        preprocessing = choose_preprocessing(in_channels=given.configuration.in_channels)
        model: VGG = given
    elif isinstance(given, Model):
        model, preprocessing = given.network, given.preprocessing
    elif isinstance(given, str | Path):
        opened = load_trunk(given, config, name)
        model, preprocessing = opened.network, opened.preprocessing
    else:
        raise BadInput(f"trunk= is a VGG, a Classifier, a file or a model's name, got {type(given).__name__}")
    _demand_layers(model.configuration, config, name)
    if model.configuration.in_channels != 3:
        raise BadConfiguration(f"{name} compares colour images, and the trunk reads one channel")
    return model, preprocessing


def load_trunk(place: str | Path, config: LossConfig, name: str) -> Model:
    """The trunk of published weights, of a Classifier's file or of a file of weights, up to the deepest layer.

    Raises BadConfiguration where the file's network is another one, or ends before a layer that is compared, and
    BadCheckpoint.
    """
    if not is_model_name(place):
        found = identify(locate_model(place))
        if found.configuration is not None:
            _demand_layers(found.configuration, config, name)
    whole = configure(config.model, head="pool")
    return Model.create(
        config.model, labels=["unused"], weights=place, until=_deepest(config, whole), head="pool", seed=0
    )


def _demand_layers(configuration: Configuration, config: LossConfig, name: str) -> None:
    held = [layer.name for layer in configuration.trunk]
    absent = [layer for layer in config.layers if layer not in held]
    if configuration.model != config.model:
        raise BadConfiguration(f"{name} compares layers of {config.model}; the trunk is a {configuration.model}")
    if absent:
        raise BadConfiguration(f"{name} compares {', '.join(absent)}, and the trunk ends with {held[-1]}")


def _deepest(config: LossConfig, configuration: Configuration) -> str:
    order = [layer.name for layer in configuration.trunk]
    return max(config.layers, key=order.index)
