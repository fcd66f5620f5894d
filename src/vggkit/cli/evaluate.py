"""The verb evaluate."""

from pathlib import Path
from typing import Literal

from vggkit.cli.failures import Failures
from vggkit.cli.printing import print_json
from vggkit.engines.averaged_views import Views
from vggkit.engines.info import WantedEngine
from vggkit.engines.outputs import WantedPrecision
from vggkit.errors import BadInput, BadOutput
from vggkit.evaluation.evaluation import ProtocolName
from vggkit.files import demand_apart, demand_writable
from vggkit.images.sources.tables import Columns
from vggkit.reports.plots import PlotEnding, demand_drawable, name_plots
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import open_terminal, print_line


def evaluate(
    model_data: tuple[str, ...],
    /,
    *,
    split: str | None = None,
    protocol: ProtocolName = "single",
    scales: tuple[int, ...] = (),
    train_scales: tuple[int, ...] = (),
    mirror: Literal["auto", "on", "off"] = "auto",
    views: Views = "one",
    wanted_precision: float | None = None,
    calibrate: bool = False,
    results: Path | None = None,
    report: Path | None = None,
    plots: PlotEnding | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    precision: WantedPrecision = "fp32",
    engine: WantedEngine = "auto",
    reduced_decoding: bool = False,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure classifiers on labelled images, with 95 % confidence intervals.

    `vggkit evaluate MODEL DATA` measures one classifier. `vggkit evaluate MODEL MODEL DATA` measures several on the
    same images, compares them pair by pair (McNemar's test), and averages them as an ensemble.

    Exit code: 0, 1 if some of the images cannot be read, 2 if nothing was measured.

    Args:
        model_data: One or more models (a model's name such as vgg16, a classifier's file, a run's folder, or
            hf://owner/name), then the data, as `vggkit train` takes it; without data: digits.
        split: train, val, test or all. Without it: test, else val, else all images that were not trained on.
        protocol: The evaluated views of each image. single: one view, as in predict. The paper's protocols: dense,
            the network slid over the whole image; multi-scale, the same at three sizes; multi-crop, 25 crops at
            each size; dense+crops, the average of both.
        scales: Short sides in pixels for these protocols, in place of the paper's.
        train_scales: Short side in pixels that the network was trained at, or both ends of its range; the paper's
            test scales follow from it.
        mirror: Average over each image and its mirror image. auto: in all protocols but single.
        views: With --protocol single: the views of each image that are averaged, as in predict. one: the image.
            mirror: also its mirror image. mirror-shift: both, and both moved by one pixel to two sides.
        wanted_precision: Find the probability threshold above which predictions have this precision, such as 0.95.
        calibrate: Fit the temperature on these images and store it in the classifier's file; with
            --wanted-precision also the threshold below which predict reports "unknown".
        results: Also write the predictions, a row for each image, to this file (.csv or .parquet); of several
            classifiers those of each one, in files beside it.
        report: Also write the report, one .html file that needs no network.
        plots: Also write the report's figures as files of this format, in the folder plots beside the report.
        columns: Names of a table's columns.
        batch_size: Number of images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: Precision of the computation. bf16 and int8 are noted beside the metrics. auto: bf16 where the
            device supports it natively. int8: on a CPU, for a classifier whose file holds activation ranges (vggkit
            bench --keep-ranges).
        engine: Library that computes. auto: PyTorch on CUDA, on MPS and for whole images; else ncnn (fp32 on x86
            from 112 pixels on), OpenVINO, ONNX Runtime or PyTorch, the first of them that is installed.
        reduced_decoding: Decode large JPEGs at a smaller scale, even where the classifier does not: it is faster,
            reads some that are too large otherwise, and changes pixels slightly.
        json: Print a JSON object in place of the text.
        quiet: Show no progress.
    """
    from vggkit.evaluation.predictions import check_ending
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.workflows.evaluate import demand_models, measure, name_results, report_on, write_results

    models, data = _split_arguments(model_data)
    if results is not None:
        check_ending(results)
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise BadOutput(f"{report}: must end in .html or .htm")
    outputs = [*(name_results(results, models) if results is not None else ()), *([report] if report else ())]
    drawings = (report.parent if report is not None else Path()) / "plots"
    for path in outputs:
        demand_writable(path)
    if plots is not None:
        for path in name_plots(drawings, plots):
            demand_drawable(path)
    demand_models(models)
    with ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
        images = open_dataset(data, columns=columns)
        for omission in images.skipped:
            line.log(f"skipped: {omission.describe()}")
        for path in outputs:
            demand_apart(path, images.list_sources())
        found = measure(
            models,
            images,
            split=split,
            protocol=protocol,
            scales=scales,
            train_scales=train_scales,
            mirror={"auto": None, "on": True, "off": False}[mirror],
            views=views,
            wanted_precision=wanted_precision,
            calibrate=calibrate,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            reduced_decoding=reduced_decoding,
            on_progress=line.show,
        )
        shown = found.evaluations[-1]
        with Failures(line, all_are_in="The figures are without them; --json lists all.") as failures:
            for problem in shown.unreadable:
                failures.count(problem)
            failures.done = shown.n
    if json:
        print_json(found.to_dict())
    else:
        from vggkit.reports.evaluation_table import draw_evaluation, draw_several

        several = len(found.evaluations) > 1
        drawn = draw_several(found.evaluations, found.comparisons) if several else draw_evaluation(shown)
        open_terminal().print(drawn)
    for sentence in found.messages:
        print_line(sentence, to_stderr=True)
    # The figures are printed first, in case a file cannot be written.
    if results is not None:
        for path in write_results(found, results, models=models):
            print_line(f"results: {path}", to_stderr=True)
    if report is not None:
        with ProgressLine(quiet=quiet) as line:
            line.show("writing the report", 0, None)
            report_on(found, images, report, models=models, device=device)
        print_line(f"report: {report}", to_stderr=True)
    if plots is not None:
        from vggkit.reports.run_plots import write_plots

        print_line(f"drawn: {', '.join(map(str, write_plots(shown, drawings, plots)))}", to_stderr=True)
    return failures.exit_code


def _split_arguments(places: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The Classifiers, and the data, which comes last."""
    if not places:
        raise BadInput("evaluate needs a Classifier and images: vggkit evaluate MODEL DATA")
    *models, data = places if len(places) > 1 else (*places, "digits")
    if data.endswith(".safetensors") or (Path(data) / "best.safetensors").is_file():
        raise BadInput(f"the images come last, and {data} is a Classifier: vggkit evaluate MODEL MODEL DATA")
    return tuple(models), data
