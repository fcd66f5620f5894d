"""Sanity checks of explanations: deletion and insertion, the grid pointing game, and a network with random weights.

Shape letters: N images, K classes, C channels, H and W pixels or places.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count
from vggkit.engines.model_weights import ModelFile, NetworkWeights, open_for_engine
from vggkit.engines.select import choose_engine
from vggkit.errors import BadImage, BadInput
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.explanations.closed_explainer import Explainer
from vggkit.explanations.explain import build_explainer
from vggkit.explanations.measures import build_mosaics, correlate_ranks, find_quarters, measure_areas
from vggkit.explanations.plan import ExplanationPlan, Method
from vggkit.images.given import ImageSources, list_sources
from vggkit.images.omissions import Reading
from vggkit.images.sources.open_dataset import iterate_samples
from vggkit.weights.card import Card

if TYPE_CHECKING:
    from vggkit.weights.model import Model

Values = NDArray[np.float32]
OnProgress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveComparison:
    """Areas under curves, in [0, 1]: the mean probability of the predicted class while pixels come or go."""

    area: float
    """In the order of the explanations, the most important pixels first; the mean of the images."""
    random_area: float
    """In an order that knows nothing: random maps with as many places."""
    difference: float
    """The mean of the images' differences, explanation less random."""
    interval: tuple[float, float]
    """Its 95 % confidence interval (normal approximation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationCheck:
    """The checks of a method's explanations of a Classifier, on some images."""

    n: int
    """Number of images."""
    method: Method
    """The method."""
    layer: str | None
    """The layer; None where pixels are explained."""
    deletion: CurveComparison
    """Pixels are set to the mean colour, the most important first (Petsiuk et al., arXiv 1806.07421): the lower,
    the better."""
    insertion: CurveComparison
    """Pixels are put into the blurred image, the most important first: the higher, the better."""
    pointing_n: int
    """Number of mosaics of four images in the grid pointing game (Böhle et al., arXiv 2104.00032); 0 where all
    images were predicted as one class."""
    pointing_hits: int
    """Of how many the map's largest value, for the class of one of the four, lies on that image; by chance a
    quarter."""
    random_weights_n: int
    """Number of images whose map was compared with that of a network with random weights."""
    random_weights_correlation: float | None
    """The mean rank correlation (Spearman) of both maps: near 0 for an explanation of what was learnt (Adebayo et
    al., arXiv 1810.03292), near 1 for one that shows edges of any image; None for no image."""

    @property
    def pointing_interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the share of hits."""
        return proportion_interval(self.pointing_hits, self.pointing_n)

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)

    def describe(self) -> list[str]:
        """A line for each measurement."""
        at = f" at {self.layer}" if self.layer else ""
        lines = [f"check of {self.method}{at}, n = {self.n}"]
        curves = (("deletion", self.deletion, "lower"), ("insertion", self.insertion, "higher"))
        for name, found, better in curves:
            low, high = found.interval
            lines.append(
                f"{name}: area {found.area:.3f}, in random order {found.random_area:.3f}; difference "
                f"{found.difference:+.3f} (95 % CI {low:+.3f} to {high:+.3f}); {better} is better"
            )
        if self.pointing_n:
            low, high = self.pointing_interval
            share = self.pointing_hits / self.pointing_n
            lines.append(
                f"grid pointing game: {self.pointing_hits} of {self.pointing_n} hits, {100 * share:.0f} % (95 % CI "
                f"{100 * low:.0f} to {100 * high:.0f}); by chance 25 %"
            )
        else:
            lines.append("grid pointing game: not played, for all images were predicted as one class")
        if self.random_weights_correlation is not None:
            lines.append(
                f"random weights: rank correlation {self.random_weights_correlation:.2f} with the maps of an "
                f"untrained network, n = {self.random_weights_n}; near 0 is right"
            )
        return lines


def check_explanations(
    model: "Model | ModelFile | str | Path",
    images: ImageSources,
    *,
    method: Method = "grad-cam",
    layer: str | None = None,
    most: int = 32,
    batch_size: int = 32,
    device: str = "auto",
    reduced_decoding: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> ExplanationCheck:
    """Measure whether a method's explanations of a Classifier's predictions are right.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        images: What `predict` takes; their labels are not needed. The first ones that can be read are used.
        method: As in `explain`.
        layer: As in `explain`.
        most: How many images are used.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        seed: Of random orders, mosaics and weights.
        on_progress: Called with what is being done, how much of it is done, and of how much.

    Raises BadInput where no image can be read, and what `explain` does.
    """
    opened = open_for_engine(model, "check_explanations")
    card = opened.card.with_reduced_decoding(reduced_decoding)
    plan = ExplanationPlan.of(card, method=method, layer=layer)
    most, batch_size = demand_count("most", most), demand_count("batch_size", batch_size)
    progress = on_progress or _ignore
    inputs = _read(card, images, most)
    explainer = build_explainer(opened, plan, device=device)
    judging = choose_engine(opened, device, precision="fp32")
    rng = np.random.default_rng(seed)
    logits, maps = _explain(explainer, inputs, None, batch_size)
    predicted, directions = logits.argmax(axis=1), plan.choose_directions(logits)
    areas = np.empty((len(inputs), 2, 2))
    for number, image in enumerate(inputs):
        progress("deleting and inserting", number, len(inputs))

        def ask(batch: Values, number: int = number) -> NDArray[np.float64]:
            return card.activation(judging.run(batch))[:, predicted[number]]

        areas[number, 0] = measure_areas(image, maps[number], ask)
        areas[number, 1] = measure_areas(image, rng.random(plan.sides, np.float32), ask)
    hits = played = 0
    if len(np.unique(predicted)) > 1:
        progress("playing the grid pointing game", 0, len(inputs))
        mosaics, quarters = build_mosaics(inputs, predicted, rng)
        _, of_mosaics = _explain(explainer, mosaics, directions, batch_size)
        hits, played = int((find_quarters(of_mosaics) == quarters).sum()), len(inputs)
    progress("explaining with random weights", 0, len(inputs))
    untrained = build_explainer(_untrain(card, seed), plan, device=device)
    _, of_untrained = _explain(untrained, inputs, directions, batch_size)
    likeness = [correlate_ranks(one, two) for one, two in zip(maps, of_untrained, strict=True)]
    known = [each for each in likeness if each is not None]
    return ExplanationCheck(
        n=len(inputs),
        method=plan.method,
        layer=plan.layer,
        deletion=_compare(areas[:, :, 0]),
        insertion=_compare(areas[:, :, 1]),
        pointing_n=played,
        pointing_hits=hits,
        random_weights_n=len(known),
        random_weights_correlation=float(np.mean(known)) if known else None,
    )


def _read(card: Card, images: ImageSources, most: int) -> Values:
    """The first images that can be read (N, C, H, W), as input of the network."""
    found = []
    for image in iterate_samples(list_sources(images), Reading()):
        try:
            found.append(card.preprocessing.see(image))
        except BadImage:
            continue
        if len(found) == most:
            break
    if not found:
        raise BadInput("explanations are checked on images, and none of these can be read")
    return np.stack(found)


def _explain(
    explainer: Explainer, inputs: Values, directions: Values | None, batch_size: int
) -> tuple[Values, Values]:
    """Logits (N, K) and maps (N, H, W), a batch at a time."""
    parts = [
        explainer.explain(
            inputs[first : first + batch_size],
            None if directions is None else directions[first : first + batch_size],
        )
        for first in range(0, len(inputs), batch_size)
    ]
    logits, maps = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(maps)


def _untrain(card: Card, seed: int) -> NetworkWeights:
    """A network of the same configuration with random weights."""
    import torch

    from vggkit.models.vgg import VGG

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkWeights(VGG(card.configuration).eval(), activation=card.activation)


def _compare(areas: NDArray[np.float64]) -> CurveComparison:
    """Of areas (N, 2): of the explanation and of a random map."""
    differences = areas[:, 0] - areas[:, 1]
    half = 1.96 * differences.std(ddof=1) / len(areas) ** 0.5 if len(areas) > 1 else float("inf")
    mean = float(differences.mean())
    return CurveComparison(
        area=float(areas[:, 0].mean()),
        random_area=float(areas[:, 1].mean()),
        difference=mean,
        interval=(mean - half, mean + half),
    )


def _ignore(what: str, done: int, total: int | None) -> None:
    pass
