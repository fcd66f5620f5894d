"""Resuming a training run: the same images and options, from the last saved state."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from vggkit.classifier import Classifier
from vggkit.errors import BadCheckpoint, BadConfiguration, BadData
from vggkit.hardware import choose_device
from vggkit.images.dataset import ImageDataset
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.interruption import handle_signals
from vggkit.models.vgg import VGG
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.resolve_recipe import demand_divisible
from vggkit.weights.classifier_file import read_card
from vggkit.workflows.fit_and_record import OnEpoch, TrainingRun, fit_and_record
from vggkit.workflows.prepare_images import prepare_images
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.run_folder import hold_folder, read_run_state
from vggkit.workflows.several_processes import demand_same_images
from vggkit.workflows.training_run import start_run


def resume_run(
    directory: str | Path,
    data: str | Path | ImageDataset | None = None,
    *,
    epochs: int | None = None,
    device: str = "auto",
    quiet: bool = False,
    save_seconds: float = 300.0,
    plots: PlotEnding | None = None,
    on_epoch: OnEpoch | None = None,
    group: ProcessGroup = SINGLE,
) -> TrainingRun:
    """Continue a run that was stopped or killed, with the same result as without the interruption.

    On the CPU of one machine the weights are equal bit for bit. A run that was killed before its first state starts
    again.

    Args:
        directory: The run's folder.
        data: The same images; None: where the run had them.
        epochs: The new total number of epochs. The schedule of the learning rate is
            stretched to them: the steps to come have the rates that they have in a training of so many epochs.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: No progress on standard error.
        save_seconds: Seconds between two saves of the state within an epoch.
        plots: Also write the figures as such files.
        on_epoch: Called with each epoch when it is over; a true value ends the training.
        group: The processes that train together; the first one has the folder. Their number may be another than
            before, and the result is then the same but for rounding.

    Raises BadCheckpoint where there is no state to continue from or the recipe was changed, BadData where the
    images are not the same any more, and what `start_run` raises.
    """
    directory = Path(directory)
    config, has_state = group.lead(lambda: _read_folder(directory))
    if not has_state:
        return _begin_again(
            directory,
            data,
            config,
            epochs,
            device=device,
            quiet=quiet,
            save_seconds=save_seconds,
            plots=plots,
            on_epoch=on_epoch,
            group=group,
        )
    before = config.found.get("data")
    if not (
        {"machine", "started"} <= config.found.keys()
        and isinstance(before, Mapping)
        and {"fingerprint", "images"} <= before.keys()
    ):
        raise BadCheckpoint(
            f"{directory / 'config.yaml'}: lacks part of its `found` section, which identifies the images and "
            "settings of the run; restore it, or start a new run with --config"
        )
    chosen = choose_device(device)
    card = group.lead(lambda: read_card(directory / "last.ckpt"))
    with torch.device("meta"):
        network = VGG(card.configuration)
    classifier = Classifier(
        network,
        labels=card.labels,
        preprocessing=card.preprocessing,
        task=card.task,
        origin=card.origin,
        provenance=card.provenance,
    )
    caller_settings = CallerSettings.from_dict(config.found.get("by_hand", {}))
    opened = _open_again(directory, data, config).spelled_as(classifier.labels)
    demand_same_images(group, opened, epochs=epochs)
    stretched = epochs is not None and epochs != config.resolved.epochs
    if stretched and epochs is not None:
        config = _change_epochs(directory, config, epochs, done=group.lead(lambda: read_run_state(directory).epoch))
    with ExitStack() as stack:
        stack.enter_context(handle_signals())
        line = stack.enter_context(ProgressLine(quiet=quiet, silent=not group.is_first))
        if group.is_first:
            stack.enter_context(hold_folder(directory))
        if opened.fingerprint() != before["fingerprint"]:
            now = sum(len(split) for split in opened.splits.values())
            raise BadData(
                f"{opened.name}: differs from the images that this run began with: "
                f"{sum(before['images'].values())} readable images then, {now} files now; some are missing, "
                "new or changed. Restore them, name their place (vggkit train PLACE --resume "
                f"{directory}), or start a new run: vggkit train --config {directory / 'config.yaml'}"
            )
        if stretched:
            if group.is_first:
                config.write(directory / "config.yaml")
            line.log(
                f"continuing to {epochs} epochs; the {config.resolved.schedule} learning-rate schedule now covers "
                f"{epochs} epochs"
            )
        images = prepare_images(
            opened,
            classifier,
            config.resolved,
            config=config,
            copy_groups=before.get("ties", ()),  # runs of versions without ties keep their split
            stack=stack,
            line=line,
            group=group,
        )
        number = config.found.get("processes", {}).get("number", 1)
        if number != group.size:
            line.log(
                f"the run began with {number} processes and continues with {group.size}: equal but for roundoff"
            )
            if (size := config.resolved.batch_size) is not None and config.resolved.trainable != "head":
                demand_divisible(size, group.size)
            group = replace(group, began_with=number)
        return fit_and_record(
            classifier,
            images.dataset,
            config,
            images.contents,
            directory=directory,
            device=chosen,
            caller_settings=caller_settings,
            save_seconds=save_seconds,
            plots=plots,
            line=line,
            on_epoch=on_epoch,
            resumed=True,
            group=group,
        )


def _read_folder(directory: Path) -> tuple[RunConfig, bool]:
    """The configuration of a run, and whether it has a state; raises BadCheckpoint and BadConfiguration."""
    if not (directory / "config.yaml").is_file():
        raise BadCheckpoint(f"{directory}: is not a run's folder, it has no config.yaml")
    return RunConfig.read(directory / "config.yaml"), (directory / "last.ckpt").is_file()


def _open_again(directory: Path, data: str | Path | ImageDataset | None, config: RunConfig) -> ImageDataset:
    """The images of a run, at their present place; raises BadData with the command that names another."""
    if isinstance(data, ImageDataset):
        return data
    try:
        return open_dataset(data or config.data, columns=config.columns)
    except BadData as problem:
        if data:
            raise
        raise BadData(
            f"{problem}; the run had its images there. If they have moved, name their place: "
            f"vggkit train PLACE --resume {directory}"
        ) from problem


def _change_epochs(directory: Path, config: RunConfig, epochs: int, *, done: int) -> RunConfig:
    """The configuration of a run that is to have other epochs in all; raises BadConfiguration."""
    if config.resolved.trainable == "head":
        raise BadConfiguration(f"epochs={epochs} is not for {directory}: its last layer was solved directly")
    if epochs <= done:
        raise BadConfiguration(f"epochs must be more than the {done} that {directory} has already; got {epochs}")
    return replace(config, recipe=replace(config.recipe, epochs=epochs))


def _begin_again(
    directory: Path,
    data: str | Path | ImageDataset | None,
    config: RunConfig,
    epochs: int | None,
    *,
    device: str,
    quiet: bool,
    save_seconds: float,
    plots: PlotEnding | None,
    on_epoch: OnEpoch | None,
    group: ProcessGroup,
) -> TrainingRun:
    """Start a run that was killed before it had a state again, in its folder."""
    searched = config.found.get("search")
    # A search whose images alone came from Python is continued with the same images.
    given_again = isinstance(data, ImageDataset) and isinstance(searched, Mapping) and not searched.get("in_python")
    if not config.found or (config.from_python and not given_again):
        why = (
            "it was started from Python with its own weights or images: start it there again"
            if config.from_python
            else f"it did not start: vggkit train --config {directory / 'config.yaml'}"
        )
        raise BadCheckpoint(f"{directory}: has no last.ckpt to continue from, and {why}")
    ProgressLine(quiet=quiet, silent=not group.is_first).log(
        f"{directory} was stopped before its first state: it starts again"
        if not searched
        else f"{directory}: its search continues"
    )
    dataset = _open_again(directory, data, config)
    if epochs is not None:
        config = replace(config, recipe=replace(config.recipe, epochs=epochs))
    return start_run(
        replace(config, found={}),
        dataset,
        out=directory,
        device=device,
        quiet=quiet,
        save_seconds=save_seconds,
        plots=plots,
        may_be_unstarted=True,
        on_epoch=on_epoch,
        group=group,
    )
