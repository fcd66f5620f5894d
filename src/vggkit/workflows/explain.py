"""Explanations of any number of images, written to a folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vggkit.arguments import demand_count, demand_path
from vggkit.engines.info import EngineInfo, WantedEngine
from vggkit.engines.model_weights import open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.explanations.explain import build_explainer, iterate_explanations
from vggkit.explanations.explanation import Explanation
from vggkit.explanations.folder import ExplanationFolder
from vggkit.explanations.plan import ExplanationPlan, Method
from vggkit.explanations.sanity_check import ExplanationCheck, check_explanations
from vggkit.files import write_text
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.omissions import Omission, Reading
from vggkit.images.sources.open_dataset import count_images, gather_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk import OnProgress
from vggkit.table_files import Kind, stream_columns

if TYPE_CHECKING:
    from vggkit.weights.model import Model

TABLE: Final = "explanations.csv"
"""In the folder: a row for each image."""
CHECK: Final = "check.json"
"""In the folder: whether the explanations are right."""
KINDS: Final[dict[str, Kind]] = {
    "path": "path",
    "label": "text",
    "probability": "number",
    "overlay": "path",
    "map": "path",
    "problem": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult:
    """The result of explaining images into a folder."""

    folder: str
    """The folder."""
    images: int
    """Number of images."""
    unreadable: int
    """Number of those that cannot be read, or whose values overflow in the network."""
    method: Method
    """The method."""
    layer: str | None
    """The layer whose map was explained; None where the pixels were."""
    engine: EngineInfo
    """The engine."""
    sheet: str | None
    """The contact sheet; None for a single image."""
    overlay: str | None = None
    """The overlay of a single image; None for several."""
    title: str | None = None
    """Of a single image the class that is explained, with its probability."""
    skipped: tuple[Omission, ...] = ()
    """Files among the images that are no images, counted by reason."""
    problems: tuple[str, ...] = ()
    """The reasons why images were not explained, the first ten."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)


def explain_into(
    model: "Model | str | Path",
    images: ImageSources,
    out: str | Path,
    *,
    method: Method = "grad-cam",
    label: str | None = None,
    contrast: Sequence[str] | None = None,
    layer: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    on_progress: OnProgress | None = None,
) -> ExplainResult:
    """Explain any number of images, and write what was found to a folder.

    Of each image the folder gets an overlay `NAME.jpg`, the image beside the image under its map, and the map as
    `NAME.npy`, (H, W) float32 and not scaled, by the image's path below the common folder of all; besides
    `explanations.csv`, a row for each image, `explanations.json`, what the maps are, and for several images
    `contact_sheet.jpg`, the first 60 of them.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        images: Any images that `predict` takes.
        out: A new or empty folder, or one of explanations.
        method: `grad-cam`, `layer-cam`, `integrated-gradients`, `occlusion` or `saliency`.
        label: The class; None: of each image the most probable one.
        contrast: Two classes, A and B: what speaks for A and not for B.
        layer: For grad-cam and layer-cam a layer with a map; None: what the last pool reads.
        columns: The names of a table's columns.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the engine, where one explains.
        engine: The engine, see `Classifier.explain`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        on_progress: Called with what is being done, how many images of it are done, and of how many.

    Raises BadOutput where the folder cannot be written to, UnknownName, BadConfiguration, BadInput, BadData and
    MissingExtra.
    """
    out, given = demand_path(out), list(take_sources(images))
    batch_size = demand_count("batch_size", batch_size)
    opened = open_for_engine(model, "explain")
    card = opened.card.with_reduced_decoding(reduced_decoding)
    plan = ExplanationPlan.of(card, method=method, layer=layer, label=label, contrast=contrast)
    folder = ExplanationFolder(out, plan, given, with_maps=True)
    progress = on_progress or _ignore
    progress("listing", 0, None)
    total = count_images(given, columns=columns)  # a place without images is refused before an engine is built
    explainer = build_explainer(opened, plan, device=device, precision=precision, engine=engine)
    reading = Reading()
    found = gather_images(given, columns=columns, reading=reading)
    folder.begin()
    done, problems = 0, 0
    shown: list[str] = []
    last: Explanation | None = None
    with stream_columns(out / TABLE, KINDS) as append:
        explained = iterate_explanations(explainer, card, found, batch_size=batch_size, keep_pixels=True)
        for each in folder.write_each(explained):
            explanation = each.explanation
            is_there = explanation.problem is None
            append(
                {
                    "path": [explanation.path],
                    "label": [explanation.label],
                    "probability": [explanation.probability],
                    "overlay": [folder.name_overlay(explanation.path) if is_there else None],
                    "map": [folder.name_map(explanation.path) if is_there else None],
                    "problem": [explanation.problem],
                }
            )
            done += 1
            last = last if explanation.problem else explanation
            if explanation.problem is not None:
                problems += 1
                shown = [*shown, explanation.problem][:10]
            progress("explaining", done, total)
    sheet = folder.write_sheet()
    return ExplainResult(
        folder=str(out),
        images=done,
        unreadable=problems,
        method=plan.method,
        layer=plan.layer,
        engine=explainer.info,
        sheet=None if sheet is None else str(sheet),
        overlay=None if last is None or sheet is not None else str(out / folder.name_overlay(last.path)),
        title=None if last is None or sheet is not None else last.title,
        skipped=reading.list_omissions(),
        problems=tuple(shown),
    )


def check_into(
    model: str | Path,
    images: ImageSources,
    out: str | Path,
    *,
    method: Method = "grad-cam",
    layer: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    reduced_decoding: bool = False,
    on_progress: OnProgress | None = None,
) -> ExplanationCheck:
    """Write whether the explanations of some images are right to `check.json` in their folder.

    Arguments and errors are those of `check_explanations`, and BadOutput.
    """
    found = check_explanations(
        model,
        images,
        method=method,
        layer=layer,
        batch_size=batch_size,
        device=device,
        reduced_decoding=reduced_decoding,
        on_progress=on_progress,
    )
    write_text(demand_path(out) / CHECK, json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def _ignore(what: str, done: int, total: int | None) -> None:
    pass
