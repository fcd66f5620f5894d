"""Small Classifiers to export."""

import numpy as np
import torch
from torch import nn

from vggkit.classifier import Classifier
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG

FC = Configuration(blocks=((8,), (12,), (16, 16), (16,), (20,)), hidden=(24, 18), grid=2, num_classes=5)


def build(configuration: Configuration, **options: object) -> Classifier:
    """A Classifier whose weights let signals through, with a temperature and a threshold."""
    torch.manual_seed(0)
    network = VGG(configuration)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.3)
    preprocessing = Preprocessing(**{"resize_pixels": 72, "crop_pixels": 64, **options})
    labels = [f"class {number}" for number in range(configuration.num_classes)]
    return Classifier(network, labels=labels, preprocessing=preprocessing, temperature=1.7, threshold=0.25)


def draw_photo() -> np.ndarray:
    """A smooth image with edges, (H, W, 3)."""
    rng = np.random.default_rng(3)
    down, across = np.mgrid[:150, :211] / 20
    pixels = 120 + 90 * np.stack([np.sin(down), np.cos(across), np.sin(down + across)], axis=-1)
    pixels[30:70, 40:120] = rng.integers(0, 256, 3)
    return np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
