"""Predictions and vectors of any number of images, written to a file.

Shape letters: N images, F numbers of a vector.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vggkit.arguments import demand_count, demand_path, demand_seconds
from vggkit.engines.info import WantedEngine
from vggkit.engines.model_weights import ModelFile, open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.errors import BadOutput
from vggkit.files import demand_apart, demand_writable
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.sources.open_dataset import count_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk import VECTOR, BulkResult, Job, OnProgress, Row, run_job
from vggkit.inference.embed import FEATURES, find_width, iterate_embeddings
from vggkit.inference.fingerprint import describe_labels, describe_network, name_place
from vggkit.table_files import ENDINGS, Kind, check_parquet
from vggkit.workflows.predict_and_explain import open_predictor

if TYPE_CHECKING:
    from vggkit.weights.model import Model

VECTOR_ENDINGS: Final = (".parquet", ".npy")
"""Of files of vectors."""


def predict_into(
    model: "Model | str | Path",
    images: ImageSources,
    out: str | Path,
    *,
    top: int = 5,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    explain: str | Path | None = None,
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> BulkResult:
    """Write the most probable classes of each image to a file, for any number of images in constant memory.

    A row has `path`, `prediction` (the most probable class, or `unknown` by the Classifier's threshold), `label_1`,
    `probability_1` and so on for `top` classes, best first, and `problem`: why the image cannot be read,
    or that the network's values for it overflow, its other cells then empty.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        images: Images, as `predict` takes them.
        out: .parquet, .csv, .jsonl (a JSON object a line) or .json (one array of them).
        top: How many classes to name; fewer where the Classifier has fewer.
        columns: Names of a table's columns.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the computation; auto: bf16 where the device multiplies it natively. int8 is
            for processors, and needs the Classifier's activation ranges.
        engine: The engine, see `predict`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        explain: Also write to this folder, a new one, which regions of each image support its most probable class:
            Grad-CAM in closed form from the same pass, as an overlay for each image; see `explain_into`.
        save_seconds: How often rows are written to the folder `out`.parts; the same call continues there after
            the process has ended in any way, and the file is the same as without the interruption.
        overwrite: Start again, and discard the rows of an earlier call.
        on_progress: Called with the current task, the number of images that are done, and of all.

    Raises BadOutput where the file cannot be written, or is of another model, of other options or images;
    BadData, BadInput and MissingExtra.
    """
    out, given = _check(out, images, ENDINGS)
    on_progress = on_progress or _ignore
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    save_seconds = demand_seconds("save_seconds", save_seconds)
    opened, place = _open(model)
    on_progress("listing", 0, None)
    total = count_images(given, columns=columns)  # a place without images is refused before an engine is built
    predicting = open_predictor(
        opened,
        given,
        explain=explain,
        device=device,
        precision=precision,
        engine=engine,
        reduced_decoding=reduced_decoding,
    )
    top = min(top, len(opened.card.labels))
    kinds: dict[str, Kind] = {"path": "path", "prediction": "text"}
    for rank in range(1, top + 1):
        kinds |= {f"label_{rank}": "text", f"probability_{rank}": "number"}
    kinds["problem"] = "text"

    def compute(found: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
        for image, each in predicting.iterate(found, top=top, batch_size=batch_size):
            pairs = zip(each.labels, each.probabilities, strict=True)
            cells: list[str | float | None] = [cell for pair in pairs for cell in pair]
            cells += [None] * (2 * top - len(cells))
            yield image, (each.path, each.label, *cells, each.problem)

    result = run_job(
        Job(
            out=out,
            kinds=kinds,
            about={
                "results": "predictions",
                "top": top,
                "answers": describe_labels(opened),
                "model": describe_network(
                    opened, precision=predicting.info.precision, reduced_decoding=reduced_decoding
                ),
                **_describe_images(given, columns),
                **predicting.about,
            },
            model=place,
            engine=predicting.info,
            compute=compute,
            images=given,
            columns=columns,
            total=total,
            batch_size=batch_size,
            save_seconds=save_seconds,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    )
    predicting.finish()
    return result


def embed_into(
    model: "Model | str | Path",
    images: ImageSources,
    out: str | Path,
    *,
    layer: str = FEATURES,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> BulkResult:
    """Write the vector of each image to a file, for any number of images in constant memory; `search` reads it.

    Args:
        model: A Classifier; or its place: a file, a run's folder, a published model's name such as `vgg16`, or
            `hf://owner/name`.
        images: Images, as `predict` takes them.
        out: .parquet, with the columns `path`, `vector` (F float32) and `problem`; or .npy, a matrix (N, F) of
            float32 where a row of NaN is an image that cannot be read, beside a table of `path` and
            `problem`, `out`.csv.
        layer: `features`, what the last fully connected layer reads; `statistics`, mean and standard deviation of
            each channel of the trunk's last map; `logits`; `probabilities`; or a layer's name, such as relu7 or
            pool5, of whose maps each channel's mean is taken.
        columns: Names of a table's columns.
        batch_size: Images that pass through the network together.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: The precision of the computation; auto: bf16 where the device multiplies it natively. int8 is
            for processors, and needs the Classifier's activation ranges.
        engine: The engine, see `predict`.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the Classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        save_seconds: How often rows are written to the folder `out`.parts; the same call continues there after
            the process has ended in any way.
        overwrite: Start again, and discard the rows of an earlier call.
        on_progress: Called with the current task, the number of images that are done, and of all.

    Raises UnknownName for a layer that the network lacks, BadOutput where the file cannot be written, or is of
    another model, of other options or images; BadData, BadInput and MissingExtra.
    """
    out, given = _check(out, images, VECTOR_ENDINGS)
    on_progress = on_progress or _ignore
    batch_size = demand_count("batch_size", batch_size)
    save_seconds = demand_seconds("save_seconds", save_seconds)
    opened, place = _open(model)
    card = opened.card.with_reduced_decoding(reduced_decoding)
    width = find_width(card.configuration, layer)
    on_progress("listing", 0, None)
    total = count_images(given, columns=columns)  # a place without images is refused before an engine is built
    computing = choose_engine(opened, device, output=layer, precision=precision, engine=engine)
    missing = np.full(width, np.nan, np.float32)

    def compute(found: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
        for image, each in iterate_embeddings(computing, card, found, batch_size=batch_size):
            yield image, (each.path, missing if each.vector is None else each.vector, each.problem)

    return run_job(
        Job(
            out=out,
            kinds={"path": "path", VECTOR: width, "problem": "text"},
            about={
                "results": "vectors",
                "layer": layer,
                "precision": computing.info.precision,
                "model": describe_network(
                    opened, precision=computing.info.precision, layer=layer, reduced_decoding=reduced_decoding
                ),
                **_describe_images(given, columns),
            },
            model=place,
            engine=computing.info,
            compute=compute,
            images=given,
            columns=columns,
            total=total,
            batch_size=batch_size,
            save_seconds=save_seconds,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    )


def _check(
    out: str | Path, images: ImageSources, endings: Sequence[str]
) -> tuple[Path, list[str | Path | ImageSample]]:
    """The file, and places and images; raises BadOutput where the file cannot be written, and BadInput."""
    out, given = demand_path(out), list(take_sources(images))
    if out.suffix.lower() not in endings:
        raise BadOutput(f"{out}: the name of such a file ends in {', '.join(endings[:-1])} or {endings[-1]}")
    if out.suffix.lower() == ".parquet":
        check_parquet()
    demand_apart(out, (place.path if isinstance(place, ImageSample) else place for place in given))
    demand_writable(out)
    return out, given


def _open(model: "Model | str | Path") -> "tuple[Model | ModelFile, str]":
    """The model, and its place; of a file only the header is read."""
    return open_for_engine(model, "bulk work"), name_place(model) if isinstance(model, str | os.PathLike) else ""


def _describe_images(given: Sequence[str | Path | ImageSample], columns: Columns) -> dict[str, Any]:
    """The source of the images, which must be the same when the job is continued."""
    return {
        "places": [str(place) for place in given if isinstance(place, str | Path)],
        "columns": {name: value for name, value in asdict(columns).items() if value is not None},
    }


def _ignore(what: str, done: int, total: int | None) -> None:
    pass
