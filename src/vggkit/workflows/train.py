"""A training run from images to a measured Classifier: check, settle, learn, evaluate, draw."""

import datetime
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import torch

from vggkit.arguments import demand_seconds
from vggkit.errors import BadCheckpoint, BadConfiguration, BadData
from vggkit.evaluation.evaluation import Evaluation
from vggkit.hardware import choose_device, describe_machine, find_peak_memory
from vggkit.images.dataset import ImageDataset
from vggkit.images.sources.open_dataset import open_dataset
from vggkit.interruption import hear_signals
from vggkit.models.vgg import VGG
from vggkit.reports.loggers import open_loggers
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.training.by_hand import SetByHand, bring_to_float32, demand_learnable, left_as_found
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress
from vggkit.training.recipe import Recipe
from vggkit.weights.card import demand_classifier, read_card
from vggkit.weights.model import Model
from vggkit.workflows.check import vet
from vggkit.workflows.courses import BEST, Course
from vggkit.workflows.preparation import begins_with_probe, describe_start, divide_images, resolve_recipe
from vggkit.workflows.rate_search import search_rate
from vggkit.workflows.run_config import RunConfig
from vggkit.workflows.run_folder import fill_folder, hold_folder, list_metrics, new_folder, track_run
from vggkit.workflows.solved_heads import learn_at_once
from vggkit.workflows.steps import learn_by_steps

RESULTS: Final = frozenset({"metrics", "seconds", "peak_memory_bytes", "epoch", "calibration", "ranges"})
"""What a Classifier's provenance says of how a training went."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a training gave."""

    classifier: Model
    """The best epoch's, as in `best.safetensors`."""
    directory: Path
    """The run's folder."""
    history: tuple[Epoch, ...]
    """Every epoch; one alone where the head was solved at once."""
    best_epoch: int
    """The epoch that was kept: highest validation accuracy, then lowest validation loss."""
    evaluation: Evaluation
    """The kept weights on the test split, where the data has one, else on the validation split."""


