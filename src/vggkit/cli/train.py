"""The verb train."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.arguments import demand_seconds
from vggkit.cli.printing import describe_evaluation, print_json
from vggkit.errors import BadCheckpoint
from vggkit.hardware import choose_device, keep_freed_memory
from vggkit.images.sources.tables import Columns
from vggkit.reports.loggers import LoggerName
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine, only_our_errors
from vggkit.reports.terminal import print_line
from vggkit.training.distributed.joining import join_processes
from vggkit.training.distributed.process_group import ProcessGroup, count_started
from vggkit.training.presets import find_preset
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate
from vggkit.workflows.several_processes import find_interrupted
from vggkit.workflows.train_inputs import open_inputs

if TYPE_CHECKING:
    from vggkit.workflows.fit_and_record import TrainingRun


def train(
    data: str = "",
    /,
    *,
    out: Path | None = None,
    config: Path | None = None,
    preset: str | None = None,
    resume: Path | None = None,
    network: NetworkChoice = NetworkChoice(),  # noqa: B008 (frozen)
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    find_learning_rate: bool = False,
    search: int = 0,
    teacher: str | None = None,
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
            Without it, but with options: digits.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        config: A run's folder or its config.yaml: use all of its options; others given take precedence.
        preset: quick, small-images, modern, paper or torchvision: use the recipe of that name; others given
            take precedence.
        resume: A run's folder: continue it where it stopped, with the same result as without the interruption. With
            DATA: where the images are now. With --epochs: train for so many epochs in all, with the learning rate
            schedule stretched to them.
        network: Which network is trained.
        recipe: How it is trained.
        find_learning_rate: Search for a learning rate first, in a short run at ever higher rates.
        search: Search for a recipe first: the number of recipes to try, such as 12, by successive halving on the
            validation images; 0: none. What is not given of --learning-rate, --weight-decay, --trainable and the
            augmentation is chosen, and the best recipe is then trained in full. A search that was killed continues
            with --resume.
        teacher: A trained classifier whose predictions are learnt beside the labels: a file, a run's folder, a
            model's name or hf://owner/name. It has the same classes and image size, and may be of any size itself.
        columns: Names of a table's columns.
        despite_findings: Train even where the figures would be misleading, such as with a class missing from
            validation.
        loggers: Loggers of the metrics of each epoch: csv (always), tensorboard, wandb, mlflow.
        plots: Also write the figures of the report to pdf, svg or png files, in the folder plots.
        save_seconds: Seconds between two saves of the state within an epoch, for --resume.
        device: auto, cpu, cuda or mps.
        json: Print the result as a JSON object on standard output.
        quiet: Show no progress.
    """
    save_seconds = demand_seconds("save_seconds", save_seconds)
    if resume is not None and not (resume / "config.yaml").is_file() and count_started() == 1:
        raise BadCheckpoint(f"{resume}: is not a run's folder, it has no config.yaml")
    with ExitStack() as stack:
        if count_started() > 1 and "TORCH_CPP_LOG_LEVEL" not in os.environ:
            stack.enter_context(only_our_errors())  # not each lost connection with the stack of torch's C++ code
        group = stack.enter_context(join_processes(device))
        run = _train(
            data,
            out,
            config=RunConfig(
                data=_name_data(data),
                columns=columns,
                despite_findings=despite_findings,
                loggers=loggers,
                find_learning_rate=find_learning_rate,
                search=search,
                teacher=locate(teacher) if teacher else None,
                network=replace(network, weights=locate(network.weights) if network.weights else None),
                recipe=recipe,
            ),
            preset=preset,
            resume=resume,
            plots=plots,
            save_seconds=save_seconds,
            quiet=quiet,
            group=group,
        )
        if group.is_first:
            _print(run, as_json=json)


def _name_data(data: str) -> str:
    """The place of the images as the run's configuration states it."""
    data = data or "digits"
    is_name = Path(data).name == data and not Path(data).exists()  # perhaps a misspelt one
    return data if is_name else locate(data)


def _train(
    data: str,
    out: Path | None,
    *,
    config: RunConfig,
    preset: str | None,
    resume: Path | None,
    plots: PlotEnding | None,
    save_seconds: float,
    quiet: bool,
    group: ProcessGroup,
) -> "TrainingRun":
    again = resume or find_interrupted(out, group)
    if again is not None:
        _prepare_process(group)
        from vggkit.workflows.resume_run import resume_run

        return resume_run(
            *(again, data or None),
            epochs=config.recipe.epochs if resume is not None else None,
            device=group.device,
            quiet=quiet,
            save_seconds=save_seconds,
            plots=plots,
            group=group,
        )
    if not data and group.is_first:
        print_line(
            "no images were given: training on digits, 1,797 handwritten ones that come with scikit-learn. "
            "For yours: vggkit train FOLDER",
            to_stderr=True,
        )
    if preset is not None:
        ProgressLine(quiet=quiet, silent=not group.is_first).log(f"preset {preset}: {find_preset(preset).about}")
    # Errors in the options are reported before torch is imported.
    dataset = open_inputs(config, data=data or "digits", out=out, quiet=quiet, group=group)
    _prepare_process(group)
    from vggkit.workflows.training_run import start_run

    return start_run(
        config,
        dataset,
        out=out,
        device=group.device,
        quiet=quiet,
        save_seconds=save_seconds,
        plots=plots,
        may_be_unstarted=group.restarts > 0,
        group=group,
    )


def _print(run: "TrainingRun", *, as_json: bool) -> None:
    """The result on standard output."""
    if as_json:
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


def _prepare_process(group: ProcessGroup) -> None:
    if choose_device(group.device).type == "cpu":
        keep_freed_memory()  # of this process, which is ours alone
