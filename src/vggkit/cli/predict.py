"""The verbs predict, embed, search and demo."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.cli.failures import Failures, choose_exit_code
from vggkit.cli.printing import print_json, print_json_line
from vggkit.engines.averaged_views import Views
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput
from vggkit.files import demand_apart
from vggkit.images.omissions import Reading
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal, print_line
from vggkit.workflows.predict import Where

if TYPE_CHECKING:
    from vggkit.inference.bulk import BulkResult

RATE: Final = "images/s"
MOST_CHARACTERS: Final = 10_000
"""Of a line that is not for a terminal."""


def predict(
    model: str,
    images: tuple[str, ...],
    /,
    *,
    out: Path | None = None,
    top: int = 5,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    views: Views = "one",
    explain: Path | None = None,
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on: Where = "local",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Classify images: the most probable classes of each, with their probabilities.

    With --out any number of images become rows of a file, in constant memory. An interrupted command continues
    where it stopped when it is repeated, and an image that cannot be read becomes a row with the reason.

    Exit code: 0, 1 if some of the images failed, 2 if all of them did or the command was refused.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        images: Image files, folders (every image below them), lists of paths (.txt), tables (.csv), archives, or -
            for standard input.
        out: Write the predictions to this file: .parquet, .csv, .jsonl (a JSON object per line) or .json (one
            array), with the columns path, prediction, label_1, probability_1 …, problem.
        top: Number of classes to name.
        columns: Names of a table's columns.
        batch_size: Number of images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation. auto: bf16 where the device supports it natively, else fp32. int8:
            on a CPU, for a classifier whose file holds activation ranges (vggkit bench --keep-ranges).
        engine: Library that computes. auto: PyTorch on CUDA and MPS; on a CPU ncnn (fp32 on x86 from 112 pixels
            on), OpenVINO, ONNX Runtime or PyTorch, the first of them that is installed.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        views: The views of each image whose probabilities are averaged. one: the image. mirror: also its mirror
            image, for images whose sides have no meaning. mirror-shift: both, and both moved by one pixel to two
            sides, six views in all, for small images. The time grows with their number.
        explain: Also write to this folder which regions of each image support its most probable class, as overlays
            (Grad-CAM, from the same pass).
        save_seconds: Seconds between two saves of finished rows, with --out, in the folder OUT.parts.
        overwrite: Start again from the first image, with --out.
        on: Where to compute, with --out. local: in this process. ray: on the machines of a Ray cluster, that of
            RAY_ADDRESS, one that runs here, or else one that is started here; the file is the same.
        json: Print one JSON object per line for each image: path, labels, probabilities; unknown where
            the best probability is below the classifier's threshold, problem where the image cannot be read. With
            --out: one object, the number of images.
        quiet: Show no progress.
    """
    from vggkit.arguments import demand_count
    from vggkit.engines.info import explain_choice
    from vggkit.engines.model_weights import ModelFile
    from vggkit.images.sources.open_dataset import count_images, gather_images
    from vggkit.workflows.predict_and_explain import open_predictor

    if not images:
        raise BadInput("predict needs an image: vggkit predict MODEL IMAGE…")
    if out is not None:
        from vggkit.workflows.predict import predict_into

        with ProgressLine(quiet=quiet, rate=RATE) as line:
            result = predict_into(
                model,
                images,
                out,
                top=top,
                columns=columns,
                batch_size=batch_size,
                device=device,
                precision=precision,
                engine=engine,
                reduced_decoding=reduced_decoding,
                views=views,
                explain=explain,
                save_seconds=save_seconds,
                overwrite=overwrite,
                on=on,
                on_progress=line.show,
            )
        return _report_result(result, json=json, precision=precision, engine=engine)
    if overwrite:
        raise BadInput("--overwrite is for --out: without it no file is written")
    if on != "local":
        raise BadInput("--on ray is for --out: predictions go to a file there; name one, such as found.parquet")
    demand_count("top", top)
    demand_count("batch_size", batch_size)
    file = ModelFile(model)
    # With the number of all, the time left is known.
    total = count_images(images, columns=columns)
    predictor = open_predictor(
        file,
        images,
        explain=explain,
        device=device,
        precision=precision,
        engine=engine,
        reduced_decoding=reduced_decoding,
        views=views,
    )
    reasons = "With --json each has its reason." if not json else "The line of each holds its reason."
    with ProgressLine(quiet=quiet, rate=RATE) as line, Failures(line, all_are_in=reasons) as failures:
        line.log(f"computed by {explain_choice(predictor.info, precision=precision, engine=engine)}")
        reading = Reading()
        found = gather_images(images, columns=columns, reading=reading)
        predictions = predictor.iterate(found, top=top, batch_size=batch_size)
        for done, (_, prediction) in enumerate(predictions, start=1):
            failures.count(prediction.problem)
            if json:
                print_json_line(prediction.to_dict())
            elif not prediction.problem:
                listed = ", ".join(
                    f"{label} {100 * chance:.1f} %"
                    for label, chance in zip(prediction.labels, prediction.probabilities, strict=True)
                )
                if prediction.predicted is not None:  # the labels, and the most probable classes behind them
                    print_line(f"{prediction.path}: {prediction.label}  ({listed})")
                    continue
                print_line(f"{prediction.path}: {f'unknown ({listed})' if prediction.unknown else listed}")
            line.show("predicting", done, total)
        predictor.finish()
        for omission in reading.list_omissions():
            line.log(f"skipped: {omission.describe()}")
    return failures.exit_code


