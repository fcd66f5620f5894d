"""The fully connected layers of a VGG, split over processes: each has a part of every matrix.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997: convolutions
have few weights and many activations, so each process computes them for its own images and their gradients are
averaged; fully connected layers have most of the weights and few activations, so each process computes a part of
them for the images of all processes. Activations are exchanged in place of 90 % of the gradients, which are exact.

The first layer is split by its outputs, and the others by their inputs, so that each layer needs one exchange.

Shape letters: n images of this process, N of all, F features, K classes, P processes.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vggkit.errors import BadConfiguration
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG
from vggkit.training.distributed.process_group import ProcessGroup


class SplitHead(nn.Module):
    """The process's part of a network's head, in tensors of its own.

    Args:
        network: Its head is copied; the weights of the network itself change in `write_back` alone.
        group: The processes; each hidden layer's width is a multiple of their number.
    """

    def __init__(self, network: VGG, group: ProcessGroup) -> None:
        super().__init__()
        check_split(network.configuration, group.size)
        self._group = group
        layers = [(index, layer) for index, layer in enumerate(network.classifier) if isinstance(layer, nn.Linear)]
        self._first, self._last = layers[0][0], layers[-1][0]
        self.axes: dict[str, int] = {}
        """The axis that each split tensor is split by, by its key in the network; the last bias is not split."""
        for index, _ in layers:
            self.axes[f"classifier.{index}.weight"] = 0 if index == self._first else 1
            if index != self._last:
                self.axes[f"classifier.{index}.bias"] = 0
        values = dict(network.named_parameters())
        self.parts = nn.ParameterDict(
            {_name(key): nn.Parameter(self.cut(key, values[key].detach())) for key in self.axes}
        )
        # Whole layers between them, and the last bias, are the network's own, and no parts of this module.
        self._network = (network,)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, K) of this process's images, from what the head reads, (n, F)."""
        count = len(features)
        (most,) = self._group.maximum(count)
        values = _Gather.apply(_pad(features, int(most)), self._group.size)
        for index, layer in enumerate(self._network[0].classifier):
            values = self._multiply(index, layer, values) if isinstance(layer, nn.Linear) else layer(values)
        return cast(Tensor, values)[:count]

    def _multiply(self, index: int, layer: nn.Linear, values: Tensor) -> Tensor:
        weight = self.parts[_name(f"classifier.{index}.weight")]
        if index == self._first:  # (N, F) -> (N, F'/P): all inputs, some outputs
            return nn.functional.linear(values, weight, self.parts[_name(f"classifier.{index}.bias")])
        partial, size = nn.functional.linear(values, weight), self._group.size
        if index == self._last:  # (N, F/P) -> (n, K): each process sums up those of its images
            logits: Tensor = _Scatter.apply(partial, size) + layer.bias
            return logits
        # (N, F/P) -> (N, F'/P): each process sums up some outputs of all images
        columns = partial.view(len(partial), size, -1).transpose(0, 1).flatten(0, 1)
        summed: Tensor = _Scatter.apply(columns, size) + self.parts[_name(f"classifier.{index}.bias")]
        return summed

    def named_parts(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each part with the key of the whole."""
        for key in self.axes:
            yield key, self.parts[_name(key)]

    def cut(self, key: str, whole: Tensor) -> Tensor:
        """The process's part of a tensor that belongs to the key, such as its momentum; a copy."""
        return whole.chunk(self._group.size, self.axes[key])[self._group.rank].clone(
            memory_format=torch.contiguous_format
        )

    def join(self, key: str, part: Tensor) -> Tensor:
        """The whole of which each process has a part."""
        parts = [torch.empty_like(part) for _ in range(self._group.size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts, self.axes[key])


class SplitWeights:
    """The float32 weights of a split head, which are updated, and their moving average.

    Args:
        head: What computes with them; in float32 they are its own tensors.
        network: Whole, in float32.
        average: Whole; None where there is none.
    """

    def __init__(self, head: SplitHead, network: VGG, average: VGG | None) -> None:
        self._head, self._networks = head, {"network": network} | ({} if average is None else {"average": average})
        values = dict(network.named_parameters())
        self.parts = {
            key: part.detach() if part.dtype == values[key].dtype else head.cut(key, values[key].detach())
            for key, part in head.named_parts()
        }
        """This process's parts, by their keys in the network."""
        self._average = {} if average is None else {key: part.clone() for key, part in self.parts.items()}

    def move_average(self, share: float) -> None:
        """Move the average by this share of the distance to the weights."""
        torch._foreach_lerp_(list(self._average.values()), list(self.parts.values()), share)

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the parts of every process into the whole networks."""
        for network, parts in zip(self._networks.values(), (self.parts, self._average), strict=False):
            values = dict(network.named_parameters())
            for key, part in parts.items():
                values[key].copy_(self._head.join(key, part))

    @torch.no_grad()
    def restore(self) -> None:
        """Take this process's parts from the whole networks, for the head too."""
        for network, parts in zip(self._networks.values(), (self.parts, self._average), strict=False):
            values = dict(network.named_parameters())
            for key, part in parts.items():
                part.copy_(self._head.cut(key, values[key]))
        for key, part in self._head.named_parts():
            part.copy_(self.parts[key])


def check_split(configuration: Configuration, size: int) -> None:
    """Raise BadConfiguration where the head of a network cannot be split over so many processes."""
    widths = configuration.hidden
    ranks = configuration.ranks or ()
    if configuration.head != "fc" or not widths or any(rank is not None for rank in ranks):
        raise BadConfiguration(
            "split_head=true splits fully connected layers of whole matrices (--head fc), and the head of this "
            f"network is {configuration.head}{' with low-rank layers' if any(ranks) else ''}; leave it out"
        )
    if odd := [width for width in widths if width % size]:
        raise BadConfiguration(
            f"split_head=true gives each process an equal part of every hidden layer, and {odd[0]:,} outputs "
            f"cannot be divided by {size} processes; start a number that divides {odd[0]:,}, or leave it out"
        )


def measure_length(gradients: list[Tensor], own: list[Tensor], group: ProcessGroup) -> float:
    """The norm of all gradients together, of which some are each process's own part of a whole."""
    if not own:
        return float(nn.utils.get_total_norm(gradients))
    places = {id(gradient) for gradient in own}
    shared = [gradient for gradient in gradients if id(gradient) not in places]
    split = [gradient for gradient in gradients if id(gradient) in places]
    (squares,) = group.sum(float(nn.utils.get_total_norm(split)) ** 2)
    return math.sqrt(squares + float(nn.utils.get_total_norm(shared)) ** 2)


class _Gather(torch.autograd.Function):
    """(n, F) of each process -> (N, F) in all; its gradient is the sum of theirs for the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _gather(rows, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scatter(gradient, ctx.size), None


class _Scatter(torch.autograd.Function):
    """(N, F) of each process -> the own rows (n, F) of their sum."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _scatter(rows, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gather(gradient, ctx.size), None


def _gather(rows: Tensor, size: int) -> Tensor:
    found = rows.new_empty(size * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(found, rows.contiguous())
    return found


def _scatter(rows: Tensor, size: int) -> Tensor:
    found = rows.new_empty(len(rows) // size, *rows.shape[1:])
    dist.reduce_scatter_tensor(found, rows.contiguous())
    return found


def _pad(rows: Tensor, count: int) -> Tensor:
    """Rows of zeros below, up to so many: in an uneven batch processes have different numbers of images."""
    return rows if len(rows) == count else nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _name(key: str) -> str:
    return key.replace(".", "_")  # names of parameters have no dots
