"""Explanations of what a Classifier predicts: which places of an image speak for a class.

Shape letters: N images, K classes, H and W pixels or places.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vggkit.arguments import demand_count
from vggkit.engines.cached import find_engine
from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile, NetworkWeights, Weights, find_weights, open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import stream_rows
from vggkit.errors import BadConfiguration, BadImage
from vggkit.explanations.closed_explainer import ClosedExplainer, Explainer
from vggkit.explanations.closed_form import HeadGradient
from vggkit.explanations.explanation import Explanation, Explanations
from vggkit.explanations.overlay import show_pixels
from vggkit.explanations.plan import ExplanationPlan, Method
from vggkit.hardware import choose_device
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.given import ImageSources, count_sources, list_sources
from vggkit.images.omissions import Reading, warn_of_omissions
from vggkit.images.sources.open_dataset import iterate_samples
from vggkit.weights.card import Card

if TYPE_CHECKING:
    from vggkit.weights.model import Model


def explain(
    model: "Model | ModelFile | str | Path",
    images: ImageSources,
    *,
    method: Method = "grad-cam",
    label: str | None = None,
    contrast: Sequence[str] | None = None,
    layer: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Explanations:
    """Which places of each image speak for a class, in the order of the images.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`. A Classifier is not changed: mode, gradients, hooks.
        images: What `predict` takes.
        method: `grad-cam`: the channels of a layer's map weighed by the gradient of the class's score (Selvaraju
            et al., 2017). `layer-cam`: the same with a weight for each place, which is finer in early layers (Jiang
            et al., 2021). `integrated-gradients` (Sundararajan et al., 2017), `occlusion` (Zeiler and Fergus, 2014)
            and `saliency` (Simonyan et al., 2014) explain the pixels of the network's input, by captum.
        label: The class; None: of each image the most probable one.
        contrast: Two classes, A and B: what speaks for A and not for B.
        layer: For grad-cam and layer-cam a layer with a map; None: what the last pool reads, the last convolution's
            map after its ReLU.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: What is computed in where an engine explains; by gradients it is float32.
        engine: What computes; grad-cam at the default layer, or behind the last pool, needs no gradients, and is
            computed by any engine. All else is computed by PyTorch.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        on_progress: Called with the number of images done, and of all where ImageSamples are given.

    An image that cannot be read, or whose values overflow in the network, becomes an Explanation with its
    `problem`. Raises UnknownName, BadConfiguration, BadInput, BadData, and MissingExtra without captum.
    """
    opened = open_for_engine(model, "explain")
    card = opened.card.with_reduced_decoding(reduced_decoding)
    plan = ExplanationPlan.of(card, method=method, layer=layer, label=label, contrast=contrast)
    batch_size = demand_count("batch_size", batch_size)
    given = list_sources(images)
    total, reading = count_sources(given), Reading()
    samples = iterate_samples(given, reading)  # a place without images is refused before an engine is built
    explainer = build_explainer(opened, plan, device=device, precision=precision, engine=engine)
    found = []
    for each in iterate_explanations(explainer, card, samples, batch_size=batch_size):
        found.append(each.explanation)
        if on_progress:
            on_progress(len(found), total)
    warn_of_omissions(reading.list_omissions())
    return Explanations(tuple(found))


def build_explainer(
    model: "Model | Weights",
    plan: ExplanationPlan,
    *,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
) -> Explainer:
    """What computes a plan; torch is imported only where PyTorch computes.

    A Model keeps the engine that was compiled for it. Raises what `choose_engine` does, BadConfiguration for
    an engine that computes no gradients where they are needed, BadInput, and MissingExtra without captum.
    """
    weights = find_weights(model)
    if not plan.is_closed:
        other = [f"engine={engine}"] if engine not in ("auto", "pytorch") else []
        other += [f"precision={precision}"] if precision not in ("auto", "fp32") else []
        if other:
            at = f" at {plan.layer}" if plan.layer else ""
            raise BadConfiguration(
                f"{plan.method}{at} takes gradients or captum, which PyTorch computes in float32: leave "
                f"{' and '.join(other)} out, or take grad-cam at its default layer"
            )
        from vggkit.explanations.gradients import GradientExplainer

        return GradientExplainer(weights.load_network(), plan, choose_device(device))
    gradient = HeadGradient(weights)
    output = ("logits", str(plan.layer), *gradient.needs)
    if isinstance(model, ModelFile | NetworkWeights):
        computing = choose_engine(model, device, output=output, precision=precision, engine=engine, as_read=True)
    else:
        computing = find_engine(model, device, output=output, precision=precision, engine=engine)
    return ClosedExplainer(computing, gradient, plan)


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """An image with its explanation, and what is known besides."""

    image: ImageSample
    """The image."""
    explanation: Explanation
    """Its explanation."""
    logits: NDArray[np.float32] | None
    """(K,); None where there is a problem."""
    pixels: Pixels | None
    """RGB at the size that overlays are drawn at; None where it was not requested, or there is a problem."""


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What is known of an image when it is decoded."""

    size: tuple[int, int]
    pixels: Pixels | None
    problem: str | None = None


def iterate_explanations(
    explainer: Explainer,
    card: Card,
    images: Iterable[ImageSample],
    *,
    batch_size: int = 32,
    keep_pixels: bool = False,
) -> Iterator[Explained]:
    """Each image with its explanation as soon as it is computed.

    Args:
        explainer: What computes.
        card: The Classifier's.
        images: Images; each is decoded once.
        batch_size: Images that pass through the network together.
        keep_pixels: Keep of each image what an overlay is drawn on.
    """
    plan, preprocessing = explainer.plan, card.preprocessing

    def prepare(image: ImageSample) -> tuple[list[NDArray[np.float32]], _Known]:
        try:
            pixels = image.decode(least_side=preprocessing.least_side, channels=preprocessing.decoded_channels)
        except BadImage as problem:
            return [], _Known((0, 0), None, str(problem))
        height, width = pixels.shape[:2]
        shown = show_pixels(pixels) if keep_pixels else None
        return [preprocessing.normalize(preprocessing.fit(pixels))], _Known((height, width), shown)

    for image, known, rows in stream_rows(explainer, images, prepare, batch_size=batch_size):
        problem = known.problem
        if problem is None and (overflow := describe_overflow(rows[0])):
            problem = f"{image.path}: {overflow}"
        if problem is not None:
            explanation = Explanation(
                path=image.name, label=None, probability=None, method=plan.method, layer=plan.layer, map=None,
                image=image, problem=problem,
            )  # fmt: skip
            yield Explained(image, explanation, None, None)
            continue
        logits = rows[0, : plan.classes]
        values = rows[0, plan.classes :].reshape(plan.sides)
        number = int(logits.argmax()) if plan.label is None else plan.label
        explanation = Explanation(
            path=image.name,
            label=card.labels[number],
            probability=float(card.activation(logits)[number]),
            contrast=None if plan.contrast is None else card.labels[plan.contrast],
            method=plan.method,
            layer=plan.layer,
            map=values.copy(),
            box=preprocessing.locate(*known.size),
            size=known.size,
            image=image,
        )
        yield Explained(image, explanation, logits, known.pixels)
