"""VGG11 in PyTorch, built block by block.

Configuration A (table 1) of Simonyan and Zisserman, "Very Deep Convolutional Networks
for Large-Scale Image Recognition", arXiv 1409.1556.

11 layers with weights: 8 convolutions, 3 fully connected. 132,863,336 parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_block(in_channels: int, *widths: int) -> nn.Sequential:
    """Convolution and ReLU, once for each width."""
    block = nn.Sequential()
    for i, width in enumerate(widths, start=1):
        # padding=1 with a 3x3 window keeps the size of the map.
        conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        block.add_module(f"conv{i}", conv)
        block.add_module(f"relu{i}", nn.ReLU(inplace=True))
        in_channels = width
    return block


class VGG11(nn.Module):
    """Images (N, 3, H, W) to logits (N, num_classes); H and W from 32 pixels."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        # Each pool halves the map. Sizes are those of a 224x224 image.
        self.features = nn.Sequential(
            # Block 1: 3 -> 64 channels, 224x224 pooled to 112x112
            conv_block(3, 64),
            nn.MaxPool2d(kernel_size=2, stride=2),
            # Block 2: 64 -> 128 channels, 112x112 pooled to 56x56
            conv_block(64, 128),
            nn.MaxPool2d(kernel_size=2, stride=2),
            # Block 3: 128 -> 256 channels, 56x56 pooled to 28x28
            conv_block(128, 256, 256),
            nn.MaxPool2d(kernel_size=2, stride=2),
            # Block 4: 256 -> 512 channels, 28x28 pooled to 14x14
            conv_block(256, 512, 512),
            nn.MaxPool2d(kernel_size=2, stride=2),
            # Block 5: 512 -> 512 channels, 14x14 pooled to 7x7
            conv_block(512, 512, 512),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        # The first layer reads a 7x7 map of 512 channels: 25,088 numbers.
        # 93% of all parameters are from here on.
        # Dropout works in training only, against overfitting.
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(4096, num_classes),
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)  # (N, 512, 7, 7) for 224x224 pixels
        # The head reads 7x7 maps: one of another size is averaged to that.
        if maps.shape[-2:] != (7, 7):
            maps = F.adaptive_avg_pool2d(maps, 7)
        logits: Tensor = self.classifier(torch.flatten(maps, 1))
        return logits


def initialize(network: nn.Module) -> None:
    """Draw the first weights, by He et al.'s rule for ReLU as torchvision does."""
    for values in network.parameters():
        if values.dim() == 4:  # the filters of a convolution
            nn.init.kaiming_normal_(values, mode="fan_out", nonlinearity="relu")
        elif values.dim() == 2:  # the matrix of a fully connected layer
            nn.init.normal_(values, std=0.01)
        else:  # a bias
            nn.init.zeros_(values)


if __name__ == "__main__":
    network = VGG11().eval()  # to use it, not to train it
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = network(image)
    parameters = sum(values.numel() for values in network.parameters())
    print(f"logits {tuple(logits.shape)}, {parameters:,} parameters")
