"""The network: a `VGG` is built from a `Configuration`; images go in, logits come out.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import json
from contextlib import suppress
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from vggkit.errors import BadConfiguration, BadInput
from vggkit.models.configuration import Configuration, Head, Scheme, find_configuration
from vggkit.models.configure import configure
from vggkit.models.initialization import initialize
from vggkit.models.layers import build_head, build_pool, build_trunk
from vggkit.models.statements import CONFIGURATION_KEY
from vggkit.models.structure import read_configuration


class VGG(nn.Module):
    """Simonyan and Zisserman's network, or any other value of `Configuration`.

    `features` is the trunk, `avgpool` turns its last map into a row of numbers and has no weights, and
    `classifier` the head, with torchvision's keys and, from the same weights (or the same seed), torchvision's
    logits bit for bit. `torch.fx`, torchvision's `create_feature_extractor` and `torch.jit.script` take every head.

    Args:
        configuration: A name of `list_models()`, or a Configuration.
        num_classes: Classes K; 1000 unless the model specifies another number.
        in_channels: Channels C of the images.
        head: `fc` (the paper's), `dense` (the same as convolutions) or `pool`; see Configuration.
        dropout: Chance in [0, 1).
        until: Cut the trunk after this layer, such as `relu3_4`, and put a pool head on it.
        initialization: `kaiming`, `glorot`, `paper` or `dirac`; see `initialize`.
        inplace: Whether each ReLU overwrites its input, which saves memory; see `set_inplace`.

    Raises UnknownName and BadConfiguration.
    """

    # torch.jit.script compiles a module's properties too, unless they are named here.
    __jit_unused_properties__: ClassVar = ["configuration"]

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
        inplace: bool = True,
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
        self.avgpool = build_pool(self._built)
        self.classifier = build_head(self._built)
        # Numbers beside the Configuration, which torch.jit.script cannot hold.
        self._grid, self._slides = self._built.grid, self._built.head == "dense"
        self.set_inplace(inplace)
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
        inplace: bool = True,
    ) -> Self:
        """The network with published ImageNet weights, as a plain module in training mode.

        The weights are downloaded where they are not on this machine; see `vggkit.fetch`. Its input is images as
        `vggkit.Preprocessing()` prepares them: RGB in [0, 1], ImageNet's mean and standard deviation.
        `vggkit.load(model)` gives the same network with its preprocessing and its 1,000 labels.

        Args:
            model: A name of `list_models()` with published weights.
            num_classes: With another number than 1000 the last layer is initialised at random.
            in_channels: With another number than 3 the first filters are adapted; see `adapt_filters`.
            head: With `pool` the head is initialised at random.
            dropout: Chance in [0, 1).
            until: Cut the trunk after this layer, such as `relu3_4`, with a pool head initialised at random.
            inplace: Whether each ReLU overwrites its input; see `set_inplace`.

        Raises UnknownName, BadConfiguration, and BadDownload where no host gives the weights.
        """
        # The one import upwards of this package; see docs/decisions/rooms.md.
        from vggkit.weights.published_classifiers import read_published

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
            network = cls(configuration, inplace=inplace)
        else:
            with torch.device("meta"):
                network = cls(configuration, inplace=inplace)
        network.load_state_dict(weights, strict=False, assign=True)
        return network.requires_grad_(True)

    @property
    def configuration(self) -> Configuration:
        """The configuration of the network as it is now, read from its modules: changed widths, pooling and dropout
        are found, such as those of a new last layer.

        Raises BadConfiguration, naming the module, where no Configuration describes the modules.
        """
        return read_configuration(self, self._built, base=VGG)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Put the configuration into the metadata of the state dict, since shapes do not determine all of it.

        A network that no Configuration describes any more adds no metadata.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            with suppress(BadConfiguration):
                metadata[prefix[:-1]][CONFIGURATION_KEY] = json.dumps(self.configuration.to_dict())

    def set_inplace(self, inplace: bool) -> Self:
        """Let each ReLU overwrite its input, or not; returns the network itself, so that calls can be chained.

        Numbers and files are the same either way. In place is torchvision's choice and takes less memory. Code that
        keeps a convolution's output, such as a forward hook on it, then sees it after the ReLU. Torch refuses to
        overwrite the input of a full backward hook: `forward` switches in-place ReLUs off where it finds such a
        hook, a call of `features` alone does not.

        >>> network = VGG("vgg11", num_classes=2, head="pool").set_inplace(False)
        >>> network.features[1]
        ReLU()
        """
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of `images` (N, C, H, W), floating point, H and W at least `minimum_side`."""
        if not is_scripting():  # noqa: SIM102 - the compiler leaves out only what is nested directly below
            if not isinstance(images, fx.Proxy):
                return self._read(images, self.classifier)
        # For graphs: the same layers, each called as a module, and no branch on a size.
        maps = self.avgpool(self.features(images))
        rows = torch.flatten(maps, 1)
        if self._slides:
            rows = F.unfold(maps, self._grid).transpose(1, 2)  # (N, places, C * grid²)
        logits: Tensor = self.classifier(rows)
        return logits.mean(1) if self._slides else logits

    def describe(self, images: Tensor) -> Tensor:
        """The input of the last fully connected layer, (N, F): `classifier[-1]` of it gives the logits.

        For the paper's head that is fc7 after its ReLU; where the head slides, its average over the map,
        which a last layer that is linear may read in place of the map; for a pool head without hidden
        layers the statistics themselves.
        """
        return self._read(images, self.classifier[:-1])

    def _read(self, images: Tensor, layers: nn.Sequential) -> Tensor:
        """The trunk, and then these layers of the head."""
        # Traced graphs contain no checks: a guard on H and W would fix or bound their sizes.
        if not (torch.compiler.is_compiling() or isinstance(images, fx.Proxy)):
            check_images(images, channels=self._built.in_channels, smallest=self._built.minimum_side)
            if any(module._backward_hooks or module._backward_pre_hooks for module in self.modules()):
                self.set_inplace(False)
        return self.read(self.features(images), layers)

    def read(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """The output (N, F) of these first layers of the head, all or none of them, for the trunk's last map."""
        maps = self.avgpool(maps)
        return self._slide(maps, layers) if self._slides else cast(Tensor, layers(torch.flatten(maps, 1)))

    def _slide(self, maps: Tensor, layers: nn.Sequential) -> Tensor:
        """The paper's head slid over the map, and the class scores averaged (paper, section 3.2)."""
        grid = self._grid
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
