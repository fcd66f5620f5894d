"""Fit, evaluate and write the run's folder: the part that new and resumed trainings share."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from vggkit.classifier import Classifier
from vggkit.errors import BadImage, BadOutput
from vggkit.evaluation.evaluation import Evaluation
from vggkit.hardware import find_peak_memory
from vggkit.images.dataset import ImageDataset
from vggkit.interruption import handle_signals
from vggkit.models.vgg import VGG
from vggkit.notebook import write_html
from vggkit.reports.evaluation_page import suggest_steps
from vggkit.reports.loggers import open_loggers
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.training.callbacks import Callbacks, find_best
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.checkpoint import Checkpoints, Epoch, Progress
from vggkit.training.distillation import open_teacher
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.recipe import Monitor, Recipe
from vggkit.training.trainer import State, Trainer
from vggkit.weights.card import Card
from vggkit.weights.model import Model
from vggkit.workflows.check import list_stated
from vggkit.workflows.evaluate_best import evaluate_best
from vggkit.workflows.explain_errors import explain_errors
from vggkit.workflows.run_config import NetworkChoice, RunConfig
from vggkit.workflows.run_folder import fill_folder, list_metrics, track_run

OnEpoch = Callable[[Epoch], object]
"""Called with each epoch when it is over; a true value ends the training."""
BEST: Final = "best.safetensors"
"""The Classifier of the best epoch, in the run's folder."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The result of a training."""

    classifier: Classifier
    """With the best epoch's weights, as in `best.safetensors`."""
    directory: Path
    """The run's folder."""
    history: tuple[Epoch, ...]
    """Every epoch; one alone where the last layer was solved directly."""
    best_epoch: int
    """The number of the best epoch, by the recipe's `monitor`."""
    evaluation: Evaluation
    """Of the best epoch's weights, on the test split where the data has one, else on the validation split."""

    def __repr__(self) -> str:
        best = f"epoch {self.best_epoch} of {self.history[-1].epoch} is the best"
        return f"TrainingRun({str(self.directory)!r}, {best}, {self.evaluation!r})"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{epoch.epoch}{' (best)' if epoch.epoch == self.best_epoch else ''}",
                *(f"{value:.4f}" for value in (epoch.train_loss, epoch.val_loss)),
                f"{epoch.val_figure:.4f}",
                f"{epoch.seconds:.1f} s",
            )
            for epoch in self.history
        ]
        header = ("epoch", "train loss", "val loss", self.history[0].figure, "time")
        history = write_html(f"{self.directory}: {self.classifier!r}", rows, header=header)
        return history + self.evaluation._repr_html_()


