"""The two ways a network learns: step by step, or its head at once, on features computed once."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from vggkit.errors import BadImage, BadOutput
from vggkit.hardware import keep_freed_memory
from vggkit.images.pictures import PictureSet, identify_pictures
from vggkit.networks.classifier import Classifier
from vggkit.networks.vgg import VGG
from vggkit.reports.loggers import Loggers
from vggkit.reports.plots import PlotEnding
from vggkit.reports.progress import ProgressLine
from vggkit.reports.run_plots import plot_history, plot_strengths
from vggkit.tasks.evaluation.answers import Answers
from vggkit.tasks.evaluation.calibration import fit_temperature
from vggkit.tasks.evaluation.figures import Evaluation
from vggkit.tasks.evaluation.measuring import CALIBRATED_HERE, ask
from vggkit.tasks.evaluation.protocols import plan_protocol
from vggkit.tasks.evaluation.scoring import score
from vggkit.tasks.training.batches import weigh_classes
from vggkit.tasks.training.checkpointing import Checkpoints, Epoch, Progress
from vggkit.tasks.training.features import Features, extract_features
from vggkit.tasks.training.heads import HeadSolution, solve_head
from vggkit.tasks.training.learner import Learner
from vggkit.tasks.training.loop import Listeners, Training
from vggkit.tasks.training.recipe import Recipe
from vggkit.tasks.training.sizing import describe, estimate_memory, estimate_seconds, spell_duration
from vggkit.workflows.interruptions import Signals

BEST: Final = "best.safetensors"
"""The Classifier of the epoch that is kept, in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A training that is ready to begin, or to go on."""

    classifier: Classifier
    """Its network learns."""
    parts: PictureSet
    """Readable pictures in `train`, `val` and perhaps `test`."""
    recipe: Recipe
    """Settled."""
    directory: Path
    """The run's folder."""
    device: torch.device
    """Where to learn."""
    checkpoints: Checkpoints
    """The run's states."""
    provenance: Mapping[str, Any]
    """What the Classifier's file is to say of the run."""
    line: ProgressLine
    """Shows what goes on."""
    loggers: Loggers
    """Hear of each epoch."""
    seconds_between: float
    """How often the middle of an epoch is kept."""
    plots: PlotEnding | None
    """What files the report's pictures are drawn to besides."""
    solve_first: bool
    """Whether learning by steps begins with the head solved: a random one would bend given weights before it
    knows anything (Kumar et al., 2022, "Fine-tuning can distort pretrained features")."""

    @property
    def measured(self) -> str:
        """The part that the headline is measured on."""
        return "test" if "test" in self.parts.splits else "val"

    @property
    def title(self) -> str:
        """The run in a line."""
        return f"{self.classifier.configuration.model} on {self.parts.name}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a course led to; the Classifier holds the weights that were kept."""

    history: tuple[Epoch, ...]
    """Every epoch."""
    best_epoch: int
    """The one that was kept: highest validation accuracy, then lowest validation loss."""
    evaluation: Evaluation
    """The kept weights on the part that is measured."""


def learn_by_steps(
    course: Course, progress: Progress, state: Mapping[str, torch.Tensor] | None, *, signals: Signals
) -> Outcome:
    """Epoch by epoch, from where `progress` and `state` say; the best epoch is kept in `best.safetensors`."""
    classifier, recipe, line = course.classifier, course.recipe, course.line
    if course.device.type == "cpu":
        keep_freed_memory()
    train, feature_scale = course.parts.part("train"), 1.0
    if course.solve_first and progress == Progress():
        if state is None:  # what it begins with, for whoever stops it before the first step
            course.checkpoints.keep(_list_weights(classifier.network), progress)
        state = None
        start, feature_scale = _begin_solved(course)
        progress = replace(progress, history=(start,))
    elif state is not None:
        feature_scale = float(state.get("feature_scale", torch.tensor(1.0)))
    learner = Learner(
        classifier.network,
        recipe,
        device=course.device,
        class_weights=weigh_classes(train, classifier.labels) if recipe.balance == "weights" else None,
        feature_scale=feature_scale,
    )
    if state is not None:
        learner.restore(state)
    else:
        line.say(_estimate(course, learner))
    training = Training(
        classifier,
        train,
        course.parts.part("val"),
        recipe,
        learner=learner,
        progress=progress,
        checkpoints=course.checkpoints,
        seconds_between=course.seconds_between,
        listeners=Listeners(
            on_step=lambda what, done, total: line.show(
                f"epoch {training.progress.epoch} of {recipe.epochs}, {what}", done, total
            ),
            say=line.say,
            find_stop=signals.find_stop,
        ),
    )
    signals.patient = True
    try:
        for epoch in training.epochs():
            history = (*training.progress.history, epoch)
            is_best = find_best(history) == epoch
            if is_best:
                _keep(course, learner.kept, epoch=epoch.epoch)
            course.loggers.log(history)
            line.say(_describe_epoch(epoch, recipe.epochs) + ("  kept" if is_best else ""))
    except (BadImage, BadOutput) as problem:
        if not (course.directory / "last.ckpt").is_file():
            raise
        again = f"the last state is kept; go on with: vggkit train --resume {course.directory}"
        raise type(problem)(f"{problem}; {again}") from problem
    finally:
        signals.patient = False
    history = training.progress.history
    best = find_best(history)
    _take_over(classifier, Classifier.load(course.directory / BEST))
    plot_history(history, course.directory / "learning_curve.png", best_epoch=best.epoch, title=course.title)
    protocol = plan_protocol("single", classifier.preprocessing)

    def find(part: str) -> Answers:
        answers, unreadable = ask(
            classifier,
            course.parts.part(part),
            protocol,
            device=course.device,
            batch_size=recipe.batch_size or 32,
            on_progress=lambda done, total: line.show(f"measuring on {part}", done, total),
        )
        if unreadable:
            raise BadImage(f"{unreadable[0]}; it could be read when the training began")
        return answers

    return Outcome(history, best.epoch, _measure(course, find, chosen_from=len(history)))


