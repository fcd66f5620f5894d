"""Learn from your images."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.cli.printing import describe_evaluation, print_json
from vggkit.errors import BadInput
from vggkit.files import demand_writable
from vggkit.hardware import choose_device, keep_freed_memory
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import configure
from vggkit.reports.loggers import LoggerName
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine, only_our_errors
from vggkit.reports.terminal import open_terminal, print_line
from vggkit.training.presets import find_preset
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate

if TYPE_CHECKING:
    from vggkit.images.dataset import ImageDataset
    from vggkit.weights.model import Model


def check(
    data: str,
    /,
    *,
    model: Path | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    image_size: int | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Look at a collection of images before an hour is spent on it: what it holds, and what is wrong.

    Unreadable files, copies (across splits: leakage; across classes: contradictions), missing, small and
    uneven classes; with --model also labels that are likely wrong and images unlike all others.
    Exits with 1 where figures would lie, with 0 else.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, or a name such as cifar10.
        model: A Classifier's file, or a run's folder, that knows such images.
        html: Also write a page with the images, one file that needs no network.
        fix: Also write a cleaned table of path, label and split; images are left as they are.
        image_size: Pixels that the network is to see. Without it: the Classifier's, or 224.
        columns: What a table's columns are called.
        device: auto, cpu, cuda or mps; for --model.
        json: One JSON object in place of the table.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.workflows.check import check as look
    from vggkit.workflows.check import guard_outputs

    classifier = None
    if model is not None:
        from vggkit.classifier import load

        classifier = load(model)
    for path in (fix, html):
        if path is not None:
            demand_writable(path)
    with only_our_errors(), ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
        images = open_dataset(data, columns=columns)
        guard_outputs(images, table=fix, page=html)
        found = look(images, classifier, image_size=image_size, device=device, on_progress=line.show)
        if html is not None:
            from vggkit.reports.diagnosis_page import write_diagnosis_page

            line.show("drawing the page", 0, None)
            write_diagnosis_page(found, html)
    if json:
        print_json(found.to_dict())
    else:
        from vggkit.reports.diagnosis_table import draw_diagnosis

        open_terminal().print(draw_diagnosis(found))
    if html is not None:
        print_line(f"page: {html}", to_stderr=True)
    if fix is not None:
        from vggkit.data_checks.clean_table import write_clean_table

        left_out = write_clean_table(images, found, fix)
        said = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"
        print_line(f"table: {fix}; left out: {said}", to_stderr=True)
    return 1 if any(finding.severity == "error" for finding in found.findings) else 0


def train(
    data: str = "digits",
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    preset: str | None = None,
    resume: Path | None = None,
    network: NetworkChoice = NetworkChoice(),  # noqa: B008 (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    find_learning_rate: bool = False,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    despite_findings: bool = False,
    loggers: tuple[LoggerName, ...] = (),
    plots: PlotEnding | None = None,
    save_seconds: float = 300.0,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a Classifier on labelled images.

    The folder holds a subfolder for each class, or train/ and val/ (valid/, validation/, test/) that do;
    without splits, a share of each class is held out. digits are 1,797 real handwritten digits.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, or a name such as digits or cifar10.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        config: A run's folder or its config.yaml: begin with all that it says; options given beside it win.
        preset: quick, small-images, modern, paper or torchvision: begin with a recipe; options beside it win.
        resume: A run's folder: go on where it was stopped, to the very weights it would have had.
        network: Which network learns.
        recipe: How to learn.
        find_learning_rate: Look for a learning rate first, by some steps at ever higher rates.
        columns: What a table's columns are called.
        despite_findings: Train even where figures would lie, such as a class missing from validation.
        loggers: Who hears of each epoch: csv (always), tensorboard, wandb, mlflow.
        plots: Also draw the images of the report, to pdf, svg or png files in the folder plots.
        save_seconds: How often the middle of an epoch is kept for --resume.
        device: auto, cpu, cuda or mps.
        json: One JSON object with the result on standard output.
        quiet: No progress on standard error.
    """
    from vggkit.workflows import train as runs
    from vggkit.workflows.run_folder import demand_new_folder

    if choose_device(device).type == "cpu":
        keep_freed_memory()  # of this process, which is ours alone
    if resume is not None:
        run = runs.resume(resume, data or None, device=device, quiet=quiet, save_seconds=save_seconds, plots=plots)
    else:
        asked = RunConfig(
            data=locate(data),
            columns=columns,
            despite_findings=despite_findings,
            loggers=loggers,
            find_learning_rate=find_learning_rate,
            network=replace(network, weights=locate(network.weights) if network.weights else None),
            recipe=recipe,
        )
        demand_new_folder(out)
        images, classifier = _prepare(data, asked, preset=preset, quiet=quiet)
        run = runs.train(
            classifier,
            images,
            recipe,
            out=out,
            device=device,
            despite_findings=despite_findings,
            quiet=quiet,
            loggers=loggers,
            find_learning_rate=find_learning_rate,
            save_seconds=save_seconds,
            plots=plots,
            asked=asked,
        )
    if json:
        print_json(
            {
                "directory": str(run.directory),
                "best_epoch": run.best_epoch,
                **{name: getattr(run.evaluation, name) for name in ("top1", "top1_interval", "top5", "loss", "n")},
                "data": run.evaluation.data,
                "part": run.evaluation.split,
            }
        )
        return
    print_line(describe_evaluation(run.evaluation))
    made = sorted(path.name for path in run.directory.iterdir() if path.suffix in (".png", ".csv", ".yaml"))
    print_line(f"{run.directory}: best.safetensors, {', '.join(made)}")
    print_line(f"report: {run.directory / 'report.html'}")
    print_line(f"next: vggkit predict {run.directory}/best.safetensors IMAGE…")