def embed(
    model: str,
    images: tuple[str, ...],
    /,
    *,
    out: Path,
    layer: str = "features",
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    save_seconds: float = 5.0,
    overwrite: bool = False,
    on: Where = "local",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Compute feature vectors of images, to search, cluster or train on.

    Any number of images are processed in constant memory. An interrupted command continues where it stopped when it
    is repeated, and an image that cannot be read becomes a row with the reason.

    Exit code: 0, 1 if some of the images failed, 2 if all of them did or the command was refused.

    Args:
        model: A model's name such as vgg16 (the published ImageNet weights), a classifier's file, a run's folder,
            or hf://owner/name.
        images: Image files, folders (every image below them), lists of paths (.txt), tables (.csv), archives, or -
            for standard input.
        out: Write the vectors to this file: .parquet (columns path, vector, problem), or .npy, beside which OUT.csv
            names its rows.
        layer: The layer that is computed. features: the input of the last fully connected layer (relu7 of the
            paper's head); statistics: mean and standard deviation of each channel of the last feature map; logits;
            probabilities; or a layer such as pool5 or relu6, whose maps are averaged over their area.
        columns: Names of a table's columns.
        batch_size: Number of images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation. auto: bf16 where the device supports it natively, else fp32. int8:
            on a CPU, for a classifier whose file holds activation ranges (vggkit bench --keep-ranges).
        engine: Library that computes. auto: PyTorch on CUDA and MPS; on a CPU ncnn (fp32 on x86 from 112 pixels
            on), OpenVINO, ONNX Runtime or PyTorch, the first of them that is installed.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        save_seconds: Seconds between two saves of finished rows, in the folder OUT.parts.
        overwrite: Start again from the first image.
        on: Where to compute. local: in this process. ray: on the machines of a Ray cluster, that of RAY_ADDRESS,
            one that runs here, or else one that is started here; the file is the same.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.workflows.predict import embed_into

    if not images:
        raise BadInput("embed needs an image: vggkit embed MODEL IMAGE… --out vectors.parquet")
    with ProgressLine(quiet=quiet, rate=RATE) as line:
        result = embed_into(
            model,
            images,
            out,
            layer=layer,
            columns=columns,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            save_seconds=save_seconds,
            overwrite=overwrite,
            on=on,
            on_progress=line.show,
        )
    return _report_result(result, json=json, precision=precision, engine=engine)


def search(
    index: Path,
    images: tuple[str, ...],
    /,
    *,
    model: str | None = None,
    top: int = 10,
    keep_query: bool = False,
    sheet: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    reduced_decoding: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find the images that are most similar to others, by cosine similarity of their feature vectors.

    Exit code: 0, 1 if some of the images failed, 2 if all of them did or the command was refused.

    Args:
        index: A file of vectors that `vggkit embed` wrote.
        images: Image files, folders (every image below them), lists of paths (.txt), tables (.csv), archives, or -
            for standard input.
        model: The classifier that the index was made with, if it has moved: its file, a run's folder, or its name.
        top: Number of images to find for each.
        keep_query: Also list the image itself, where it is in the index; its copies in other files always are.
        sheet: Also draw the images in this file (.png, .pdf or .svg).
        batch_size: Number of images that pass through the network together.
        device: auto, cpu, cuda or mps.
        reduced_decoding: Decode large JPEGs at a smaller scale; always so where those of the index were.
        json: Print one JSON object per line for each image: path, and similar with path and
            similarity.
        quiet: Show no progress.
    """
    from vggkit.reports.plots import demand_drawable
    from vggkit.reports.search_table import draw_search, plot_search
    from vggkit.workflows.search import search as find

    if not images:
        raise BadInput("search needs an image: vggkit search INDEX IMAGE…")
    if sheet is not None:
        demand_apart(sheet, images)
        demand_drawable(sheet)
    with ProgressLine(quiet=quiet, rate=RATE) as line:
        found = find(
            index,
            images,
            model=model,
            top=top,
            keep_query=keep_query,
            batch_size=batch_size,
            device=device,
            reduced_decoding=reduced_decoding,
            on_progress=lambda done, total: line.show("embedding", done, total),
        )
        with Failures(line, all_are_in="With --json each has its reason.") as failures:
            for each in found:
                failures.count(each.problem)
    readable = [each for each in found if not each.problem]
    if json:
        for each in found:
            print_json_line(each.to_dict())
    elif readable:
        # Paths are not broken in a file or a pipe.
        width = None if sys.stdout is not None and sys.stdout.isatty() else MOST_CHARACTERS
        open_terminal(width=width).print(draw_search(readable))
    if sheet is not None and readable:
        plot_search(readable, sheet)
        print_line(f"drawn: {sheet}", to_stderr=True)
    return failures.exit_code


def _report_result(result: "BulkResult", *, json: bool, precision: WantedPrecision, engine: WantedEngine) -> int:
    """Print the result of bulk work, and on standard error how many images failed; returns the exit code."""
    from vggkit.engines.info import explain_choice

    if json:
        print_json(result.to_dict())
    else:
        computed_by = explain_choice(result.engine, precision=precision, engine=engine)
        before = f" ({result.found_done:,} were there already)" if result.found_done else ""
        print_line(f"{result.path}: {result.images:,} images{before}; computed by {computed_by}")
        for omission in result.skipped:
            print_line(f"skipped: {omission.describe()}", to_stderr=True)
    if result.unreadable:
        print_line(
            f"vggkit: error: {result.unreadable:,} of {result.images:,} images failed; column problem of "
            f"{_name_table(Path(result.path))} has the reasons",
            to_stderr=True,
        )
    return choose_exit_code(done=result.images - result.unreadable, failed=result.unreadable)


def _name_table(path: Path) -> Path:
    """The file with a row for each image."""
    from vggkit.table_files import name_rows

    return name_rows(path) if path.suffix == ".npy" else path
