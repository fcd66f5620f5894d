"""Bulk work: every image of a place becomes a row of a file.

Shape letters: N images, F numbers of a vector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggkit.arguments import demand_count, demand_path, demand_seconds
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.outputs import Precision, WantedPrecision
from vggkit.errors import BadOutput
from vggkit.files import demand_apart, demand_writable
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.sources.tables import Columns
from vggkit.inference import embed as embedding
from vggkit.inference import predict as prediction
from vggkit.inference.bulk import VECTOR, BulkResult, Job, OnProgress, Row, run
from vggkit.inference.fingerprint import describe_answers, describe_network, name_place
from vggkit.table_files import ENDINGS, Kind, check_parquet
from vggkit.weights.card import demand_classifier

if TYPE_CHECKING:
    from vggkit.weights.model import Model

VECTOR_ENDINGS: Final = (".parquet", ".npy")
"""Of files of vectors."""


def predict_into(
    classifier: "Model | str | Path",
    images: ImageSources,
    out: str | Path,
    *,
    top: int = 5,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> BulkResult:
    """Write the most probable classes of each image to a file, any number of images in the same memory.

    A row has `path`, `answer` (the best class, or `unknown` by the Classifier's threshold), `label_1`,
    `probability_1` and so on for `top` classes, best first, and `problem`: why the image cannot be read,
    or that the network's values for it overflow, its other cells then empty.

    Args:
        classifier: The Classifier, or its place.
        images: What `predict` takes.
        out: .parquet, .csv, .jsonl (a JSON object a line) or .json (one array of them).
        top: How many classes to name; fewer where the Classifier has fewer.
        columns: What a table's columns are called.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: What is computed in; auto: bf16 where the device multiplies it by itself. int8 is for
            processors, and needs the Classifier's `ranges`.
        engine: What computes, see `predict`.
        save_seconds: Between two times that what is done is kept, in the folder `out`.parts; the same call goes
            on there after the process has ended in whatever way, and the file is as if nothing had been.
        overwrite: Begin anew, whatever an earlier call left.
        on_progress: Hears how far it is.

    Raises BadOutput where the file cannot be written, or is of another model, of other options or images;
    BadData, BadInput and MissingExtra.
    """
    out = demand_path(out)
    given = list(take_sources(images))
    _demand_place(out, ENDINGS, given)
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    model, place = _open(classifier)
    computing = prediction.prepare_engine(model, device=device, precision=precision, engine=engine)
    top = min(top, len(model.card.labels))
    kinds: dict[str, Kind] = {"path": "path", "answer": "text"}
    for rank in range(1, top + 1):
        kinds |= {f"label_{rank}": "text", f"probability_{rank}": "number"}
    kinds["problem"] = "text"

    def answer(found: Iterator[ImageSample]) -> Iterator[Row]:
        for each in prediction.iterate_predictions(computing, model.card, found, top=top, batch_size=batch_size):
            pairs = zip(each.labels, each.probabilities, strict=True)
            cells: list[str | float | None] = [cell for pair in pairs for cell in pair]
            cells += [None] * (2 * top - len(cells))
            yield each.path, each.answer, *cells, each.problem

    return run(
        Job(
            out=out,
            kinds=kinds,
            about={
                "results": "predictions",
                "top": top,
                "answers": describe_answers(model),
                **_describe(model, given, columns, precision=computing.info.precision),
            },
            model=place,
            engine=computing.info,
            answer=answer,
            images=given,
            columns=columns,
            batch_size=batch_size,
            save_seconds=demand_seconds("save_seconds", save_seconds),
            overwrite=overwrite,
            on_progress=on_progress or _say_nothing,
        )
    )


def embed_into(
    classifier: "Model | str | Path",
    images: ImageSources,
    out: str | Path,
    *,
    layer: str = embedding.FEATURES,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> BulkResult:
    """Write the vector of each image to a file, any number of images in the same memory; `search` reads it.

    Args:
        classifier: The Classifier, or its place.
        images: What `predict` takes.
        out: .parquet, with the columns `path`, `vector` (F float32) and `problem`; or .npy, a matrix (N, F) of
            float32 where a row of NaN is an image that cannot be read, beside a table of `path` and
            `problem`, `out`.csv.
        layer: What the vectors are, see `embed`.
        columns: As in `predict_into`; likewise the other options.
        batch_size: See `columns`.
        device: See `columns`.
        precision: See `columns`.
        engine: See `columns`.
        save_seconds: See `columns`.
        overwrite: See `columns`.
        on_progress: See `columns`.

    Raises UnknownName, and what `predict_into` does.
    """
    out = demand_path(out)
    given = list(take_sources(images))
    _demand_place(out, VECTOR_ENDINGS, given)
    batch_size = demand_count("batch_size", batch_size)
    model, place = _open(classifier)
    width = embedding.find_width(model.card.configuration, layer)
    computing = embedding.prepare_engine(model, layer=layer, device=device, precision=precision, engine=engine)
    computed_in = computing.info.precision
    missing = np.full(width, np.nan, np.float32)

    def answer(found: Iterator[ImageSample]) -> Iterator[Row]:
        for each in embedding.iterate_embeddings(computing, model.card, found, batch_size=batch_size):
            yield each.path, missing if each.vector is None else each.vector, each.problem

    return run(
        Job(
            out=out,
            kinds={"path": "path", VECTOR: width, "problem": "text"},
            about={
                "results": "vectors",
                "layer": layer,
                "precision": computed_in,
                **_describe(model, given, columns, precision=computed_in, layer=layer),
            },
            model=place,
            engine=computing.info,
            answer=answer,
            images=given,
            columns=columns,
            batch_size=batch_size,
            save_seconds=demand_seconds("save_seconds", save_seconds),
            overwrite=overwrite,
            on_progress=on_progress or _say_nothing,
        )
    )


def _open(classifier: "Model | str | Path") -> "tuple[Model | ModelFile, str]":
    """What is asked, and where it is; of a file nothing is read yet but its header."""
    if isinstance(classifier, str | Path):
        return ModelFile(classifier), name_place(classifier)
    demand_classifier(classifier, "bulk work")
    return classifier, ""


def _describe(
    model: "Model | ModelFile",
    images: Sequence[str | Path | ImageSample],
    columns: Columns,
    *,
    precision: Precision,
    layer: str = "",
) -> dict[str, Any]:
    """What must be the same when work goes on."""
    return {
        "model": describe_network(model, precision=precision, layer=layer),
        "places": [str(place) for place in images if isinstance(place, str | Path)],
        "columns": {name: value for name, value in asdict(columns).items() if value is not None},
    }


def _demand_place(out: Path, endings: Sequence[str], given: Sequence[str | Path | ImageSample]) -> None:
    if out.suffix.lower() not in endings:
        raise BadOutput(f"{out}: the name of such a file ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if out.suffix.lower() == ".parquet":
        check_parquet()
    demand_apart(out, (place.path if isinstance(place, ImageSample) else place for place in given))
    demand_writable(out)


def _say_nothing(what: str, done: int, total: int | None) -> None:
    pass