def _prepare(data: str, asked: RunConfig, *, preset: str | None, quiet: bool) -> "tuple[ImageDataset, Model]":
    """The images, and a Classifier that suits them."""
    from vggkit.images.sources.open_dataset import open_dataset
    from vggkit.weights.published_models import find_published_for
    from vggkit.workflows.build_classifier import suit_classifier

    with ProgressLine(quiet=quiet) as line:
        if preset is not None:
            line.log(f"preset {preset}: {find_preset(preset).about}")
        line.show(f"opening {data}", 0, None)
        images = open_dataset(data, columns=asked.columns)
    choice = asked.network
    published = find_published_for(choice.weights, choice.model)
    if published is not None:
        configure(choice.model, head=choice.head, dropout=choice.dropout, until=choice.until)
        _fetch_weights(published.model, quiet=quiet)
    classifier = suit_classifier(
        images,
        choice.model,
        weights=choice.weights,
        image_size=choice.image_size,
        fit_mode=choice.fit_mode,
        reduced_decoding=choice.reduced_decoding,
        in_channels=choice.channels,
        head=choice.head,
        dropout=choice.dropout,
        until=choice.until,
        initialization=choice.initialization,
        input_convention=choice.input_convention,
        allow_partial=choice.allow_partial,
        seed=asked.recipe.seed,
    )
    return images, classifier


def compare(
    runs: tuple[Path, ...],
    /,
    *,
    plot: Path | None = None,
    json: bool = False,
) -> None:
    """Trainings side by side: what differs between them, and what came of it.

    Runs that still go on, or were stopped, are shown as far as they are.

    Args:
        runs: The runs' folders, or a folder that holds several.
        plot: Also draw their curves over each other, to this .png, .pdf or .svg.
        json: One JSON object in place of the table.
    """
    from vggkit.workflows.compare import compare as put_side_by_side

    if not runs:
        raise BadInput("compare needs the folders of runs: vggkit compare RUN RUN…")
    found = put_side_by_side(runs)
    if plot is not None:
        from vggkit.reports.comparison import plot_comparison

        plot_comparison(found, plot)
    if json:
        print_json(found.to_dict())
        return
    from vggkit.reports.comparison import draw_comparison

    console = open_terminal()
    console.print(draw_comparison(found, width=console.width))
    if plot is not None:
        print_line(f"drawn: {plot}")


def _fetch_weights(model: str, *, quiet: bool) -> None:
    """Half a gigabyte before anything else, where it can be seen to come."""
    from vggkit.weights.pretrained import fetch

    found = fetch(model, progress=not quiet)
    ProgressLine(quiet=quiet).log(f"weights: {found.source} ({found.published.licence}; {found.published.terms})")
