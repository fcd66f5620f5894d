"""A network as PyTorch runs it.

Shape letters: N pictures, C channels, H and W pixels, K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.networks.vgg import VGG


class PyTorchEngine:
    """Runs a VGG on a device, in evaluation mode and without gradients.

    The network itself moves to the device and to channels_last; the mode of each of its modules
    stays as it was, a frozen batch norm's too.
    """

    def __init__(self, network: VGG, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.dtype = next(network.parameters()).dtype

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K) of preprocessed pictures (N, C, H, W)."""
        images = torch.from_numpy(batch).to(self.device, self.dtype, memory_format=torch.channels_last)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            with torch.inference_mode():
                logits: NDArray[np.float32] = self.network(images).float().cpu().numpy()
        finally:
            for module, training in modes:
                module.training = training
        return logits
