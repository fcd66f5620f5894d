"""Measure what was learnt."""

from pathlib import Path
from typing import Literal

from vggkit.cli.printing import print_json
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
    model: tuple[str, ...],
    /,
    *,
    split: str | None = None,
    protocol: ProtocolName = "single",
    scales: tuple[int, ...] = (),
    train_scales: tuple[int, ...] = (),
    mirror: Literal["auto", "on", "off"] = "auto",
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
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Measure a Classifier on labelled images: vggkit evaluate MODEL DATA.

    Several are measured on the same images, compared pair by pair, and fused: vggkit evaluate A B DATA.
    Each figure has its 95 % interval and is printed with the protocol that it was measured by.

    Args:
        model: Classifiers' files or runs' folders, and last the data, as for train (digits where it is left out).
        split: train, val, test or all. Without it: test, else val, else everything that was not trained on.
        protocol: single: one view, as predict looks. The paper's: dense: the head slid over the whole image;
            multi-scale: at three sizes; multi-crop: 25 crops at each; dense+crops: both.
        scales: Short sides in pixels to look at, in place of the paper's.
        train_scales: Short side that was trained at, or both ends of its range; the paper's scales follow from it.
        mirror: Look at each image's mirror image too, and average. auto: in all protocols but single.
        wanted_precision: Find the probability from which on answers are right that often, such as 0.95.
        calibrate: Keep in the Classifier's file the temperature that makes its probabilities true on these
            images, and with --wanted-precision the threshold below which predict answers "unknown".
        results: Also write the answers, a row an image, to this .csv or .parquet; of several Classifiers also each
            one by itself, beside it.
        report: Also write the report, one .html file that needs no network.
        plots: Also draw the report's images, as pdf, svg or png files in the folder plots, beside the report.
        columns: What a table's columns are called.
        batch_size: Images that pass through the network together.
        device: auto, cpu, cuda or mps.
        precision: What is computed in: fp32, or bf16 or int8 to see what they cost, which is noted. auto: bf16
            where the device multiplies it by itself. int8 is for processors, and needs the ranges that bench keeps
            in the Classifier's file.
        engine: What computes; auto: PyTorch on CUDA and MPS and for whole images, else OpenVINO, ONNX Runtime or
            PyTorch, the first that is installed.
        json: One JSON object in place of the text.
        quiet: No progress on standard error.
    """
    from vggkit.evaluation.predictions import check_ending
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.workflows.evaluate import measure, name_results, report_on, write_results

    models, data = _tell_apart(model)
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
    with ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
        images = open_dataset(data, columns=columns)
        for omission in images.passed_over:
            line.log(f"passed over: {omission.describe()}")
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
            wanted_precision=wanted_precision,
            calibrate=calibrate,
            batch_size=batch_size,
            device=device,
            precision=precision,
            engine=engine,
            on_progress=line.show,
        )
        shown = found.evaluations[-1]
        for problem in shown.unreadable:
            line.log(f"left out: {problem}")
    if json:
        print_json(found.to_dict())
    else:
        from vggkit.reports.evaluation_table import draw_evaluation, draw_several

        several = len(found.evaluations) > 1
        drawn = draw_several(found.evaluations, found.comparisons) if several else draw_evaluation(shown)
        open_terminal().print(drawn)
    for sentence in found.said:
        print_line(sentence, to_stderr=True)
    # The figures are on the terminal, whatever becomes of the files.
    if results is not None:
        for path in write_results(found, results, models=models):
            print_line(f"results: {path}", to_stderr=True)
    if report is not None:
        with ProgressLine(quiet=quiet) as line:
            line.show("writing the report", 0, None)
            report_on(found, images, report, models=models)
        print_line(f"report: {report}", to_stderr=True)
    if plots is not None:
        from vggkit.reports.run_plots import write_plots

        print_line(f"drawn: {', '.join(map(str, write_plots(shown, drawings, plots)))}", to_stderr=True)


def _tell_apart(places: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The Classifiers, and the data, which stands last."""
    if not places:
        raise BadInput("evaluate needs a Classifier and images: vggkit evaluate MODEL DATA")
    *models, data = places if len(places) > 1 else (*places, "digits")
    if data.endswith(".safetensors") or (Path(data) / "best.safetensors").is_file():
        raise BadInput(f"the images stand last, and {data} is a Classifier: vggkit evaluate MODEL MODEL DATA")
    return tuple(models), data
