"""Predictions, and overlays that explain them from the same pass."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkit.arguments import demand_path
from vggkit.engines.averaged_views import Views, average_over, demand_views
from vggkit.engines.info import EngineInfo, WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import NamedEngine, StreamResult
from vggkit.errors import BadInput
from vggkit.explanations.closed_explainer import Explainer
from vggkit.explanations.explain import build_explainer, iterate_explanations
from vggkit.explanations.folder import ExplanationFolder
from vggkit.explanations.plan import ExplanationPlan
from vggkit.images.dataset import ImageSample
from vggkit.inference.predict import Prediction, describe_prediction, iterate_predictions
from vggkit.weights.card import Card

if TYPE_CHECKING:
    from vggkit.weights.model import Model


@dataclass(frozen=True, slots=True)
class Predictor:
    """The engine of a prediction, and the folder of its explanations."""

    computing: NamedEngine | Explainer
    """Gives logits, and maps where there is a folder."""
    card: Card
    """The Classifier's."""
    folder: ExplanationFolder | None
    """Of the overlays; None: predictions are not explained."""

    @property
    def info(self) -> EngineInfo:
        """The engine."""
        return self.computing.info

    @property
    def about(self) -> dict[str, Any]:
        """The method, class and folder of the explanations, for JSON; empty if there are none."""
        return {} if self.folder is None else {"explained": str(self.folder.folder)}

    def iterate(
        self, images: Iterable[ImageSample], *, top: int, batch_size: int
    ) -> Iterator[tuple[ImageSample, Prediction]]:
        """Each image with its prediction, once its overlay is written."""
        if self.folder is None:
            yield from iterate_predictions(self.computing, self.card, images, top=top, batch_size=batch_size)
            return
        assert isinstance(self.computing, Explainer)
        self.folder.begin()
        explained = iterate_explanations(self.computing, self.card, images, batch_size=batch_size, keep_pixels=True)
        for each in self.folder.write_each(explained):
            result = StreamResult(each.image, each.logits, each.explanation.problem)
            yield each.image, describe_prediction(result, self.card, top=top)

    def finish(self) -> None:
        """Write the contact sheet, where there is a folder."""
        if self.folder is not None:
            self.folder.write_sheet()


def open_predictor(
    model: "Model | ModelFile",
    images: Sequence[str | Path | ImageSample],
    *,
    explain: str | Path | None,
    device: str,
    precision: WantedPrecision,
    engine: WantedEngine,
    reduced_decoding: bool = False,
    views: Views = "one",
) -> Predictor:
    """The predictor; with a folder it also explains the most probable class of each image.

    With `reduced_decoding` large JPEGs are decoded at a smaller scale even where the Classifier does not do so.
    Probabilities are averaged over `views`, for predictions without explanations.

    Raises UnknownName for other views, BadInput for several of them with explanations, BadOutput where the folder
    cannot be written to, and what `choose_engine` does.
    """
    card, views = model.card.with_reduced_decoding(reduced_decoding), demand_views(views)
    if explain is None:
        computing = choose_engine(model, device, precision=precision, engine=engine)
        return Predictor(average_over(computing, card.activation, views), card, None)
    if views != "one":
        raise BadInput(f"views={views} averages several passes, and explain explains one; leave out either")
    plan = ExplanationPlan.of(card)
    folder = ExplanationFolder(demand_path(explain), plan, images, with_maps=False)
    explainer = build_explainer(model, plan, device=device, precision=precision, engine=engine)
    return Predictor(explainer, card, folder)
