"""Grad-CAM in closed form beside the logits, from one pass of any engine.

Shape letters: N images, K classes, C channels of the map, H and W its places.
"""

from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.info import EngineInfo
from vggkit.engines.stream import Engine, NamedEngine
from vggkit.explanations.closed_form import HeadGradient, grad_cam
from vggkit.explanations.plan import ExplanationPlan

Values = NDArray[np.float32]


class Explainer(Engine):
    """Explains batches of images; `run` puts logits and map of an image into one row, as a stream carries them."""

    plan: ExplanationPlan
    """What is computed."""
    info: EngineInfo
    """What computes."""

    def explain(self, batch: Values, directions: Values | None = None) -> tuple[Values, Values]:
        """Logits (N, K), and maps (N, H, W).

        Args:
            batch: Preprocessed images.
            directions: (N, K) the combination of scores that is explained of each image; None: what the plan says.
        """
        raise NotImplementedError

    def run(self, batch: Values) -> Values:
        """Rows (N, K + H·W): the logits, and behind them the map."""
        logits, maps = self.explain(batch)
        return np.concatenate([logits, maps.reshape(len(maps), -1)], axis=1)


class ClosedExplainer(Explainer):
    """Grad-CAM from what an engine computes on the way to the logits.

    Args:
        engine: Computes `logits`, the plan's layer and what the gradient needs.
        gradient: Of the network's head.
        plan: For grad-cam at a layer of `list_closed_layers`.
    """

    def __init__(self, engine: NamedEngine, gradient: HeadGradient, plan: ExplanationPlan) -> None:
        assert plan.is_closed
        self._engine, self.plan, self._gradient = engine, plan, gradient
        self.info = engine.info

    def of_class(self, number: int) -> "ClosedExplainer":
        """The same for this class, whichever is the most probable one."""
        made = copy(self)
        made.plan = replace(self.plan, label=number)
        return made

    def explain(self, batch: Values, directions: Values | None = None) -> tuple[Values, Values]:
        """Logits (N, K), and maps (N, H, W)."""
        computed = self._engine.compute(batch)
        logits = computed["logits"]
        directions = self.plan.choose_directions(logits) if directions is None else directions
        with np.errstate(over="ignore", invalid="ignore"):  # of logits that are not finite there is no map
            sums = self._gradient.sum_over_places(directions, computed)
            return logits, grad_cam(computed[str(self.plan.layer)], sums)
