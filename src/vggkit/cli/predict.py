"""Ask, and see it all."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.cli.printing import describe_evaluation, print_json, print_json_line
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput
from vggkit.files import demand_apart
from vggkit.hardware import choose_device, keep_freed_memory
from vggkit.images.omissions import Reading
from vggkit.images.sources.tables import Columns
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal, print_line

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
    save_seconds: float = 5.0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Say what images show, the most probable classes first.

    With --out any number of images become rows of a file; an image that cannot be read is a row with its
    reason. Killed or stopped, the same line goes on where it was, and the file is as if nothing had been.

    Args:
        model: A Classifier's file, or a run's folder.
        images: Files, folders (every image below), lists (.txt), tables, archives, or - for standard input.
        out: Write the answers to this .parquet, .csv, .jsonl (an object a line) or .json (one array): path, answer,
            label_1, probability_1 …, problem.
        top: How many classes to name.
        columns: What a table's columns are called.
        batch_size: Images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: What is computed in; auto: bf16 where the device multiplies it by itself. int8 is for processors,
            and needs the ranges that bench keeps in the Classifier's file.
        engine: What computes; auto: PyTorch on CUDA and MPS, on processors OpenVINO, ONNX Runtime or PyTorch, the
            first that is installed.
        save_seconds: With --out, seconds between two times that what is done is kept, in the folder OUT.parts.
        overwrite: With --out, begin anew whatever an earlier line left there.
        json: A JSON object an image and line: path, labels, probabilities; unknown where the best is not sure
            enough, problem where it cannot be read. With --out one object: how many there were.
        quiet: No progress on standard error.
    """
    from vggkit.arguments import demand_count
    from vggkit.engines.info import explain_choice
    from vggkit.engines.model_weights import ModelFile
    from vggkit.images.sources.open_dataset import count_images, gather_images
    from vggkit.inference.predict import iterate_predictions, prepare_engine

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
                save_seconds=save_seconds,
                overwrite=overwrite,
                on_progress=line.show,
            )
        return _tell_result(result, json=json, precision=precision, engine=engine)
    if overwrite:
        raise BadInput("--overwrite is for --out: without a file nothing is kept")
    demand_count("top", top)
    demand_count("batch_size", batch_size)
    file = ModelFile(model)
    # With the number of all, the time left is known.
    total = count_images(images, columns=columns)
    computing = prepare_engine(file, device=device, precision=precision, engine=engine, count=total)
    answered = False
    with ProgressLine(quiet=quiet, rate=RATE) as line:
        line.log(f"computed by {explain_choice(computing.info, precision=precision, engine=engine)}")
        reading = Reading()
        found = gather_images(images, columns=columns, reading=reading)
        predictions = iterate_predictions(computing, file.card, found, top=top, batch_size=batch_size)
        for done, answer in enumerate(predictions, start=1):
            answered = answered or not answer.problem
            if json:
                print_json_line(answer.to_dict())
            elif not answer.problem:
                said = ", ".join(
                    f"{label} {100 * chance:.1f} %"
                    for label, chance in zip(answer.labels, answer.probabilities, strict=True)
                )
                print_line(f"{answer.path}: {f'unknown ({said})' if answer.unknown else said}")
            if answer.problem:
                line.log(f"vggkit: error: {answer.problem}")
            line.show("predicting", done, total)
        for omission in reading.list_omissions():
            line.log(f"passed over: {omission.describe()}")
    return 0 if answered else 2


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
    save_seconds: float = 5.0,
    overwrite: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Write what the network computes of images before it answers: a vector each, to search, group or learn from.

    Any number of images; one that cannot be read is a row with its reason. Killed or stopped, the same line goes
    on where it was, and the file is as if nothing had been.

    Args:
        model: A Classifier's file, or a run's folder.
        images: Files, folders (every image below), lists (.txt), tables, archives, or - for standard input.
        out: A .parquet (path, vector, problem), or an .npy beside which OUT.csv names its rows.
        layer: features: what the last fully connected layer reads (relu7 of the paper's head); statistics: mean and
            standard deviation of each channel of the trunk's last map; logits; probabilities; or a layer's name,
            such as pool5 or relu6, of whose maps each channel's mean is taken.
        columns: What a table's columns are called.
        batch_size: Images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: What is computed in; auto: bf16 where the device multiplies it by itself. int8 is for processors,
            and needs the ranges that bench keeps in the Classifier's file.
        engine: What computes; auto: PyTorch on CUDA and MPS, on processors OpenVINO, ONNX Runtime or PyTorch, the
            first that is installed.
        save_seconds: Seconds between two times that what is done is kept, in the folder OUT.parts.
        overwrite: Begin anew whatever an earlier line left there.
        json: One JSON object in place of the text.
        quiet: No progress on standard error.
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
            save_seconds=save_seconds,
            overwrite=overwrite,
            on_progress=line.show,
        )
    return _tell_result(result, json=json, precision=precision, engine=engine)


