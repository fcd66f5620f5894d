"""A training run: build the classifier, check the data, resolve the recipe, fit, evaluate, write the run's folder.

`start_run` starts one, and `resume_run` in the module of that name continues one; both end in `fit_and_record`.
"""

import datetime
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vggkit.classifier import Classifier
from vggkit.errors import BadConfiguration
from vggkit.hardware import choose_device, computes_bf16, describe_machine
from vggkit.images.dataset import ImageDataset
from vggkit.interruption import handle_signals
from vggkit.models.configuration import Configuration
from vggkit.models.configure import configure
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.training.caller_settings import CallerSettings, bring_to_float32, demand_learnable, left_as_found
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.distributed.split_head import check_split
from vggkit.training.estimates import choose_batch_size
from vggkit.training.recipe import Recipe
from vggkit.training.resolve_recipe import Situation, resolve_recipe
from vggkit.weights.model import Model
from vggkit.weights.pretrained import fetch
from vggkit.weights.published_classifiers import find_published_for
from vggkit.workflows.build_classifier import build_classifier, describe_start
from vggkit.workflows.fit_and_record import OnEpoch, TrainingRun, fit_and_record
from vggkit.workflows.prepare_images import prepare_images
from vggkit.workflows.run_config import NetworkChoice, RunConfig
from vggkit.workflows.run_folder import new_folder
from vggkit.workflows.search_before_training import search_rate, search_recipe
from vggkit.workflows.several_processes import demand_same_inputs, name_launch

RESULTS: Final = frozenset(
    {"metrics", "seconds", "peak_memory_bytes", "epoch", "calibration", "ranges", "linear_probe"}
)
"""Entries of a Classifier's provenance that describe a training."""


def start_run(
    config: RunConfig,
    dataset: ImageDataset,
    *,
    model: Model | Configuration | None = None,
    state: Mapping[str, Tensor] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    save_seconds: float = 300.0,
    plots: PlotEnding | None = None,
    on_epoch: OnEpoch | None = None,
    may_be_unstarted: bool = False,
    group: ProcessGroup = SINGLE,
) -> TrainingRun:
    """Train from the start to the end; see `vggkit.train`.

    Args:
        config: The options.
        dataset: The images.
        model: A Model whose network is trained in place, or a Configuration in place of the one that `config`
            names.
        state: A state dict in memory to start from, in place of the file that `config` names.
        out: The run's folder, new or empty; None: the next free `runs/<model>-<n>`.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: No progress on standard error.
        save_seconds: Seconds between two saves of the state within an epoch.
        plots: Also write the figures as such files.
        on_epoch: Called with each epoch when it is over; a true value ends the training.
        may_be_unstarted: Whether `out` may be the folder of a run that was killed before it had a state.
        group: The processes that train together; the first one writes the folder.
    """
    if config.find_learning_rate and config.recipe.learning_rate is not None:
        raise BadConfiguration(
            f"learning_rate={config.recipe.learning_rate:g} is given, and find_learning_rate searches for one; "
            "leave out either, in a file by deleting its line"
        )
    if config.search and group.size > 1:
        raise BadConfiguration(
            "search is of one process; search alone, and train the recipe that it chose in several"
        )
    chosen = choose_device(device)
    if isinstance(model, Model):
        classifier = model
    else:
        classifier = _build(
            dataset,
            config.network,
            seed=config.recipe.seed,
            model=model,
            state=state,
            quiet=quiet or not group.is_first,
        )
    dataset = dataset.spelled_as(classifier.labels)
    demand_same_inputs(group, classifier, dataset, config)
    demand_learnable(classifier.network)
    caller_settings = CallerSettings.of(classifier.network)
    with ExitStack() as stack:
        stack.enter_context(left_as_found(classifier.network))
        stack.enter_context(handle_signals())
        line = stack.enter_context(ProgressLine(quiet=quiet, silent=not group.is_first))
        directory = group.lead(
            lambda: stack.enter_context(new_folder(out, classifier, may_be_unstarted=may_be_unstarted))
        )
        images = prepare_images(
            dataset, classifier, config.recipe, config=config, stack=stack, line=line, group=group
        )
        divided = images.dataset
        counts = {name: len(split) for name, split in divided.splits.items()}
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        line.log(f"{classifier.configuration.model} on {dataset.name}: {listed}, {len(divided.labels)} classes")
        for sentence in dataset.notes:
            line.log(sentence)
        line.log(describe_start(classifier))
        count = len(divided.split("train"))
        recipe, reasons = group.lead(
            lambda: _resolve(config.recipe, classifier, count, chosen, caller_settings, processes=group.size)
        )
        reasons += filter(
            None, [caller_settings.describe(classifier.network), bring_to_float32(classifier.network)]
        )
        for reason in reasons:
            line.log(reason)
        fitted = ("threshold", "thresholds", "activation_ranges")
        if dropped := [name for name in fitted if getattr(classifier, name)]:
            line.log(f"the {' and the '.join(dropped)} of the Classifier belonged to its earlier weights: dropped")
        # Metrics of an earlier training do not apply to this one.
        lasting = {name: value for name, value in classifier.provenance.items() if name not in RESULTS}
        classifier.card = replace(classifier.card.of_other_weights(), provenance=lasting)
        if config.find_learning_rate:
            recipe = search_rate(
                classifier, divided, recipe, chosen, caller_settings, directory=directory, line=line, group=group
            )
        recorded = caller_settings.to_dict()
        found: dict[str, Any] = {
            "data": {
                "name": dataset.name,
                "fingerprint": dataset.fingerprint(),
                "images": counts,
                "validation_share": recipe.validation_share,
                "seed": recipe.seed,
                "fold": recipe.fold,
                "ties": [list(group) for group in images.copy_groups],
                "learnt": images.digests["train"],
                "held_out": {name: digest for name, digest in images.digests.items() if name != "train"},
            },
            "findings": list(images.findings),
            "machine": describe_machine(chosen),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **({"by_hand": recorded} if recorded else {}),
            **({"processes": {"number": group.size, "launch": name_launch()}} if group.size > 1 else {}),
            "configuration": classifier.configuration.to_dict(),
            "preprocessing": classifier.preprocessing.to_dict(),
            **({} if classifier.task == "single-label" else {"task": classifier.task}),
            "labels": list(classifier.labels),
        }
        if config.search:
            found["search"] = {"trials": config.search, "in_python": model is not None or state is not None}
            config.record(recipe, found).write(directory / "config.yaml")  # so that it can be continued
            result = search_recipe(
                classifier,
                divided,
                config,
                lambda given: _resolve(given, classifier, count, chosen, caller_settings, processes=1)[0],
                images.contents,
                directory=directory,
                device=chosen,
                caller_settings=caller_settings,
                save_seconds=save_seconds,
                line=line,
            )
            recipe = result.chosen.recipe
            found["search"]["chosen"] = result.chosen.candidate.number
        config = config.record(recipe, found)
        if group.is_first:
            config.write(directory / "config.yaml")
        return fit_and_record(
            classifier,
            divided,
            config,
            images.contents,
            directory=directory,
            device=chosen,
            caller_settings=caller_settings,
            save_seconds=save_seconds,
            plots=plots,
            line=line,
            on_epoch=on_epoch,
            group=group,
        )


