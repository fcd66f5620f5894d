"""Explanations that take PyTorch: Grad-CAM and Layer-CAM at any layer, and captum's methods on the pixels.

The network is not touched: what computes are modules of their own that share its weights, in evaluation mode and
without gradients of parameters, and no hooks are set.

Shape letters: N images, C channels, H and W pixels or places, K classes.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggkit.engines.info import EngineInfo
from vggkit.engines.pytorch import replicate_network
from vggkit.errors import BadInput, MissingExtra
from vggkit.explanations.closed_explainer import Explainer
from vggkit.explanations.plan import ExplanationPlan
from vggkit.models.features import Features
from vggkit.models.vgg import VGG

Values = NDArray[np.float32]
TOGETHER: Final = 8
"""Images whose gradients are computed together at most: the values between the layers are stored for them."""
STEPS: Final = 50
"""Of integrated gradients from the mean colour to the image."""
WINDOWS: Final = 8
"""Side of the image by the side of the window that occlusion covers; the windows overlap by half."""


class GradientExplainer(Explainer):
    """Explains by gradients, or by covering parts of the image.

    Args:
        network: The VGG, which stays as and where it is.
        plan: What is computed.
        device: Where.

    Raises MissingExtra without captum for methods on pixels, and BadInput for weights made in inference mode.
    """

    def __init__(self, network: VGG, plan: ExplanationPlan, device: torch.device) -> None:
        if any(value.is_inference() for value in (*network.parameters(), *network.buffers())):
            raise BadInput(
                "the network was made in torch.inference_mode, where no gradient can be computed; make or load it "
                "outside, or take grad-cam at its default layer, which needs none"
            )
        self.plan, self._device = plan, device
        self.info = EngineInfo(name="pytorch", precision="fp32", device=str(device), version=str(torch.__version__))
        self._attribute = None if plan.layer is not None else _find_attribution(plan)
        self._network = replicate_network(network, device, torch.float32)

    def explain(self, batch: Values, directions: Values | None = None) -> tuple[Values, Values]:
        """Logits (N, K), and maps (N, H, W)."""
        found = [
            self._explain(batch[first : first + TOGETHER], None if directions is None else directions[first:])
            for first in range(0, len(batch), TOGETHER)
        ]
        logits, maps = zip(*found, strict=True)
        return np.concatenate(logits), np.concatenate(maps)

    def _explain(self, batch: Values, directions: Values | None) -> tuple[Values, Values]:
        # Whatever mode the caller is in, gradients are recorded here, in float32.
        exact = torch.autocast(self._device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), exact:
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
            if self._attribute is None:
                logits, maps = self._explain_layer(images, directions)
            else:
                logits = self._compute_logits(images).detach()
                chosen = self._choose(logits, directions)
                maps = torch.cat(
                    [
                        self._attribute(partial(self._score, chosen[number]), images[number : number + 1])
                        for number in range(len(images))
                    ]
                )
            return logits.detach().cpu().numpy(), maps.detach().float().cpu().numpy()

    def _explain_layer(self, images: Tensor, directions: Values | None) -> tuple[Tensor, Tensor]:
        layer = str(self.plan.layer)
        found = Features(self._network, [layer, "logits"], frozen=True)(images.requires_grad_())
        logits, values = found["logits"], found[layer]
        score = (logits * self._choose(logits, directions)).sum()
        (gradient,) = torch.autograd.grad(score, values)
        if self.plan.method == "grad-cam":
            weighted = gradient.mean((2, 3), keepdim=True) * values
        else:  # Layer-CAM (Jiang et al., IEEE TIP 2021): each place has its own weight, what speaks for the class
            weighted = gradient.relu() * values
        return logits, weighted.sum(1).relu()

    def _choose(self, logits: Tensor, directions: Values | None) -> Tensor:
        if directions is None:
            directions = self.plan.choose_directions(logits.detach().cpu().numpy())
        return torch.from_numpy(directions[: len(logits)]).to(self._device)

    def _score(self, direction: Tensor, images: Tensor) -> Tensor:
        return self._compute_logits(images) @ direction

    def _compute_logits(self, images: Tensor) -> Tensor:
        logits: Tensor = Features(self._network, "logits", frozen=True)(images)["logits"]
        return logits


Attribution = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Of what gives a score (N,) of images, and an image (1, C, H, W): its map (1, H, W)."""


def _find_attribution(plan: ExplanationPlan) -> Attribution:
    """The method of captum for a plan on pixels; raises MissingExtra."""
    captum: Any
    try:
        captum = importlib.import_module("captum.attr")
    except ImportError as absent:
        raise MissingExtra.of("captum", f"method={plan.method}", "explain") from absent

    def integrate(score: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        found: Tensor = captum.IntegratedGradients(score).attribute(
            image, n_steps=STEPS, internal_batch_size=TOGETHER
        )
        return found.sum(1)

    def occlude(score: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        window = max(1, image.shape[-1] // WINDOWS)
        stride = max(1, window // 2)
        with torch.no_grad():
            found: Tensor = captum.Occlusion(score).attribute(
                image,
                (image.shape[1], window, window),
                strides=(image.shape[1], stride, stride),
                perturbations_per_eval=TOGETHER,
            )
        return found.mean(1)  # captum repeats what a window is worth in each channel

    def differentiate(score: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        found: Tensor = captum.Saliency(score).attribute(image.requires_grad_())
        return found.amax(1)

    return {"integrated-gradients": integrate, "occlusion": occlude, "saliency": differentiate}[plan.method]