def learn_at_once(course: Course) -> Outcome:
    """The last layer alone: features of every picture once, and the best linear classifier on them."""
    classifier, line = course.classifier, course.line
    started = time.monotonic()
    # All that it begins with; what is computed is kept with the features.
    course.checkpoints.keep(_list_weights(classifier.network), Progress())
    line.say(describe(None, memory_bytes=_estimate_memory(course)))
    found, solution = _solve(course, [part for part in course.parts.splits if part in ("train", "val", "test")])
    answers = _answer(course, found, solution)
    epoch = _describe_solution(answers, epoch=1, since=started)
    course.loggers.log((epoch,))
    line.say(_describe_epoch(epoch, 1))
    classifier.card = _keep(course, classifier.network, epoch=1).card
    course.checkpoints.close()
    plot_strengths(solution, course.directory / "regularisation.png", title=course.title)
    return Outcome((epoch,), 1, _measure(course, answers.__getitem__, chosen_from=1))


def _begin_solved(course: Course) -> tuple[Epoch, float]:
    """The head solved and kept as epoch 0; gives that, and the root mean square of what the head reads."""
    course.line.say("the head begins solved on the given weights' features, and the layers below follow")
    begun = time.monotonic()
    found, solution = _solve(course, ["train", "val"])
    start = _describe_solution(_answer(course, found, solution), epoch=0, since=begun)
    _keep(course, course.classifier.network, epoch=0)
    course.loggers.log((start,))
    course.line.say(_describe_epoch(start, course.recipe.epochs) + "  kept")
    return start, float(np.sqrt(np.mean(np.square(found["train"].rows, dtype=np.float64))))


def _solve(course: Course, parts: Sequence[str]) -> tuple[dict[str, Features], HeadSolution]:
    """Features of some parts, and the last layer solved on those of `train` and put into the network."""
    classifier, recipe, line = course.classifier, course.recipe, course.line
    found = {
        part: extract_features(
            classifier,
            course.parts.splits[part],
            recipe=recipe,
            device=course.device,
            # What figures are measured on is computed as `evaluate` does.
            precision="auto" if part == "train" else "fp32",
            views=recipe.views if part == "train" else 1,
            on_progress=_Pace(line, part).show,
            say=line.say,
        )
        for part in parts
    }
    train = found["train"]
    solution = solve_head(
        train.rows,
        train.targets,
        classes=len(classifier.labels),
        groups=train.groups,
        class_weights=weigh_classes(course.parts.part("train"), classifier.labels)
        if recipe.balance == "weights"
        else None,
        label_smoothing=recipe.label_smoothing,
        seed=recipe.seed,
        on_progress=lambda done, total: line.show("solving the head", done, total),
    )
    for sentence in solution.describe():
        line.say(sentence)
    last = classifier.network.classifier[-1]
    assert isinstance(last, torch.nn.Linear), "a last layer of two factors is not solved"
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(solution.weight))
        last.bias.copy_(torch.from_numpy(solution.bias))
    return found, solution


def _answer(course: Course, found: Mapping[str, Features], solution: HeadSolution) -> dict[str, Answers]:
    """What the solved head makes of the features of each part; of `train` there may be several rows a picture."""
    return {
        part: Answers.of(
            features.rows @ solution.weight.T + solution.bias,
            features.targets,
            labels=course.classifier.labels,
            paths=None if part == "train" else [picture.path for picture in course.parts.part(part)],
        )
        for part, features in found.items()
    }


