"""A network as PyTorch runs it.

Shape letters: N pictures, C channels, H and W pixels, K classes.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.networks.vgg import VGG

Output = Literal["logits", "statistics"]
"""What is given of a picture: logits, or the statistics of the trunk's last map."""


class PyTorchEngine:
    """Runs a VGG on a device, in evaluation mode and without gradients.

    The network itself moves to the device and to channels_last; the mode of each of its modules
    stays as it was, a frozen batch norm's too.
    """

    def __init__(self, network: VGG, device: torch.device, *, output: Output = "logits") -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.output = output
        self.dtype = next(network.parameters()).dtype

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K), or statistics (N, 2 channels), of preprocessed pictures (N, C, H, W)."""
        images = torch.from_numpy(batch).to(self.device, self.dtype, memory_format=torch.channels_last)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode():
                found = self.network(images) if self.output == "logits" else describe(self.network.features(images))
                rows: NDArray[np.float32] = found.float().cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training
        return rows


def describe(maps: torch.Tensor) -> torch.Tensor:
    """Mean and standard deviation (N, 2 C) of each channel of maps (N, C, H, W)."""
    wide = maps.float()
    return torch.cat([wide.mean((2, 3)), wide.var((2, 3), correction=0).sqrt()], dim=1)
