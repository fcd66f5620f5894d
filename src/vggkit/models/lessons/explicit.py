"""VGG11 in PyTorch, every layer by its name.

Configuration A (table 1) of Simonyan and Zisserman, "Very Deep Convolutional Networks
for Large-Scale Image Recognition", arXiv 1409.1556.

11 layers with weights: 8 convolutions, 3 fully connected. 132,863,336 parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VGG11(nn.Module):
    """Images (N, 3, H, W) to logits (N, num_classes); H and W from 32 pixels."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        # padding=1 with a 3x3 window keeps the size of the map.
        # Each pool halves the map. Sizes are those of a 224x224 image.

        # Block 1: 3 -> 64 channels, 224x224 pooled to 112x112
        self.conv1_1 = nn.Conv2d(3, 64, kernel_size=3, padding=1)

        # Block 2: 64 -> 128 channels, 112x112 pooled to 56x56
        self.conv2_1 = nn.Conv2d(64, 128, kernel_size=3, padding=1)

        # Block 3: 128 -> 256 channels, 56x56 pooled to 28x28
        self.conv3_1 = nn.Conv2d(128, 256, kernel_size=3, padding=1)
        self.conv3_2 = nn.Conv2d(256, 256, kernel_size=3, padding=1)

        # Block 4: 256 -> 512 channels, 28x28 pooled to 14x14
        self.conv4_1 = nn.Conv2d(256, 512, kernel_size=3, padding=1)
        self.conv4_2 = nn.Conv2d(512, 512, kernel_size=3, padding=1)

        # Block 5: 512 -> 512 channels, 14x14 pooled to 7x7
        self.conv5_1 = nn.Conv2d(512, 512, kernel_size=3, padding=1)
        self.conv5_2 = nn.Conv2d(512, 512, kernel_size=3, padding=1)

        # The first layer reads a 7x7 map of 512 channels: 25,088 numbers.
        # 93% of all parameters are from here on.
        # Dropout works in training only, against overfitting.
        self.fc1 = nn.Linear(512 * 7 * 7, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)

        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        # Block 1: 224x224 pooled to 112x112
        x = F.relu(self.conv1_1(images))
        x = F.max_pool2d(x, kernel_size=2)

        # Block 2: 112x112 pooled to 56x56
        x = F.relu(self.conv2_1(x))
        x = F.max_pool2d(x, kernel_size=2)

        # Block 3: 56x56 pooled to 28x28
        x = F.relu(self.conv3_1(x))
        x = F.relu(self.conv3_2(x))
        x = F.max_pool2d(x, kernel_size=2)

        # Block 4: 28x28 pooled to 14x14
        x = F.relu(self.conv4_1(x))
        x = F.relu(self.conv4_2(x))
        x = F.max_pool2d(x, kernel_size=2)

        # Block 5: 14x14 pooled to 7x7
        x = F.relu(self.conv5_1(x))
        x = F.relu(self.conv5_2(x))
        x = F.max_pool2d(x, kernel_size=2)

        # The head reads 7x7 maps: one of another size is averaged to that.
        if x.shape[-2:] != (7, 7):
            x = F.adaptive_avg_pool2d(x, 7)
        x = torch.flatten(x, 1)  # (N, 25088)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, p=0.5, training=self.training)
        x = F.relu(self.fc2(x))
        x = F.dropout(x, p=0.5, training=self.training)
        logits: Tensor = self.fc3(x)
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