def _describe_solution(answers: Mapping[str, Answers], *, epoch: int, since: float) -> Epoch:
    """A solved head as an epoch."""
    return Epoch(
        epoch=epoch,
        learning_rate=0.0,
        train_loss=float(answers["train"].losses.mean()),
        val_loss=float(answers["val"].losses.mean()),
        val_top1=float(answers["val"].right.mean()),
        seconds=time.monotonic() - since,
    )


def _measure(course: Course, find: Callable[[str], Answers], *, chosen_from: int) -> Evaluation:
    """The headline, with probabilities made true on the validation pictures first.

    Args:
        course: Its Classifier has the weights that were kept.
        find: The answers of a part, at a temperature of 1.
        chosen_from: Epochs that the kept one is the best of.
    """
    classifier, part = course.classifier, course.measured
    # All that is asked is asked before the Classifier is told how sure to be.
    val = find("val")
    headline = val if part == "val" else find(part)
    fit = fit_temperature(val, seed=course.recipe.seed)
    course.line.say(fit.describe())
    classifier.calibrate(
        temperature=fit.temperature,
        about={**asdict(fit), "part": "val", "pictures": identify_pictures(course.parts.part("val"))},
    )
    notes = []
    if part == "val":
        if chosen_from > 1:
            notes.append(
                f"the best of {chosen_from} epochs was chosen by these very pictures, which flatters the figures a "
                "little; pictures in a part test would not"
            )
        if fit.temperature != 1:
            notes.append(CALIBRATED_HERE)
    return score(
        headline.sharpen(fit.temperature),
        data=f"{course.parts.name}, part {part}",
        model=classifier.configuration.model,
        protocol=str(plan_protocol("single", classifier.preprocessing)),
        temperature=fit.temperature,
        pictures=identify_pictures(course.parts.part(part)),
        notes=tuple(notes),
    )


def _keep(course: Course, network: VGG, *, epoch: int) -> Classifier:
    """The best weights so far, written as a Classifier that says what it is."""
    classifier = course.classifier
    kept = Classifier(
        network,
        labels=classifier.labels,
        preprocessing=classifier.preprocessing,
        provenance={**classifier.provenance, **course.provenance, "epoch": epoch},
    )
    kept.save(course.directory / BEST)
    return kept


def _list_weights(network: VGG) -> dict[str, torch.Tensor]:
    """The network's tensors, by the keys that they have in a state."""
    return {f"network/{key}": value for key, value in network.state_dict().items()}


def find_best(history: tuple[Epoch, ...]) -> Epoch:
    """The epoch of the highest validation accuracy, of these of the lowest loss, and of these the first."""
    return max(history, key=lambda epoch: (epoch.val_top1, -epoch.val_loss))


def _estimate(course: Course, learner: Learner) -> str:
    """How long it will be and how much memory it will take, by some trial steps."""
    course.line.show("trying a step", 0, None)
    estimate = estimate_seconds(
        learner,
        course.parts.part("train"),
        course.parts.part("val"),
        preprocessing=course.classifier.preprocessing,
    )
    return describe(estimate, memory_bytes=_estimate_memory(course))


def _estimate_memory(course: Course) -> int:
    recipe = course.recipe
    assert recipe.batch_size is not None, "the recipe is settled"
    return estimate_memory(
        course.classifier.configuration,
        recipe,
        crop_pixels=course.classifier.preprocessing.crop_pixels,
        batch_size=recipe.batch_size,
    )


class _Pace:
    """Shows how many features there are, and says after the first ones how long all of them will take."""

    def __init__(self, line: ProgressLine, part: str) -> None:
        self.line, self.part = line, part
        self.started, self.first = time.monotonic(), 0

    def show(self, done: int, total: int) -> None:
        """`done` pictures of `total` are over."""
        if not self.first:  # with these came the engine
            self.started, self.first = time.monotonic(), done
        elapsed = time.monotonic() - self.started
        if elapsed > 1 and self.first > 0:
            about = elapsed / (done - self.first) * (total - done)
            if about > 2:
                self.line.say(f"features of {self.part}: about {spell_duration(about)} left")
            self.first = -1
        self.line.show(f"features of {self.part}", done, total)


def _take_over(classifier: Classifier, kept: Classifier) -> None:
    classifier.network.requires_grad_(True)
    classifier.network.load_state_dict(kept.network.state_dict())
    classifier.card = replace(kept.card, temperature=1.0, threshold=0.0)


def _describe_epoch(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:>{len(str(epochs))}}  train loss {epoch.train_loss:.4f}  "
        f"val loss {epoch.val_loss:.4f}  val top-1 {epoch.val_top1:.4f}  {epoch.seconds:5.1f} s"
    )
