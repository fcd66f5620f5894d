"""The verb train."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.cli.printing import describe_evaluation, print_json
from vggkit.hardware import choose_device, keep_freed_memory
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import configure
from vggkit.reports.loggers import LoggerName
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.reports.terminal import print_line
from vggkit.training.presets import find_preset
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate

if TYPE_CHECKING:
    from vggkit.images.dataset import ImageDataset
    from vggkit.weights.model import Model


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
                "split": run.evaluation.split,
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


def _fetch_weights(model: str, *, quiet: bool) -> None:
    """Half a gigabyte before anything else, where it can be seen to come."""
    from vggkit.weights.pretrained import fetch

    found = fetch(model, progress=not quiet)
    ProgressLine(quiet=quiet).log(f"weights: {found.source} ({found.published.licence}; {found.published.terms})")
