"""A network as PyTorch runs it.

Shape letters: N pictures, C channels, H and W pixels, K classes, F features.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vggkit.engines.cuda_graphs import Replays
from vggkit.engines.outputs import Output, Plan, check_batch, find_relu, plan_outputs
from vggkit.engines.stream import NamedEngine
from vggkit.networks.vgg import VGG, slide


class PyTorchEngine(NamedEngine):
    """Runs a VGG on a device, in evaluation mode and without gradients.

    In fp32 the network itself moves to the device and to channels_last; the mode of each of its modules
    stays as it was, a frozen batch norm's too. In bf16 a copy computes, its batch norms in float32, of
    the weights as they are now; the network stays where and as it is. On CUDA single pictures of one size
    are computed by a recorded pass.

    Args:
        network: The VGG.
        device: Where it computes.
        output: What is given of each picture, or several names.
        precision: What is computed in.
        temperature: What logits are divided by before they become probabilities.

    Raises UnknownName.
    """

    def __init__(
        self,
        network: VGG,
        device: torch.device,
        *,
        output: Output | Sequence[Output] = "logits",
        precision: Literal["fp32", "bf16"] = "fp32",
        temperature: float = 1.0,
    ) -> None:
        self._temperature = temperature
        planes = torch.channels_last
        self._configuration = network.configuration
        self._plan = plan_outputs(self._configuration, output)
        self.outputs = self._plan.names
        self.network: VGG
        if precision == "bf16":
            self.network = _copy_in_bf16(network).to(device, memory_format=planes)  # type: ignore[call-overload]
            self.dtype = torch.bfloat16
        else:
            self.network = network.to(device, memory_format=planes)  # type: ignore[call-overload]
            self.dtype = next(network.parameters()).dtype
        self.device = device
        self._replays = Replays(partial(_look, self.network, plan=self._plan), device)

    def compute(self, batch: NDArray[np.float32]) -> dict[Output, NDArray[np.float32]]:
        """Every output by its name, of one pass."""
        check_batch(self._configuration, batch)
        images = torch.from_numpy(batch).to(self.device, self.dtype, memory_format=torch.channels_last)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode():
                found = self._replays(images)
                rows = {name: values.float().cpu().numpy() for name, values in found.items()}
        finally:
            for module, training in modes:
                module.training = training
        return self._plan.give(rows, self._temperature)


def _look(network: VGG, images: Tensor, plan: Plan) -> dict[Output, Tensor]:
    """The plan's outputs; follows `VGG.forward`."""
    match plan.drawn:
        case ("logits",):
            return {"logits": network(images)}
        case ("features",):
            return {"features": network.describe(images)}
    found: dict[Output, Tensor] = {}
    maps, before = images, ""
    for layer, module in zip(plan.trunk, network.features, strict=False):
        # A map that is kept must not be overwritten by its ReLU.
        maps = F.relu(maps, inplace=before not in plan.drawn) if layer.kind == "relu" else module(maps)
        before, found[layer.name] = layer.name, maps
    if "statistics" in plan.drawn:
        found["statistics"] = summarize(maps)
    if plan.fully_connected or "features" in plan.drawn:
        found |= _look_at_head(network, maps, plan)
    return {name: found[name] for name in plan.drawn}


def _look_at_head(network: VGG, maps: Tensor, plan: Plan) -> dict[Output, Tensor]:
    """What the plan's layers of the head give, and the rows that are theirs."""
    configuration, found = network.configuration, dict[Output, Tensor]()
    last = configuration.fully_connected[-1]
    slides, side = configuration.head == "dense", configuration.grid
    row = values = network.read(maps, nn.Sequential())
    if slides:
        values = F.adaptive_avg_pool2d(maps, (max(maps.shape[2], side), max(maps.shape[3], side)))
    for fc in plan.fully_connected:
        module = cast(nn.Linear | nn.Sequential, network.classifier[fc.index])
        found["features"] = row
        values, side = (slide(module, values, side), 1) if slides else (module(values), side)
        found[fc.name] = values
        if fc != last:
            values = found[find_relu(fc)] = F.relu(values)
        row = values.mean((2, 3)) if slides else values
    found["logits" if last in plan.fully_connected else "features"] = row
    return found


def summarize(maps: Tensor) -> Tensor:
    """Mean and standard deviation (N, 2 C) of each channel of maps (N, C, H, W)."""
    wide = maps.float()
    return torch.cat([wide.mean((2, 3)), wide.var((2, 3), correction=0).sqrt()], dim=1)


def _narrow(value: Tensor, *, into_bf16: bool) -> Tensor:
    """Whole numbers stay; a batch norm's values are float32, whatever the file holds."""
    if not value.is_floating_point():
        return value
    return value.to(torch.bfloat16 if into_bf16 else torch.float32)


def _copy_in_bf16(network: VGG) -> VGG:
    """Kernels and matrices rounded; batch norms share the network's own values."""
    with torch.device("meta"):
        copy = VGG(network.configuration)
    narrow = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        for name, _ in module.named_parameters(recurse=False)
    }
    state = network.state_dict()
    copy.load_state_dict(
        {key: _narrow(value, into_bf16=key in narrow) for key, value in state.items()}, assign=True
    )
    return copy.requires_grad_(False)