def search(
    index: Path,
    images: tuple[str, ...],
    /,
    *,
    model: str | None = None,
    top: int = 10,
    sheet: Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Find the images that look most like others, in a file that `vggkit embed` wrote.

    Args:
        index: The file of vectors; it knows the Classifier that it was made with.
        images: Files, folders (every image below), lists (.txt), tables, archives, or - for standard input.
        model: Where that Classifier is, if no longer where it was.
        top: How many to find for each.
        sheet: Also draw them, as a .png, .pdf or .svg.
        batch_size: Images that pass through the network together.
        device: auto, cpu, cuda or mps.
        json: A JSON object an image and line: path, neighbours with path and similarity, in place of the table.
        quiet: No progress on standard error.
    """
    from vggkit.reports.plots import demand_drawable
    from vggkit.reports.search_table import draw_neighbours, plot_neighbours
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
            classifier=model,
            top=top,
            batch_size=batch_size,
            device=device,
            on_progress=lambda done, total: line.show("embedding", done, total),
        )
        for each in found:
            if each.problem:
                line.log(f"vggkit: error: {each.problem}")
    readable = [each for each in found if not each.problem]
    if json:
        for each in found:
            print_json_line(each.to_dict())
    elif readable:
        # A file or a pipe takes paths whole.
        width = None if sys.stdout is not None and sys.stdout.isatty() else MOST_CHARACTERS
        open_terminal(width=width).print(draw_neighbours(readable))
    if sheet is not None and readable:
        plot_neighbours(readable, sheet)
        print_line(f"drawn: {sheet}", to_stderr=True)
    return 0 if readable else 2


def _tell_result(result: "BulkResult", *, json: bool, precision: WantedPrecision, engine: WantedEngine) -> int:
    """Print what bulk work wrote; 2 where no image has a result."""
    from vggkit.engines.info import explain_choice

    if json:
        print_json(result.to_dict())
    else:
        left = f", {result.unreadable:,} of them without an answer: their rows say why" if result.unreadable else ""
        computed_by = explain_choice(result.engine, precision=precision, engine=engine)
        before = f" ({result.found_done:,} were there already)" if result.found_done else ""
        print_line(f"{result.path}: {result.images:,} images{left}{before}; computed by {computed_by}")
        for omission in result.passed_over:
            print_line(f"passed over: {omission.describe()}", to_stderr=True)
    return 0 if result.images > result.unreadable else 2


def demo(*, out: Path = Path("runs/demo"), device: str = "auto", seed: int = 0, quiet: bool = False) -> None:
    """Train a VGG11 with batch norm on real handwritten digits, measure it on others, and ask it about some.

    Args:
        out: Folder for what it makes; one that an earlier demo made is replaced.
        device: auto, cpu, cuda or mps.
        seed: Every random draw depends on it.
        quiet: No progress on standard error.
    """
    from vggkit.workflows.demo import demonstrate

    if choose_device(device).type == "cpu":
        keep_freed_memory()
    found = demonstrate(out, device=device, seed=seed, quiet=quiet)
    print_line(describe_evaluation(found.run.evaluation))
    for image, answer in zip(found.images, found.predictions, strict=True):
        print_line(f"{answer.path}: {answer.labels[0]} {100 * answer.probabilities[0]:.1f} % (is {image.label})")
    print_line(f"look at: {found.sheet}")
    for name in ("report.html", "learning_curve.png", "confusion_matrix.png"):
        print_line(f"         {found.run.directory / name}")
    best = found.run.directory / "best.safetensors"
    print_line(f"next:    vggkit predict {best} {found.predictions[0].path}")
    print_line(f"         vggkit evaluate {best} digits")
    print_line("         vggkit train YOUR_IMAGES/ --model vgg11_bn")
