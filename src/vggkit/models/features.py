"""Values inside a network, under the names that the literature uses.

Shape letters: N images, C channels, H and W pixels, F features.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vggkit.errors import BadInput, UnknownName
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph
from vggkit.models.layers import summarize_channels
from vggkit.models.vgg import VGG, check_images

if TYPE_CHECKING:
    from vggkit.weights.model import Model


ROWS: Final = ("statistics", "features", "logits")
"""Names that every network has besides its layers, with a row of values for each image."""


class Features(nn.Module):
    """Named intermediate values of a VGG, from one pass that ends with the last of them.

    The names are those of `list_features`: `conv3_2` is the convolution's own value, before batch norm and ReLU;
    `bn3_2`, `relu3_2` and `pool3` are what follows; `fc6`, `relu6`, `fc7`, `relu7` and `fc8` belong to the head.
    ReLUs that work in place do not overwrite a value that is returned.

    The values are those of prediction: batch norm uses its running statistics and dropout is off, in any mode of
    the network, unless `train()` is called on this module. The network is not copied and not changed, and
    gradients flow to the images, and to its parameters unless `frozen`.

    Args:
        network: A VGG, or a Classifier, whose network is taken.
        names: One name or several.
        frozen: Treat the parameters as constants: no gradients of them are computed.

    Raises UnknownName with the nearest name, and BadInput for no names.

    >>> import torch, vggkit as vk
    >>> features = vk.Features(vk.VGG("vgg11", until="pool5"), ["relu1_1", "pool5"])
    >>> {name: tuple(value.shape) for name, value in features(torch.zeros(1, 3, 64, 64)).items()}
    {'relu1_1': (1, 64, 64, 64), 'pool5': (1, 512, 2, 2)}
    """

    def __init__(self, network: "VGG | Model", names: str | Sequence[str], *, frozen: bool = False) -> None:
        super().__init__()
        held = network if isinstance(network, VGG) else getattr(network, "network", None)
        if not isinstance(held, VGG):
            raise BadInput(f"features are taken from a VGG or a Classifier, got {type(network).__name__}")
        self._prepare(held, held.configuration, names, frozen=frozen)

    def _prepare(
        self, network: VGG, configuration: Configuration, names: str | Sequence[str], *, frozen: bool
    ) -> None:
        self.network, self.frozen = network, frozen
        self._configuration = configuration
        self.names = _demand_names(names, configuration)
        order = [layer.name for layer in configuration.trunk]
        self._beyond = frozenset(self.names).difference(order)
        deepest = len(order) if self._beyond else 1 + max(order.index(name) for name in self.names)
        self._trunk = configuration.trunk[:deepest]
        self.training = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`{name: value}` in the order of `names`.

        Args:
            images: Normalised as for the network, floating point (N, C, H, W); H and W must leave at least one
                pixel behind the last pool that is needed, 32 pixels for `pool5` and the head.

        Layers of the trunk give maps (N, C, H, W); those of the head rows (N, F), and maps where the head slides
        (`dense`). `features` is what the last fully connected layer reads, `statistics` the mean and the standard
        deviation of each channel of the trunk's last map (N, 2C). Raises BadInput.
        """
        if not (torch.compiler.is_compiling() or isinstance(images, fx.Proxy)):
            smallest = 1 << sum(layer.kind == "pool" for layer in self._trunk)
            check_images(images, channels=self._configuration.in_channels, smallest=smallest)
        found: dict[str, Tensor] = {}
        values, is_kept = images, True  # the caller's images are never overwritten
        for layer in self._trunk:
            values = self._apply_layer(self.network.features[layer.index], values, in_place=not is_kept)
            is_kept = layer.name in self.names
            if is_kept:
                found[layer.name] = values
        if self._beyond:
            self._read_head(values, found)
        return {name: found[name] for name in self.names}

    def _read_head(self, maps: Tensor, found: dict[str, Tensor]) -> None:
        """Add the head's values that are wanted, up to the last of them."""
        if "statistics" in self._beyond:
            found["statistics"] = summarize_channels(maps, True)
        wanted = self._beyond - {"statistics"}
        *hidden, last = self._configuration.fully_connected
        values, grid = self._enter_head(maps) if wanted else maps, self._configuration.grid
        for fc in hidden:
            if not wanted.difference(found):
                return
            values = self._connect(self.network.classifier[fc.index], values, grid)
            grid, is_kept = 1, fc.name in wanted
            if is_kept:
                found[fc.name] = values
            values = F.relu(values, inplace=not is_kept)
            if fc.relu in wanted:
                found[fc.relu] = values
            if self.training:
                values = cast(Tensor, self.network.classifier[fc.index + 2](values.clone()))
        if "features" in wanted:
            found["features"] = _average(values)
        if wanted & {last.name, "logits"}:
            values = self._connect(self.network.classifier[last.index], values, grid)
            found |= {last.name: values, "logits": _average(values)}

    def _enter_head(self, maps: Tensor) -> Tensor:
        """The values that the first fully connected layer reads."""
        configuration, grid = self._configuration, self._configuration.grid
        if configuration.head == "pool":
            rows = summarize_channels(maps, configuration.statistics == "mean+std")
            return F.dropout(rows, configuration.dropout, self.training)
        height, width = maps.shape[-2:]
        if configuration.head == "fc":
            pooled = maps if (height, width) == (grid, grid) else F.adaptive_avg_pool2d(maps, grid)
            return pooled.flatten(1)
        if height < grid or width < grid:
            maps = F.adaptive_avg_pool2d(maps, (max(height, grid), max(width, grid)))
        return maps

    def _connect(self, module: nn.Module, values: Tensor, grid: int) -> Tensor:
        """A fully connected layer on rows, or slid over maps."""
        for linear in cast(Iterable[nn.Linear], module if isinstance(module, nn.Sequential) else [module]):
            weight = self._constant(linear.weight)
            bias = None if linear.bias is None else self._constant(linear.bias)
            if values.dim() == 4:
                values = F.conv2d(values, weight.view(weight.shape[0], -1, grid, grid), bias)
                grid = 1
            else:
                values = F.linear(values, weight, bias)
        return values

    def _apply_layer(self, module: nn.Module, values: Tensor, *, in_place: bool) -> Tensor:
        """One layer of the trunk."""
        match module:
            case nn.Conv2d():
                bias = None if module.bias is None else self._constant(module.bias)
                padding = cast(tuple[int, int], module.padding)
                return F.conv2d(values, self._constant(module.weight), bias, padding=padding)
            case nn.ReLU():
                return F.relu(values, inplace=in_place)
            case nn.BatchNorm2d() if not self.training:
                return F.batch_norm(
                    values,
                    module.running_mean,
                    module.running_var,
                    self._constant(module.weight),
                    self._constant(module.bias),
                    training=False,
                    eps=module.eps,
                )
            case _:
                return cast(Tensor, module(values))

    def _constant(self, parameter: Tensor) -> Tensor:
        return parameter.detach() if self.frozen else parameter


def list_features(configuration: Configuration) -> list[str]:
    """Every name that `Features` takes for this network: its layers in order, then `statistics`, `features` and
    `logits`.
    """
    return [*Graph(configuration).names, *ROWS]


def _demand_names(names: str | Sequence[str], configuration: Configuration) -> tuple[str, ...]:
    known = list_features(configuration)
    wanted = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(dict.fromkeys(names))
    if not wanted:
        raise BadInput(f"name one layer or several, of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise UnknownName.of("layer of this network", name, known)
    return wanted


def _average(values: Tensor) -> Tensor:
    """Rows (N, F) as they are; maps (N, F, H, W) as their means."""
    return values.mean((2, 3)) if values.dim() == 4 else values