def train(
    classifier: Model,
    data: str | Path | ImageDataset,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    despite_findings: bool = False,
    quiet: bool = False,
    loggers: Sequence[str] = (),
    find_learning_rate: bool = False,
    save_seconds: float = 300.0,
    plots: PlotEnding | None = None,
    asked: RunConfig | None = None,
) -> TrainingRun:
    """Train a Classifier on labelled images and keep its best epoch.

    Args:
        classifier: From `Classifier.create` or `load`; its network learns in place, in float32, to which weights
            of another precision are converted. What was set on it by hand is kept: parameters that need no
            gradients stay frozen, and modules in evaluation mode in a network in training mode stay in it. In the
            end each parameter and each module is in the state it was found in.
        data: What `open_dataset` takes. Without a validation split, a share of each class is held out.
        recipe: How to learn; None: `Recipe()`.
        out: The run's folder, new or empty; None: the next free `runs/<model>-<n>`.
        device: `auto`, `cpu`, `cuda`, `mps`.
        despite_findings: Train even where `check` finds what makes figures lie, such as a class
            that is missing from validation.
        quiet: No progress on standard error.
        loggers: Who hears of each epoch beside `metrics.csv`: `tensorboard`, `wandb`, `mlflow`.
        find_learning_rate: Look for a learning rate first, with an image of the search.
        save_seconds: How often the middle of an epoch is kept for `resume`.
        plots: Also draw the images of the report as such files, `pdf`, `svg` or `png`, in the folder `plots`.
        asked: What the command line was asked, for `config.yaml`; None: what can be told from here.

    Images are looked at first: unreadable ones are left out, leakage is warned of. SIGTERM and Ctrl-C
    are heard between two steps: the state is kept and `KeyboardInterrupt` raised; `resume` goes on.

    Raises BadData where classes are missing or unknown, BadConfiguration, BadOutput, BadInput when the loss
    diverges.
    """
    demand_classifier(classifier, "train")
    _check_asked(recipe, loggers, plots)
    stated = recipe = recipe or Recipe()
    save_seconds = demand_seconds("save_seconds", save_seconds)
    if find_learning_rate and recipe.learning_rate is not None:
        raise BadConfiguration(
            f"learning_rate={recipe.learning_rate:g} is stated, and --find-learning-rate looks for one; leave "
            "either, in a file by deleting its line"
        )
    opened = data if isinstance(data, ImageDataset) else open_dataset(data)
    opened = opened.spelled_as(classifier.labels)
    chosen = choose_device(device)
    demand_learnable(classifier.network)
    by_hand = SetByHand.of(classifier.network)
    with ExitStack() as stack:
        stack.enter_context(left_as_found(classifier.network))
        stack.enter_context(hear_signals())
        line = stack.enter_context(ProgressLine(quiet=quiet))
        directory = stack.enter_context(new_folder(out, classifier))
        dataset, digests = divide_images(opened, classifier, recipe, stack=stack, line=line)
        findings: list[str] = []

        def find(sentence: str) -> None:
            findings.append(sentence)
            line.log(sentence)

        dataset, contents = vet(dataset, despite_findings=despite_findings, log=find, on_progress=line.show)
        counts = ", ".join(f"{len(split)} {name}" for name, split in dataset.splits.items())
        line.log(f"{classifier.configuration.model} on {opened.name}: {counts}, {len(dataset.labels)} classes")
        line.log(describe_start(classifier))
        recipe, reasons = resolve_recipe(recipe, classifier, dataset, chosen, by_hand=by_hand)
        reasons += filter(None, [by_hand.describe(classifier.network), bring_to_float32(classifier.network)])
        for reason in reasons:
            line.log(reason)
        solve_first = begins_with_probe(classifier, by_hand)
        if dropped := [name for name in ("threshold", "ranges") if getattr(classifier, name)]:
            line.log(f"the {' and the '.join(dropped)} of the Classifier held of its weights as they were: dropped")
        # Figures of another training are not this one's.
        lasting = {name: value for name, value in classifier.provenance.items() if name not in RESULTS}
        classifier.card = replace(classifier.card.of_other_weights(), provenance=lasting)
        if find_learning_rate:
            recipe = search_rate(
                classifier,
                dataset.split("train"),
                recipe,
                device=chosen,
                by_hand=by_hand,
                image=directory / "learning_rate_search.png",
                line=line,
            )
        about: dict[str, Any] = {
            "data": {
                "name": opened.name,
                "fingerprint": opened.fingerprint(),
                "images": {name: len(split) for name, split in dataset.splits.items()},
                "validation_share": recipe.validation_share,
                "seed": recipe.seed,
                "fold": recipe.fold,
                "learnt": digests["train"],
                "held_out": {name: digest for name, digest in digests.items() if name != "train"},
            },
            "findings": findings,
            "machine": describe_machine(chosen),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        asked = replace(
            asked or RunConfig.of(classifier, opened.name),
            recipe=stated,
            find_learning_rate=find_learning_rate,
            despite_findings=despite_findings,
            loggers=tuple(loggers),
        )
        kept = by_hand.to_dict()
        config = asked.record(
            recipe, {**about, **({"by_hand": kept} if kept else {}), **_describe_network(classifier)}
        )
        config.write(directory / "config.yaml")
        course = _plan(
            classifier,
            dataset,
            config,
            contents,
            directory=directory,
            device=chosen,
            save_seconds=save_seconds,
            plots=plots,
            line=line,
            stack=stack,
            by_hand=by_hand,
            solve_first=solve_first,
        )
        return _follow(course, Progress(), None)


def resume(
    directory: str | Path,
    data: str | Path | ImageDataset | None = None,
    *,
    device: str = "auto",
    quiet: bool = False,
    save_seconds: float = 300.0,
    plots: PlotEnding | None = None,
) -> TrainingRun:
    """Go on with a run that was stopped or killed, to the very weights it would have had.

    On one machine's CPU these are equal bit for bit.

    Args:
        directory: The run's folder.
        data: The same images; None: where the run had them.
        device: `auto`, `cpu`, `cuda`, `mps`.
        quiet: No progress on standard error.
        save_seconds: How often the middle of an epoch is kept.
        plots: As in `train`.

    Raises BadCheckpoint where there is nothing to go on from or the recipe was changed, BadData where the
    images are not the same any more, and what `train` raises.
    """
    directory = Path(directory)
    save_seconds = demand_seconds("save_seconds", save_seconds)
    if not (directory / "config.yaml").is_file():
        raise BadCheckpoint(f"{directory}: is not a run's folder, it has no config.yaml")
    if not (directory / "last.ckpt").is_file():
        raise BadCheckpoint(
            f"{directory}: has no last.ckpt; it was stopped before its first step. Begin it again: "
            f"vggkit train --config {directory / 'config.yaml'}"
        )
    config = RunConfig.read(directory / "config.yaml")
    before = config.found.get("data")
    if not (
        {"machine", "started"} <= config.found.keys()
        and isinstance(before, Mapping)
        and {"fingerprint", "images"} <= before.keys()
    ):
        raise BadCheckpoint(
            f"{directory / 'config.yaml'}: its section found is not whole, by which --resume knows the run; "
            "put it back, or begin a new run with --config"
        )
    card, recipe, chosen = read_card(directory / "last.ckpt"), config.settled, choose_device(device)
    with torch.device("meta"):
        network = VGG(card.configuration)
    classifier = Model(
        network,
        labels=card.labels,
        preprocessing=card.preprocessing,
        origin=card.origin,
        provenance=card.provenance,
    )
    by_hand = SetByHand.from_dict(config.found.get("by_hand", {}))
    opened = data if isinstance(data, ImageDataset) else open_dataset(data or config.data, columns=config.columns)
    opened = opened.spelled_as(classifier.labels)
    with ExitStack() as stack:
        stack.enter_context(hear_signals())
        line = stack.enter_context(ProgressLine(quiet=quiet))
        stack.enter_context(hold_folder(directory))
        if opened.fingerprint() != before["fingerprint"]:
            now = sum(len(split) for split in opened.splits.values())
            raise BadData(
                f"{opened.name}: is not what this run was begun with: {sum(before['pictures'].values())} readable "
                f"images then, {now} files now, and some are gone, new or others. Put them back as they were, or "
                f"begin a new run: vggkit train --config {directory / 'config.yaml'}"
            )
        dataset, _ = divide_images(opened, classifier, recipe, stack=stack, line=line)
        dataset, contents = vet(
            dataset, despite_findings=config.despite_findings, log=line.log, on_progress=line.show
        )
        course = _plan(
            classifier,
            dataset,
            config,
            contents,
            directory=directory,
            device=chosen,
            save_seconds=save_seconds,
            plots=plots,
            line=line,
            stack=stack,
            by_hand=by_hand,
            solve_first=begins_with_probe(classifier, by_hand),
        )
        state, progress = course.checkpoints.read_last()
        start = {key.removeprefix("network/"): value for key, value in state.items() if key.startswith("network/")}
        network.load_state_dict(start, assign=True)
        by_hand.restore(network.requires_grad_(True))
        line.log(f"going on with {directory}: epoch {progress.epoch}, after {progress.batches} of its batches")
        return _follow(course, progress, state)


def _check_asked(recipe: object, loggers: object, plots: object) -> None:
    """Raise BadConfiguration for what would be noticed late, or misread."""
    if recipe is not None and not isinstance(recipe, Recipe):
        raise BadConfiguration(f"a recipe is a vggkit.Recipe, such as Recipe(epochs=3); got {recipe!r:.100}")
    if isinstance(loggers, str):
        raise BadConfiguration(f"loggers must be a list of names; write loggers=[{loggers!r}]")
    if plots is not None and plots not in get_args(PlotEnding):
        raise BadConfiguration(f"plots must be one of {', '.join(get_args(PlotEnding))}; got {plots!r}")


def _identify(config: RunConfig, contents: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What a run's states belong to; one that is not the same to the last bit is another run."""
    return {
        "recipe": config.settled.to_dict(),
        "network": asdict(config.network),
        "by_hand": dict(config.found.get("by_hand", {})),
        "images": dict(contents),
    }


def _plan(
    classifier: Model,
    dataset: ImageDataset,
    config: RunConfig,
    contents: Mapping[str, str],
    *,
    directory: Path,
    device: torch.device,
    save_seconds: float,
    plots: PlotEnding | None,
    line: ProgressLine,
    stack: ExitStack,
    by_hand: SetByHand,
    solve_first: bool,
) -> Course:
    """The course of a run, new or old: what it is stands in its configuration."""
    recipe = config.settled
    return Course(
        classifier=classifier,
        dataset=dataset,
        recipe=recipe,
        directory=directory,
        device=device,
        checkpoints=Checkpoints(directory, card=classifier.card, identity=_identify(config, contents)),
        provenance={
            **{
                name: config.found[name]
                for name in ("data", "findings", "machine", "started")
                if name in config.found
            },
            "recipe": recipe.to_dict(),
        },
        line=line,
        loggers=stack.enter_context(
            open_loggers(config.loggers, directory, config=recipe.to_dict(), title=directory.name, log=line.log)
        ),
        save_seconds=save_seconds,
        plots=plots,
        by_hand=by_hand,
        solve_first=solve_first,
    )


def _follow(course: Course, progress: Progress, state: Mapping[str, torch.Tensor] | None) -> TrainingRun:
    """Learn, and write down what came of it; whoever stops it is told how to go on."""
    started, classifier = time.monotonic(), course.classifier
    earlier = sum(epoch.seconds for epoch in progress.history) + progress.seconds
    kept = course.directory / "last.ckpt"
    with (
        hear_signals(lambda: f"vggkit train --resume {course.directory}" if kept.is_file() else "") as signals,
        track_run(course.directory, epochs=1 if course.recipe.trainable == "head" else course.recipe.epochs) as run,
    ):
        if course.recipe.trainable == "head":
            outcome = learn_at_once(course)
        else:
            outcome = learn_by_steps(course, progress, state, signals=signals, run=run)
        run.advance(epoch=outcome.history[-1].epoch, best_epoch=outcome.best_epoch)
        classifier.save(
            course.directory / BEST,
            provenance={
                "metrics": list_metrics(outcome.evaluation, course.measured, outcome.best_epoch),
                "seconds": round(earlier + time.monotonic() - started, 1),
                "peak_memory_bytes": find_peak_memory(),
            },
        )
        course.line.show("writing the report", 0, None)
        fill_folder(course, outcome)
    return TrainingRun(classifier, course.directory, outcome.history, outcome.best_epoch, outcome.evaluation)


def _describe_network(classifier: Model) -> dict[str, Any]:
    return {
        "configuration": classifier.configuration.to_dict(),
        "preprocessing": classifier.preprocessing.to_dict(),
        "labels": list(classifier.labels),
    }
