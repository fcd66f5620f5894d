"""Small Classifiers to export."""

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
