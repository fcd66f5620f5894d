"""Checks of a training's inputs before torch is imported: output folder, model, weights and data."""

from pathlib import Path

from vggkit.images.dataset import ImageDataset
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.models.configure import configure
from vggkit.reports.progress import ProgressLine
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.weights.classifier_file import read_card
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.input_conventions import find_convention
from vggkit.weights.locate import locate_model
from vggkit.weights.published_classifiers import find_published_for
from vggkit.workflows.run_config import NetworkChoice, RunConfig
from vggkit.workflows.run_folder import demand_new_folder


def open_inputs(
    config: RunConfig,
    *,
    data: str,
    out: str | Path | None,
    quiet: bool,
    check_network: bool = True,
    group: ProcessGroup = SINGLE,
) -> ImageDataset:
    """The dataset of a configuration, after all else that can be refused early.

    Args:
        config: The options of the training.
        data: The place of the dataset, as it was given; empty: that of the configuration.
        out: The run's folder; None: the next free `runs/<model>-<n>`.
        quiet: No progress on standard error.
        check_network: Whether the network is the one that the configuration names.
        group: The processes that train together; the first one writes the folder, and torchrun may have started
            them again in it.

    Raises BadOutput for the folder, UnknownName and BadConfiguration for the network, BadCheckpoint for the file of
    weights, and BadData for the dataset.
    """
    if group.is_first and not group.restarts:
        demand_new_folder(out)
    if config.teacher is not None:
        read_card(locate_model(config.teacher))
    if check_network:
        _check_network(config.network)
    with ProgressLine(quiet=quiet, silent=not group.is_first) as line:
        line.show(f"opening {data or config.data}", 0, None)
        return open_dataset(data or config.data, columns=config.columns)


def _check_network(choice: NetworkChoice) -> None:
    configure(choice.model, blocks=choice.blocks, head=choice.head, dropout=choice.dropout, until=choice.until)
    find_convention(choice.input_convention)
    if choice.weights is not None and find_published_for(choice.weights, choice.model) is None:
        with open_weights(locate_model(choice.weights)):  # its header; only PyTorch's files import torch
            pass
