"""A network as PyTorch runs it.

Shape letters: N pictures, C channels, H and W pixels, K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.networks.vgg import VGG


class PyTorchEngine:
    """Runs a VGG on a device, in evaluation mode and without gradients; the network's mode stays as it was."""

    def __init__(self, network: VGG, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, K) of preprocessed pictures (N, C, H, W)."""
        images = torch.from_numpy(batch).to(self.device, memory_format=torch.channels_last)
        training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode():
                logits: NDArray[np.float32] = self.network(images).float().cpu().numpy()
        finally:
            self.network.train(training)
        return logits
