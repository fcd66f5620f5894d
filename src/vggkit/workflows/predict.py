"""Predictions and vectors of any number of images, written to a file.

Shape letters: N images, F numbers of a vector.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from vggkit.arguments import demand_count, demand_path, demand_seconds
from vggkit.engines.averaged_views import Views, demand_views
from vggkit.engines.info import EngineInfo, WantedEngine
from vggkit.engines.model_weights import ModelFile, open_for_engine
from vggkit.engines.outputs import WantedPrecision
from vggkit.engines.select import choose_engine
from vggkit.errors import BadInput, BadOutput
from vggkit.files import demand_apart, demand_writable
from vggkit.images.dataset import ImageSample
from vggkit.images.given import ImageSources, take_sources
from vggkit.images.sources.open_dataset import count_images
from vggkit.images.sources.tables import Columns
from vggkit.inference.bulk import VECTOR, BulkResult, Job, OnProgress, run_job
from vggkit.inference.bulk_work import Compute, EmbedWork, PredictWork, Row, list_prediction_rows, list_vector_rows
from vggkit.inference.embed import FEATURES, find_width, iterate_embeddings
from vggkit.inference.fingerprint import describe_labels, describe_network, name_place
from vggkit.table_files import ENDINGS, Kind, check_parquet
from vggkit.workflows.predict_and_explain import open_predictor

if TYPE_CHECKING:
    from vggkit.weights.model import Model

Where = Literal["local", "ray"]
"""Where a bulk job computes."""
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
    views: Views = "one",
    explain: str | Path | None = None,
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on: Where = "local",
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
        views: The views of each image whose probabilities are averaged. `one`: the image. `mirror`: also its mirror
            image, for images whose sides have no meaning. `mirror-shift`: both, and both moved by one pixel to two
            sides, six views in all, for small images. The time grows with their number.
        explain: Also write to this folder, a new one, which regions of each image support its most probable class:
            Grad-CAM in closed form from the same pass, as an overlay for each image; see `explain_into`.
        save_seconds: How often rows are written to the folder `out`.parts; the same call continues there after
            the process has ended in any way, and the file is the same as without the interruption.
        overwrite: Start again, and discard the rows of an earlier call.
        on: local: in this process. ray: by the machines of a Ray cluster, the one of RAY_ADDRESS, one that runs
            here, or else one that is started here; the file is the same. Each machine must reach the model's file
            and the images by the same names.
        on_progress: Called with the current task, the number of images that are done, and of all.

    Raises BadOutput where the file cannot be written, or is of another model, of other options or images;
    BadData, BadInput and MissingExtra.
    """
    out, given = _check(out, images, ENDINGS, on=on)
    on_progress = on_progress or _ignore
    top, batch_size = demand_count("top", top), demand_count("batch_size", batch_size)
    save_seconds, views = demand_seconds("save_seconds", save_seconds), demand_views(views)
    opened, place = _open(model)
    on_progress("listing", 0, None)
    top = min(top, len(opened.card.labels))
    kinds: dict[str, Kind] = {"path": "path", "prediction": "text"}
    for rank in range(1, top + 1):
        kinds |= {f"label_{rank}": "text", f"probability_{rank}": "number"}
    kinds["problem"] = "text"
    total = count_images(given, columns=columns)  # a place without images is refused before an engine is built

    def describe(info: EngineInfo, compute: Compute, more: Mapping[str, Any]) -> Job:
        return Job(
            out=out,
            kinds=kinds,
            about={
                "results": "predictions",
                "top": top,
                "answers": describe_labels(opened),
                **({} if views == "one" else {"views": views}),
                "model": describe_network(opened, precision=info.precision, reduced_decoding=reduced_decoding),
                **_describe_images(given, columns),
                **more,
            },
            model=place,
            engine=info,
            compute=compute,
            images=given,
            columns=columns,
            total=total,
            batch_size=batch_size,
            save_seconds=save_seconds,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    if on == "ray":
        if explain is not None:
            raise BadInput("explain writes files beside this process, and on=ray computes elsewhere; leave out one")
        work = PredictWork(
            model=place,
            top=top,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            views=views,
        )
        return _run_on_ray(work, device, lambda info, compute: describe(info, compute, {}))
    predicting = open_predictor(
        opened,
        given,
        explain=explain,
        device=device,
        precision=precision,
        engine=engine,
        reduced_decoding=reduced_decoding,
        views=views,
    )

    def compute(found: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
        return list_prediction_rows(predicting.iterate(found, top=top, batch_size=batch_size), top=top)

    result = run_job(describe(predicting.info, compute, predicting.about))
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
    on: Where = "local",
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
        on: local: in this process. ray: by the machines of a Ray cluster, the one of RAY_ADDRESS, one that runs
            here, or else one that is started here; the file is the same. Each machine must reach the model's file
            and the images by the same names.
        on_progress: Called with the current task, the number of images that are done, and of all.

    Raises UnknownName for a layer that the network lacks, BadOutput where the file cannot be written, or is of
    another model, of other options or images; BadData, BadInput and MissingExtra.
    """
    out, given = _check(out, images, VECTOR_ENDINGS, on=on)
    on_progress = on_progress or _ignore
    batch_size = demand_count("batch_size", batch_size)
    save_seconds = demand_seconds("save_seconds", save_seconds)
    opened, place = _open(model)
    card = opened.card.with_reduced_decoding(reduced_decoding)
    width = find_width(card.configuration, layer)
    on_progress("listing", 0, None)
    total = count_images(given, columns=columns)  # a place without images is refused before an engine is built

    def describe(info: EngineInfo, compute: Compute) -> Job:
        return Job(
            out=out,
            kinds={"path": "path", VECTOR: width, "problem": "text"},
            about={
                "results": "vectors",
                "layer": layer,
                "precision": info.precision,
                "model": describe_network(
                    opened, precision=info.precision, layer=layer, reduced_decoding=reduced_decoding
                ),
                **_describe_images(given, columns),
            },
            model=place,
            engine=info,
            compute=compute,
            images=given,
            columns=columns,
            total=total,
            batch_size=batch_size,
            save_seconds=save_seconds,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    if on == "ray":
        work = EmbedWork(
            model=place,
            layer=layer,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
        )
        return _run_on_ray(work, device, describe)
    computing = choose_engine(opened, device, output=layer, precision=precision, engine=engine)

    def compute(found: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
        return list_vector_rows(iterate_embeddings(computing, card, found, batch_size=batch_size), width=width)

    return run_job(describe(computing.info, compute))


def _run_on_ray(
    work: PredictWork | EmbedWork, device: str, describe: Callable[[EngineInfo, Compute], Job]
) -> BulkResult:
    """Run the job on a Ray cluster; raises BadInput for a model in memory, and MissingExtra without Ray."""
    from vggkit.inference.on_ray import connect, find_engine, run_job_on_ray

    if not work.model:
        raise BadInput("on=ray takes a Classifier's place, which its machines open; save it, and give the file")
    with connect():
        info = find_engine(work, device=device)
        return run_job_on_ray(describe(info, _compute_elsewhere), work, device=device)


def _compute_elsewhere(images: Iterator[ImageSample]) -> Iterator[tuple[ImageSample, Row]]:
    raise AssertionError("the actors compute")


def _check(
    out: str | Path, images: ImageSources, endings: Sequence[str], *, on: str
) -> tuple[Path, list[str | Path | ImageSample]]:
    """The file, and places and images; raises BadOutput where the file cannot be written, and BadInput."""
    if on not in get_args(Where):
        raise BadInput(f"on must be one of {', '.join(get_args(Where))}; got {on!r}")
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
