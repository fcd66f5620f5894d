"""Learning step by step, epoch after epoch; the best one is kept."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from vggkit.errors import BadImage, BadOutput
from vggkit.evaluation.measure import predict_labelled
from vggkit.evaluation.predictions import Predictions
from vggkit.evaluation.protocols import plan_protocol, prepare_engines
from vggkit.interruption import Signals
from vggkit.reports.run_plots import plot_history
from vggkit.training.batches import weigh_classes
from vggkit.training.checkpoint import Epoch, Progress
from vggkit.training.estimates import describe, estimate_seconds
from vggkit.training.learner import Learner
from vggkit.training.trainer import Callbacks, Training
from vggkit.weights.model import Model
from vggkit.workflows.courses import (
    BEST,
    Course,
    Outcome,
    describe_epoch,
    estimate_memory_of,
    keep,
    list_weights,
    measure,
)
from vggkit.workflows.run_folder import RunTracker
from vggkit.workflows.solved_heads import begin_solved


def learn_by_steps(
    course: Course,
    progress: Progress,
    state: Mapping[str, torch.Tensor] | None,
    *,
    signals: Signals,
    run: RunTracker,
) -> Outcome:
    """Epoch by epoch, from where `progress` and `state` say; the best epoch is kept in `best.safetensors`."""
    classifier, recipe, line = course.classifier, course.recipe, course.line
    train, feature_scale = course.dataset.split("train"), 1.0
    if course.solve_first and progress == Progress():
        if state is None:  # what it begins with, for whoever stops it before the first step
            course.checkpoints.keep(list_weights(classifier.network), progress)
        state = None
        start, feature_scale = begin_solved(course)
        progress = replace(progress, history=(start,))
    elif state is not None:
        feature_scale = float(state.get("feature_scale", torch.tensor(1.0)))
    learner = Learner(
        classifier.network,
        recipe,
        device=course.device,
        class_weights=weigh_classes(train, classifier.labels) if recipe.balance == "weights" else None,
        feature_scale=feature_scale,
        by_hand=course.by_hand,
    )
    if state is not None:
        learner.restore(state)
    else:
        line.log(_estimate(course, learner))
    training = Training(
        classifier,
        train,
        course.dataset.split("val"),
        recipe,
        learner=learner,
        progress=progress,
        checkpoints=course.checkpoints,
        save_seconds=course.save_seconds,
        callbacks=Callbacks(
            on_step=lambda what, done, total: line.show(
                f"epoch {training.progress.epoch} of {recipe.epochs}, {what}", done, total
            ),
            log=line.log,
            find_stop=signals.find_stop,
        ),
    )
    signals.patient = True
    try:
        for epoch in training.epochs():
            history = (*training.progress.history, epoch)
            is_best = find_best(history) == epoch
            if is_best:
                keep(course, learner.kept, epoch=epoch.epoch)
            course.loggers.log(history)
            run.advance(epoch=epoch.epoch, best_epoch=find_best(history).epoch)
            line.log(describe_epoch(epoch, recipe.epochs) + ("  kept" if is_best else ""))
    except (BadImage, BadOutput) as problem:
        if not (course.directory / "last.ckpt").is_file():
            raise
        again = f"the last state is kept; go on with: vggkit train --resume {course.directory}"
        raise type(problem)(f"{problem}; {again}") from problem
    finally:
        signals.patient = False
    history = training.progress.history
    best = find_best(history)
    _take_over(classifier, Model.load(course.directory / BEST))
    plot_history(history, course.directory / "learning_curve.png", best_epoch=best.epoch, title=course.title)
    protocol = plan_protocol("single", classifier.preprocessing)
    engines = prepare_engines(classifier, protocol, device=course.device)

    def find(split: str) -> Predictions:
        predictions, unreadable = predict_labelled(
            classifier,
            course.dataset.split(split),
            protocol,
            engines=engines,
            batch_size=recipe.batch_size or 32,
            on_progress=lambda done, total: line.show(f"measuring on {split}", done, total),
        )
        if unreadable:
            raise BadImage(f"{unreadable[0]}; it could be read when the training began")
        return predictions

    return Outcome(history, best.epoch, measure(course, find, chosen_from=len(history)))


def find_best(history: tuple[Epoch, ...]) -> Epoch:
    """The epoch of the highest validation accuracy, of these of the lowest loss, and of these the first."""
    return max(history, key=lambda epoch: (epoch.val_top1, -epoch.val_loss))


def _estimate(course: Course, learner: Learner) -> str:
    """How long it will be and how much memory it will take, by some trial steps."""
    course.line.show("trying a step", 0, None)
    estimate = estimate_seconds(
        learner,
        course.dataset.split("train"),
        course.dataset.split("val"),
        preprocessing=course.classifier.preprocessing,
    )
    return describe(estimate, memory_bytes=estimate_memory_of(course))


def _take_over(classifier: Model, kept: Model) -> None:
    classifier.network.load_state_dict(kept.network.state_dict())
    classifier.card = kept.card.of_other_weights()
