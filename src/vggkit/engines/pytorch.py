"""Computation by PyTorch, on processors and GPUs.

Shape letters: N images, C channels, H and W pixels, K classes, F features.
"""

from collections.abc import Sequence
from copy import copy
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vggkit.engines.info import EngineInfo
from vggkit.engines.outputs import Output, Plan, check_batch, plan_outputs, select_steps
from vggkit.engines.stream import NamedEngine
from vggkit.models.configuration import Configuration
from vggkit.models.graph import Graph, Step
from vggkit.models.vgg import VGG, slide
from vggkit.task import Activation


class PyTorchEngine(NamedEngine):
    """Runs a VGG on a device, in evaluation mode and without gradients; the network itself is not changed.

    Modules of the engine's own compute, with the network's tensors where these are of the device and the precision
    already, and with copies of them where not. So threads share an engine or have one each, and meanwhile the
    network may be in any mode.

    Args:
        network: The VGG, in float32 or any other precision; its weights stay as they are while the engine is used.
        device: Where it computes.
        output: The output for each image, or several names.
        precision: The precision of the computation, not of the network; in bf16 batch norms are in float32.
        activation: How logits become probabilities.

    Raises UnknownName.
    """

    def __init__(
        self,
        network: VGG,
        device: torch.device,
        *,
        output: Output | Sequence[Output] = "logits",
        precision: Literal["fp32", "bf16"] = "fp32",
        activation: Activation = Activation(),  # noqa: B008 (frozen)
    ) -> None:
        self._activation = activation
        self._configuration = network.configuration
        self._plan = plan_outputs(self._configuration, output)
        self.outputs = self._plan.names
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = device
        self.info = EngineInfo(
            name="pytorch", precision=precision, device=str(device), version=str(torch.__version__)
        )
        self._network = replicate_network(network, device, self.dtype)

    def compute(self, batch: NDArray[np.float32]) -> dict[Output, NDArray[np.float32]]:
        """Every output by its name, of one pass."""
        check_batch(self._configuration, batch)
        with torch.inference_mode():
            images = torch.from_numpy(batch).to(self.device, self.dtype, memory_format=torch.channels_last)
            found = _compute(self._network, self._configuration, images, self._plan)
            rows = {name: values.float().cpu().numpy() for name, values in found.items()}
        return self._plan.finish(rows, self._activation)


def _compute(network: VGG, configuration: Configuration, images: Tensor, plan: Plan) -> dict[Output, Tensor]:
    """The plan's outputs of images (N, C, H, W)."""
    match plan.computed:
        case ("logits",):
            return {"logits": network(images)}
        case ("features",):
            return {"features": network.describe(images)}
    height, width = images.shape[2:]
    graph = Graph(configuration, input_pixels=(height, width))
    found: dict[Output, Tensor] = {}
    values = images
    for step in select_steps(graph, plan.computed):
        values = _compute_step(step, values, network, keep=step.reads in plan.computed)
        found[step.name] = values
    found["logits"] = values
    if "features" in plan.computed:
        features = found[select_steps(graph, ["features"])[-1].name]
        if configuration.head == "dense":
            features = features.mean((2, 3)) if configuration.hidden else network.read(features, nn.Sequential())
        found["features"] = features
    if "statistics" in plan.computed:
        found["statistics"] = summarize(found[graph.trunk[-1].name])
    return {name: found[name] for name in plan.computed}


def _compute_step(step: Step, values: Tensor, network: VGG, *, keep: bool) -> Tensor:
    """The output of a step; `keep`: its input must not be overwritten."""
    match step.kind:
        case "relu":
            return F.relu(values, inplace=not keep)
        case "adaptive_pool":
            _, height, width = step.output_shape
            return F.adaptive_avg_pool2d(values, (height, width))
        case "flatten":
            return values.flatten(1)
        case "statistics":
            return network.read(values, nn.Sequential())
        case "mean":
            return values.mean((2, 3))
    module = network.get_submodule(str(step.module))
    if step.kind == "fc" and len(step.output_shape) > 1:
        return slide(cast(nn.Linear, module), values, step.kernel)
    return cast(Tensor, module(values))


def summarize(maps: Tensor) -> Tensor:
    """Mean and standard deviation (N, 2 C) of each channel of maps (N, C, H, W)."""
    wide = maps.float()
    return torch.cat([wide.mean((2, 3)), wide.var((2, 3), correction=0).sqrt()], dim=1)


def replicate_network(network: VGG, device: torch.device, dtype: torch.dtype) -> VGG:
    """The network as modules of their own, in evaluation mode; tensors that need no change are the network's.

    No parameter of it requires a gradient.
    """
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, Tensor] = {}

    def place(value: Tensor, kind: torch.dtype) -> Tensor:
        if id(value) not in tensors:
            kind = kind if value.is_floating_point() else value.dtype
            # CPUs reorder kernels for each product, GPUs do not.
            planes = torch.channels_last if value.ndim == 4 and device.type != "cpu" else torch.preserve_format
            tensors[id(value)] = value.detach().to(device, kind, memory_format=planes)
        return tensors[id(value)]

    def replicate(module: nn.Module) -> nn.Module:
        if id(module) not in modules:
            # Statistics of batch norms stay in float32, whatever the precision of the products.
            kind = dtype if isinstance(module, nn.Conv2d | nn.Linear) else torch.float32
            own = modules[id(module)] = copy(module)
            own.__dict__ |= {
                "training": False,
                "_parameters": {
                    name: value if value is None else nn.Parameter(place(value, kind), requires_grad=False)
                    for name, value in module._parameters.items()
                },
                "_buffers": {
                    name: value if value is None else place(value, kind) for name, value in module._buffers.items()
                },
                "_modules": {
                    name: inner if inner is None else replicate(inner) for name, inner in module._modules.items()
                },
            }
        return modules[id(module)]

    return cast(VGG, replicate(network))
