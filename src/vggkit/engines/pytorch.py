"""A network as PyTorch runs it.

Shape letters: N pictures, C channels, H and W pixels, K classes, F features.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vggkit.networks.vgg import VGG

Output = Literal["logits", "features", "statistics"]
"""What is given of a picture: logits, what the last fully connected layer reads, or the mean and standard
deviation of each channel of the trunk's last map."""
Precision = Literal["fp32", "bf16"]
"""What is computed in."""


class PyTorchEngine:
    """Runs a VGG on a device, in evaluation mode and without gradients.

    In fp32 the network itself moves to the device and to channels_last; the mode of each of its modules
    stays as it was, a frozen batch norm's too. In bf16 a copy computes, its batch norms in float32, of
    the weights as they are now; the network stays where and as it is.
    """

    def __init__(
        self, network: VGG, device: torch.device, *, output: Output = "logits", precision: Precision = "fp32"
    ) -> None:
        planes = torch.channels_last
        self.network: VGG
        if precision == "bf16":
            self.network = _copy_in_bf16(network).to(device, memory_format=planes)  # type: ignore[call-overload]
            self.dtype = torch.bfloat16
        else:
            self.network = network.to(device, memory_format=planes)  # type: ignore[call-overload]
            self.dtype = next(network.parameters()).dtype
        self.device = device
        self.output = output

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """A row, as `output` says, of each of preprocessed pictures (N, C, H, W)."""
        images = torch.from_numpy(batch).to(self.device, self.dtype, memory_format=torch.channels_last)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode():
                rows: NDArray[np.float32] = self._compute(images).float().cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training
        return rows

    def _compute(self, images: Tensor) -> Tensor:
        match self.output:
            case "logits":
                return self.network(images)  # type: ignore[no-any-return]
            case "features":
                return self.network.describe(images)
            case "statistics":
                return summarize(self.network.features(images))


def summarize(maps: Tensor) -> Tensor:
    """Mean and standard deviation (N, 2 C) of each channel of maps (N, C, H, W)."""
    wide = maps.float()
    return torch.cat([wide.mean((2, 3)), wide.var((2, 3), correction=0).sqrt()], dim=1)


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
        {key: value.to(torch.bfloat16) if key in narrow else value for key, value in state.items()}, assign=True
    )
    return copy.requires_grad_(False)