def fit_and_record(
    classifier: Model,
    dataset: ImageDataset,
    config: RunConfig,
    contents: Mapping[str, str],
    *,
    directory: Path,
    device: torch.device,
    caller_settings: CallerSettings,
    save_seconds: float,
    plots: PlotEnding | None,
    line: ProgressLine,
    on_epoch: OnEpoch | None = None,
    resumed: bool = False,
    group: ProcessGroup = SINGLE,
) -> TrainingRun:
    """Fit, evaluate and write the results; if stopped, print the command that continues.

    Of several processes each trains and evaluates its part, and the first one writes.
    """
    recipe, last = config.resolved, directory / "last.ckpt"
    checkpoints = _open_checkpoints(classifier, config, contents, directory)
    state, progress = _restore(classifier, checkpoints, caller_settings, group) if resumed else (None, Progress())
    if resumed:
        line.log(f"resuming {directory} in epoch {progress.epoch}, after {progress.batches} of its batches")
    noted = {
        name: config.found[name] for name in ("data", "findings", "machine", "started") if name in config.found
    }
    provenance = {**classifier.provenance, **noted, "recipe": recipe.to_dict()}
    started = time.monotonic()
    earlier = sum(epoch.seconds for epoch in progress.history) + progress.seconds
    epochs = 1 if recipe.trainable == "head" else recipe.epochs
    teacher = None if config.teacher is None else open_teacher(config.teacher, classifier, recipe, device=device)
    with ExitStack() as stack:
        signals = stack.enter_context(
            handle_signals(lambda: f"vggkit train --resume {directory}" if last.is_file() else "")
        )
        if group.is_first:
            tracker = stack.enter_context(track_run(directory, epochs=epochs))
            loggers = stack.enter_context(
                open_loggers(config.loggers, directory, config=recipe.to_dict(), title=directory.name, log=line.log)
            )

        def record(history: tuple[Epoch, ...], network: VGG) -> None:
            epoch, best = history[-1], find_best(history, recipe.monitor)
            if epoch == best:
                Model(
                    network,
                    labels=classifier.labels,
                    preprocessing=classifier.preprocessing,
                    task=classifier.task,
                    origin=replace(classifier.origin, kind="trained", random_keys=()),
                    provenance={**provenance, "epoch": epoch.epoch},
                ).save(directory / BEST)
            loggers.log(history)
            tracker.advance(epoch=epoch.epoch, best_epoch=best.epoch)
            line.log(
                _describe_epoch(epoch, epochs, monitor=recipe.monitor)
                + ("  best" if epoch == best and epochs > 1 else "")
            )

        units = {"train": "training batches", "validate": "validation images"}

        def show(what: str, done: int, total: int | None) -> None:
            if what in units:
                what = f"epoch {trainer.progress.epoch} of {epochs}, {units[what]}"
            line.show(what, done, total)

        trainer = Trainer(
            classifier,
            dataset.splits,
            recipe,
            device=device,
            checkpoints=checkpoints,
            caller_settings=caller_settings,
            teacher=teacher,
            save_seconds=save_seconds,
            callbacks=Callbacks(
                on_step=show,
                on_epoch=record,
                should_stop=on_epoch or (lambda epoch: False),
                log=line.log,
                warn=line.warn,
                signals=signals,
            ),
            group=group,
        )
        try:
            result = trainer.fit(state, progress=progress)
        except (BadImage, BadOutput) as problem:
            if recipe.trainable == "head" or not last.is_file():
                raise
            again = f"the last state is saved; resume with: vggkit train --resume {directory}"
            raise type(problem)(f"{problem}; {again}") from problem
        weights, card = group.lead_tensors(lambda: _load_best(directory))
        classifier.network.load_state_dict(weights)
        classifier.card = card.of_other_weights()
        evaluation = evaluate_best(classifier, dataset, recipe, result, device=device, line=line, group=group)
        held = classifier if isinstance(classifier, Classifier) else Classifier.of(classifier)
        if not group.is_first:
            return TrainingRun(held, directory, result.history, result.best_epoch, evaluation)
        classifier.save(
            directory / BEST,
            provenance={
                "metrics": list_metrics(evaluation, evaluation.split, result.best_epoch),
                "seconds": round(earlier + time.monotonic() - started, 1),
                "peak_memory_bytes": find_peak_memory(),
                **({} if result.probe is None else {"linear_probe": result.probe.to_provenance()}),
            },
        )
        line.show("writing the report", 0, None)
        images = dataset.split(evaluation.split)
        fill_folder(
            directory,
            evaluation,
            images=images,
            history=result.history,
            best_epoch=result.best_epoch,
            provenance=classifier.provenance,
            steps=suggest_steps(
                directory,
                dataset.name,
                is_head_alone=result.probe is not None,
                task=classifier.task,
                options=list_stated(config.columns),
            ),
            plots=plots,
            solution=None if result.probe is None else result.probe.solution,
            explain=partial(explain_errors, classifier, evaluation.predictions, images, device=str(device)),
        )
    return TrainingRun(held, directory, result.history, result.best_epoch, evaluation)


def _open_checkpoints(
    classifier: Model, config: RunConfig, contents: Mapping[str, str], directory: Path
) -> Checkpoints:
    """The states of the run."""
    # What the states of a run belong to; one that is not the same to the last bit is another run's.
    identity = {
        "recipe": config.resolved.to_dict(),
        "network": asdict(config.network),
        "by_hand": dict(config.found.get("by_hand", {})),
        "images": dict(contents),
        "teacher": {"place": config.teacher},
    }
    return Checkpoints(
        directory,
        card=classifier.card,
        identity=identity,
        usual={"recipe": Recipe().to_dict(), "network": asdict(NetworkChoice()), "teacher": {"place": None}},
        changeable={"recipe": {"epochs"}},
    )


def _load_best(directory: Path) -> tuple[State, Card]:
    best = Model.load(directory / BEST)
    return best.network.state_dict(), best.card


def _restore(
    classifier: Model, checkpoints: Checkpoints, caller_settings: CallerSettings, group: ProcessGroup
) -> tuple[State, Progress]:
    """The last state of a run, with its weights in the network; raises BadCheckpoint."""
    state, progress = group.lead_tensors(checkpoints.read_last)
    start = {key.removeprefix("network/"): value for key, value in state.items() if key.startswith("network/")}
    classifier.network.load_state_dict(start, assign=True)
    caller_settings.restore(classifier.network.requires_grad_(True))
    return state, progress


def _describe_epoch(epoch: Epoch, epochs: int, *, monitor: Monitor) -> str:
    macro_f1 = f"val macro F1 {epoch.val_macro_f1:.4f}  " if monitor == "macro-f1" else ""
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}  train loss {epoch.train_loss:.4f}  "
        f"val loss {epoch.val_loss:.4f}  {epoch.figure} {epoch.val_figure:.4f}  {macro_f1}{epoch.seconds:5.1f} s"
    )
