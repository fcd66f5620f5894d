"""Programs of torch.export: the network's modules between the preparation of images and the softmax or sigmoid.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vggkit.engines.model_weights import Weights
from vggkit.engines.pytorch import replicate_network
from vggkit.exporting.image_steps import ImageSteps
from vggkit.exporting.plan import FITTED, INPUT, ExportPlan
from vggkit.images.resizing import Interpolation
from vggkit.models.vgg import VGG
from vggkit.task import Activation

METADATA_FILE = "vggkit.json"
"""The extra file of a program's archive with the metadata, one JSON object."""
Number = Any
"""An int, or torch's SymInt during export."""


def write_torch_program(weights: Weights, plan: ExportPlan, target: Path) -> None:
    """Write the file; raises OSError."""
    metadata = json.dumps(plan.to_metadata({"torch": str(torch.__version__)}), ensure_ascii=False)
    program = _export(weights, plan)
    buffer = io.BytesIO()  # torch ends the process where a file of its own cannot be written to the end
    torch.export.save(program, buffer, extra_files={METADATA_FILE: metadata})
    with open(target, "wb") as file:
        file.write(buffer.getbuffer())


def open_torch_program(path: Path) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], str]:
    """A function that computes the output of images (N, H, W, C), and the runtime's name and version."""
    program = torch.export.load(path).module()

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: Tensor = program(torch.from_numpy(images))
        return found.numpy()

    return run, f"torch.export of torch {torch.__version__}"


def _export(weights: Weights, plan: ExportPlan) -> torch.export.ExportedProgram:
    dim = torch.export.Dim
    free: dict[int, Any] = {0: dim.DYNAMIC(min=1)}
    side, channels = plan.crop_pixels, plan.card.preprocessing.decoded_channels
    sides = (side, side)
    if plan.is_dynamic:
        least = max(2, plan.least_pixels)
        free |= {1: dim.DYNAMIC(min=least), 2: dim.DYNAMIC(min=least)}
        sides = (
            side,
            side + plan.configuration.minimum_side,
        )  # equal ones could be taken for a single dynamic size
    sample = torch.zeros((2, *sides, channels), dtype=torch.uint8)
    network = None
    if plan.outputs != (FITTED,):
        stored = torch.float16 if plan.precision == "fp16" else torch.float32
        network = replicate_network(weights.load_network(), torch.device("cpu"), stored)
    with torch.no_grad():
        return torch.export.export(_Program(network, plan).eval(), (sample,), dynamic_shapes={INPUT: free})


class _Program(nn.Module):
    """The exported module; without a network its output is the prepared images."""

    def __init__(self, network: VGG | None, plan: ExportPlan) -> None:
        super().__init__()
        self.network, self._plan = network, plan

    def forward(self, images: Tensor) -> Tensor:
        operations = TorchImageOperations()
        steps = ImageSteps[Tensor, Number](self._plan, operations)
        maps = steps.fit(images)
        if self.network is None:
            return maps
        return operations.activate(self._compute(self.network, steps.normalize(maps)), self._plan.card.activation)

    def _compute(self, network: VGG, maps: Tensor) -> Tensor:
        if self._plan.precision == "fp32":
            return cast(Tensor, network(maps))
        values = {name: value.float() for name, value in network.named_parameters()}
        return cast(Tensor, torch.func.functional_call(network, values, maps))


class TorchImageOperations:
    """Operations of torch that prepare images, for tensors of any device."""

    def arrange(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2)

    def measure(self, maps: Tensor) -> tuple[Number, Number]:
        return maps.shape[2], maps.shape[3]

    def add(self, number: Number, other: Number | int) -> Number:
        return number + other

    def subtract(self, number: Number | int, other: Number) -> Number:
        return number - other

    def multiply(self, number: Number, factor: Number | int) -> Number:
        return number * factor

    def divide(self, number: Number, by: Number | int) -> Number:
        return number // by

    def smaller(self, number: Number, other: Number | int) -> Number:
        return torch.sym_min(number, other)

    def larger(self, number: Number, other: Number | int) -> Number:
        return torch.sym_max(number, other)

    def resize(
        self, maps: Tensor, sides: tuple[Number | int, Number | int], interpolation: Interpolation
    ) -> Tensor:
        # Rows and then columns, each rounded to levels, as in Pillow; torch resizes bytes on processors only.
        for size in ((maps.shape[2], sides[1]), sides):
            maps = F.interpolate(maps.float(), size, mode=interpolation, antialias=True).round().clip(0, 255)
        return maps

    def widen(self, maps: Tensor) -> Tensor:
        return maps.float()

    def pad(self, maps: Tensor, before: tuple[Number, Number], after: tuple[Number, Number]) -> Tensor:
        return F.pad(maps, (before[1], after[1], before[0], after[0]))

    def cut(self, maps: Tensor, first: tuple[Number, Number], side: int, channels: int) -> Tensor:
        # Not views: if a side has the wanted length in the sample, torch would require it of every image.
        places = torch.arange(side, device=maps.device)
        return maps.index_select(2, places + first[0]).index_select(3, places + first[1])

    def reverse(self, maps: Tensor) -> Tensor:
        return maps.flip(1)

    def weigh(self, maps: Tensor, weights: tuple[float, ...], shift: float, divisor: float) -> Tensor:
        summed = (maps * maps.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)
        return ((summed + shift) / divisor).floor()

    def shift(self, maps: Tensor, values: tuple[float, ...]) -> Tensor:
        return maps + maps.new_tensor(values)[:, None, None]

    def divide_by(self, maps: Tensor, values: tuple[float, ...]) -> Tensor:
        return maps / maps.new_tensor(values)[:, None, None]

    def activate(self, logits: Tensor, activation: Activation) -> Tensor:
        scaled = logits / activation.temperature if activation.temperature != 1 else logits
        return scaled.softmax(1) if activation.task == "single-label" else scaled.sigmoid()
