"""Explanations of the most confident errors, for reports."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from vggkit.engines.model_weights import ModelFile
from vggkit.evaluation.predictions import Predictions
from vggkit.explanations.closed_explainer import ClosedExplainer
from vggkit.explanations.explain import build_explainer, iterate_explanations
from vggkit.explanations.explanation import Explanation
from vggkit.explanations.plan import ExplanationPlan
from vggkit.images.dataset import ImageSample
from vggkit.reports.evaluation_page import MOST_ERRORS

if TYPE_CHECKING:
    from vggkit.weights.model import Model

LEAST_PLACES: Final = 4
"""A map of fewer places a side, as images of 32 pixels have, shows nothing in a thumbnail."""


def explain_errors(
    classifier: "Model | ModelFile",
    predictions: Predictions,
    images: Iterable[ImageSample],
    *,
    device: str = "auto",
) -> dict[str, Explanation]:
    """Explanations of the most confident errors, for the predicted class, by their images' paths.

    By Grad-CAM at the default layer, of the view that `predict` has of an image, in the precision of `vggkit
    explain`: bf16 where the device multiplies it natively. None where the layer's map has fewer than 4 places a
    side.
    """
    plan = ExplanationPlan.of(classifier.card)
    wrong = predictions.list_confident_errors(MOST_ERRORS)
    if not wrong or min(plan.sides) < LEAST_PLACES:
        return {}
    explainer = build_explainer(classifier, plan, device=device, precision="auto")
    assert isinstance(explainer, ClosedExplainer)
    by_path = {image.name: image for image in images}
    found: dict[str, Explanation] = {}
    best = predictions.log_probabilities.argmax(axis=1)  # of several labels the most probable one
    for number in sorted({int(best[place]) for place in wrong}):
        paths = [predictions.paths[place] for place in wrong if best[place] == number]
        shown = [by_path[path] for path in paths if path in by_path]
        for each in iterate_explanations(explainer.of_class(number), classifier.card, shown):
            found[each.image.name] = each.explanation
    return found
