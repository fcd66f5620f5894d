"""The texts of the exercises, and the file that the reader edits."""

import textwrap
from typing import Final, NamedTuple


class Task(NamedTuple):
    """An exercise."""

    title: str
    """What it is about, in a few words."""
    text: str
    """The task."""
    function: str
    """Name of the function or class to write."""
    start: str
    """The code to start from."""


TASKS: Final[tuple[Task, ...]] = (
    Task(
        "The size of a map",
        "A map has `side` pixels a side. How many has the output of a convolution or pool with this "
        "kernel, padding and stride? Windows that do not fit are dropped.",
        "output_side",
        "def output_side(side: int, kernel: int, padding: int, stride: int) -> int: ...\n",
    ),
    Task(
        "The cost of a convolution",
        "Return the number of parameters, biases included, and of multiply-adds, biases not counted, of a "
        "convolution with stride 1 and padding that keeps the map's size, height by width.",
        "count_convolution",
        "def count_convolution(\n"
        "    in_channels: int, out_channels: int, kernel: int, height: int, width: int\n"
        ") -> tuple[int, int]: ...\n",
    ),
    Task(
        "How far a value sees",
        "`layers` lists (kernel, stride) of convolutions and pools, from the image on. How many pixels "
        "wide is the square that a value of the last layer depends on?",
        "receptive_field",
        "def receptive_field(layers: list[tuple[int, int]]) -> int: ...\n",
    ),
    Task(
        "A block",
        "Return an nn.Sequential: for each width a 3×3 convolution that keeps the map's size and a ReLU, "
        "then a 2×2 max-pool.",
        "conv_block",
        "def conv_block(in_channels: int, *widths: int) -> nn.Sequential: ...\n",
    ),
    Task(
        "VGG11",
        "Write the network of column A, with dropout of 0.5 behind the first two fully connected layers. "
        "Only images of 224 by 224 pixels are needed.",
        "VGG11",
        "class VGG11(nn.Module):\n"
        "    def __init__(self, num_classes: int = 1000) -> None:\n"
        "        super().__init__()\n\n"
        "    def forward(self, images: Tensor) -> Tensor: ...\n",
    ),
    Task(
        "Is it one?",
        "Return 'VGG11', 'VGG13', 'VGG16' or 'VGG19' for a network with as many convolutions as that has, "
        "however it is written, and 'none' for another.",
        "name_network",
        "def name_network(network: nn.Module) -> str: ...\n",
    ),
    Task(
        "He's initialisation",
        "Set the weights of each convolution to random normal values with mean 0 and variance 2 / "
        "(out_channels × kernel height × kernel width), and its biases to 0. Change nothing else.",
        "initialize",
        "def initialize(network: nn.Module) -> None: ...\n",
    ),
    Task(
        "A training step",
        "Take one step: network in training mode, mean cross-entropy of the labels, new gradients, "
        "update. Return the loss as a float.",
        "train_step",
        "def train_step(network: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor) -> float: ...\n",
    ),
    Task(
        "Fold a batch norm",
        "In evaluation mode a batch norm is a factor and an offset for each channel. Return a new "
        "convolution that computes bn(conv(x)), with the padding of the given one. Do not change the "
        "given layers.",
        "fold_batch_norm",
        "def fold_batch_norm(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d: ...\n",
    ),
    Task(
        "Other names",
        "`weights` is a state dict of torchvision's VGG11: features.0.weight …, classifier.0.weight …. "
        "Return the same tensors under the names of the literature: conv1_1.weight, conv2_1.weight, "
        "conv3_1.weight … conv5_2.bias, fc6.weight, fc7.weight, fc8.weight and their biases.",
        "rename_weights",
        "def rename_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]: ...\n",
    ),
)


def write_start() -> str:
    """The text of the file that the reader edits."""
    lines = [
        '"""My solutions; `python -m vggkit.models.lessons.exercises 1` checks the first."""\n',
        "from torch import Tensor, nn\nfrom torch.optim import Optimizer\n",
    ]
    for number, task in enumerate(TASKS, start=1):
        comment = "\n".join(f"# {line}" for line in (f"{number}. {task.title}", *textwrap.wrap(task.text, 100)))
        lines.append(f"\n{comment}\n{task.start}")
    return "\n".join(lines)
