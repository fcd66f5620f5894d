"""The network: a `VGG` is built from a `Configuration`; images go in, logits come out.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import json
from contextlib import suppress
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vggkit.errors import BadConfiguration, BadInput
from vggkit.models.configuration import STD_EPSILON, Configuration, Head, Scheme, configure, find_configuration
from vggkit.models.initialization import initialize
from vggkit.models.layers import build_head, build_trunk
from vggkit.models.statements import CONFIGURATION_KEY
from vggkit.models.structure import read_configuration


class VGG(nn.Module):
    """Simonyan and Zisserman's network, or any other value of `Configuration`.

    `features` is the trunk and `classifier` the head, with torchvision's keys and, from the same
    weights (or the same seed), torchvision's logits bit for bit.

    Args:
        configuration: A name of `list_models()`, or a Configuration.
        num_classes: Classes K; 1000 where the model does not say otherwise.
        in_channels: Channels C of the images.
        head: `fc` (the paper's), `dense` (the same as convolutions) or `pool`; see Configuration.
        dropout: Chance in [0, 1).
        until: Cut the trunk after this layer, such as `relu3_4`, and put a pool head on it.
        initialization: `kaiming`, `glorot`, `paper` or `dirac`; see `initialize`.

    Raises UnknownName and BadConfiguration.
    """

    def __init__(
        self,
        configuration: str | Configuration = "vgg11",
        *,
        num_classes: int | None = None,
        in_channels: int | None = None,
        head: Head | None = None,
        dropout: float | None = None,
        until: str | None = None,
        initialization: Scheme = "kaiming",
    ) -> None:
        super().__init__()
        self._built = configure(
            configuration,
            num_classes=num_classes,
            in_channels=in_channels,
            head=head,
            dropout=dropout,
            until=until,
        )
        self.features = build_trunk(self._built)
        self.classifier = build_head(self._built)
        initialize(self, initialization)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        num_classes: int | None = None,
        in_channels: int | None = None,
        head: Head | None = None,
        dropout: float | None = None,
        until: str | None = None,
    ) -> Self:
        """The network with published ImageNet weights, as a plain module in training mode.

        The weights are downloaded where they are not on this machine; see `vggkit.fetch`. Images are fed as
        `vggkit.Preprocessing()` prepares them: RGB in [0, 1], ImageNet's mean and standard deviation.
        `vggkit.load(model)` gives the same network with its preprocessing and its 1,000 labels.

        Args:
            model: A name of `list_models()` with published weights.
            num_classes: With another number than 1000 the last layer is initialised at random.
            in_channels: With another number than 3 the first filters are adapted; see `adapt_filters`.
            head: With `pool` the head is initialised at random.
            dropout: Chance in [0, 1).
            until: Cut the trunk after this layer, such as `relu3_4`, with a pool head initialised at random.

        Raises UnknownName, BadConfiguration, and BadDownload where no host gives the weights.
        """
        # The one import upwards of this package; see docs/decisions/rooms.md.
        from vggkit.weights.published_models import read_published

        configuration = configure(
            find_configuration(model),
            num_classes=num_classes,
            in_channels=in_channels,
            head=head,
            dropout=dropout,
            until=until,
        )
        weights = read_published(model, configuration)
        if weights.keys() < configuration.state_shapes().keys():
            network = cls(configuration)
        else:
            with torch.device("meta"):
                network = cls(configuration)
        network.load_state_dict(weights, strict=False, assign=True)
        return network.requires_grad_(True)

    @property
    def configuration(self) -> Configuration:
        """What the network is now, read from its modules: widths, pooling and dropout that were changed by hand are
        followed, such as those of a new last layer.

        Raises BadConfiguration, naming the module, where no Configuration says what the modules compute.
        """
        return read_configuration(self, self._built, base=VGG)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Put the configuration into the metadata that torch keeps with a state dict: shapes do not say all of it.

        A network that no Configuration describes any more states nothing.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            with suppress(BadConfiguration):
                metadata[prefix[:-1]][CONFIGURATION_KEY] = json.dumps(self.configuration.to_dict())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W), floating point, H and W at least `minimum_side`."""
        return self._read(images, self.classifier)

    def describe(self, images: Tensor) -> Tensor:
        """What the last fully connected layer reads of `images`, (N, F): `classifier[-1]` of it gives the logits.

        For the paper's head that is fc7 after its ReLU; where the head slides, its average over the map,
        which a last layer that is linear may read in place of the map; for a pool head without hidden
        layers the statistics themselves.
        """
        return self._read(images, self.classifier[:-1])

    def _read(self, images: Tensor, layers: nn.Sequential) -> Tensor:
        """The trunk, and then these layers of the head."""
        # Traced graphs carry no checks of ours: a guard on H and W would fix or bound their sizes.
        if not (torch.compiler.is_compiling() or isinstance(images, fx.Proxy)):
            check_images(images, channels=self._built.in_channels, smallest=self._built.minimum_side)
        return self.read(self.features(images), layers)

    def read(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """What these first layers of the head, all or none of them, read of the trunk's last map: rows (N, F)."""
        match self._built.head:
            case "fc":
                return self._read_flat(maps, layers)
            case "dense":
                return self._read_densely(maps, layers)
            case "pool":
                return self._read_statistics(maps, layers)

    def _read_flat(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """The paper's head; the map is pooled to grid×grid first, as torchvision does."""
        grid = self._built.grid
        # On a grid×grid map pooling is the identity, and its backward is not deterministic on CUDA.
        if isinstance(maps, fx.Proxy) or tuple(maps.shape[-2:]) != (grid, grid):
            maps = F.adaptive_avg_pool2d(maps, grid)
        return cast(Tensor, layers(torch.flatten(maps, 1)))

    def _read_densely(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """The same head slid over the map, and the class scores averaged (paper, section 3.2)."""
        grid = self._built.grid
        height, width = maps.shape[-2:]
        if height < grid or width < grid:
            maps = F.adaptive_avg_pool2d(maps, (max(height, grid), max(width, grid)))
            height, width = maps.shape[-2:]
        rows, columns = height - grid + 1, width - grid + 1
        if not len(layers):  # the window itself, averaged over its places
            return F.avg_pool2d(maps, (rows, columns), stride=1).flatten(1)
        # torch.export holds a size of 1 fixed, and one position is what 224 pixels give. While
        # exporting, a spare row and column keep the sizes free, and the mean leaves them out.
        spare = torch.compiler.is_exporting()
        maps = F.pad(maps, (0, 1, 0, 1)) if spare else maps
        for layer in layers:
            if isinstance(layer, nn.Linear | nn.Sequential):
                maps = slide(layer, maps, grid)
                grid = 1  # only the first layer reads a window
            else:
                maps = layer(maps)
        return _mean_inside(maps, rows, columns) if spare else maps.mean((2, 3))

    def _read_statistics(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """Each channel's mean, or mean and standard deviation, over the map; summed in float32 at least."""
        wide = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
        statistics = wide.mean((2, 3))
        if self._built.statistics == "mean+std":
            variance = wide.var((2, 3), correction=0)
            statistics = torch.cat([statistics, (variance + STD_EPSILON).sqrt()], dim=1)
        statistics = F.dropout(statistics.to(maps.dtype), self._built.dropout, self.training)
        return cast(Tensor, layers(statistics))


def check_images(images: Tensor, *, channels: int, smallest: int) -> None:
    """Raise BadInput unless these are images (N, channels, H, W), floating point, of at least `smallest` pixels."""
    if not isinstance(images, Tensor):
        raise BadInput(f"a batch of images is a torch tensor, got {type(images).__name__}")
    shape = tuple(images.shape)
    if images.dim() != 4 or shape[1] != channels:
        raise BadInput(
            f"a batch of images is (N, {channels}, H, W), got {shape}; "
            "add the batch with [None], or build the network with in_channels="
        )
    if min(shape[2:]) < smallest:
        raise BadInput(
            f"images must be at least {smallest} pixels high and wide, got {shape[2]}×{shape[3]}: each pool "
            "halves the map; enlarge the images, or cut the trunk earlier with until="
        )
    if not images.is_floating_point():
        raise BadInput(f"images must be floating point and normalised, got {images.dtype}; see Preprocessing")


def slide(layer: nn.Linear | nn.Sequential, maps: Tensor, grid: int) -> Tensor:
    """A fully connected layer as a grid×grid convolution; of two factors only the first has a window."""
    if isinstance(layer, nn.Sequential):
        down, up = cast(tuple[nn.Linear, nn.Linear], tuple(layer))
        return slide(up, slide(down, maps, grid), 1)
    return F.conv2d(maps, layer.weight.view(layer.out_features, -1, grid, grid), layer.bias)


def _mean_inside(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Mean over the first rows and columns of maps that have one more of each."""
    row_inside = torch.arange(rows + 1, device=maps.device) < rows
    column_inside = torch.arange(columns + 1, device=maps.device) < columns
    inside = row_inside[:, None] & column_inside
    return torch.where(inside, maps, 0).sum((2, 3)) / (rows * columns)