def _build(
    dataset: ImageDataset,
    choice: NetworkChoice,
    *,
    seed: int,
    model: Configuration | None,
    state: Mapping[str, Tensor] | None,
    quiet: bool,
) -> Classifier:
    """The Classifier of a configuration; published weights are downloaded first, with progress."""
    published = find_published_for(choice.weights, choice.model)
    if published is not None:
        configure(choice.model, head=choice.head, dropout=choice.dropout, until=choice.until)
        found = fetch(published.model, progress=not quiet)
        ProgressLine(quiet=quiet).log(
            f"weights: {found.source} ({found.published.licence}; {found.published.terms})"
        )
    return Classifier.of(
        build_classifier(
            dataset,
            choice.model if model is None else model,
            blocks=choice.blocks,
            weights=choice.weights if state is None else state,
            image_size=choice.image_size,
            fit_mode=choice.fit_mode,
            reduced_decoding=choice.reduced_decoding,
            in_channels=choice.in_channels,
            mean=choice.mean,
            std=choice.std,
            head=choice.head,
            dropout=choice.dropout,
            until=choice.until,
            initialization=choice.initialization,
            input_convention=choice.input_convention,
            allow_partial=choice.allow_partial,
            seed=seed,
        )
    )


def _resolve(
    recipe: Recipe,
    classifier: Model,
    images: int,
    device: torch.device,
    caller_settings: CallerSettings,
    *,
    processes: int,
) -> tuple[Recipe, list[str]]:
    """The recipe with every choice made for this network, data and machine, and a sentence on each."""
    configuration, side = classifier.configuration, classifier.preprocessing.crop_pixels
    situation = Situation(
        configuration=configuration,
        preprocessing=classifier.preprocessing,
        origin=classifier.origin,
        images=images,
        task=classifier.task,
        bf16=computes_bf16(device),
        frozen=frozenset(caller_settings.frozen),
        processes=processes,
    )
    if recipe.split_head and processes > 1:
        check_split(configuration, processes)

    def choose(known: Recipe) -> tuple[int, str]:
        size, reason = choose_batch_size(
            configuration, known, crop_pixels=side, images=images // processes, device=device
        )
        return size * processes, reason

    return resolve_recipe(recipe, situation, choose_batch_size=choose)
