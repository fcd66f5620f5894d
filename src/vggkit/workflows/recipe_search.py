"""The search for a recipe by successive halving, before a training: resumable, and chosen by validation alone.

Each trial trains a copy of the network in a folder of its own, `search/trial-01` and so on of the run's, by the
same `Trainer` with the same checkpoints, so that a search that was killed continues to the same result.
`search.json` there is its state. The test split is not touched.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput
from vggkit.files import write_text
from vggkit.images.dataset import ImageDataset
from vggkit.interruption import Signals
from vggkit.reports.progress import ProgressLine
from vggkit.training.callbacks import Callbacks, find_best
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.checkpoint import Checkpoints, Progress
from vggkit.training.distillation import Teacher
from vggkit.training.recipe import Recipe
from vggkit.training.search_space import Round, draw_candidates, plan_rounds
from vggkit.training.search_trials import SearchResult, Trial
from vggkit.training.trainer import Trainer
from vggkit.weights.model import Model

FOLDER: Final = "search"
"""Of the trials, in the run's folder."""
STATE: Final = "search.json"

Resolve = Callable[[Recipe], Recipe]
"""Chooses what a recipe leaves open; raises BadConfiguration for one that cannot be carried out."""


@dataclass(slots=True, kw_only=True)
class RecipeSearch:
    """A search in the folder of a run: call `run`.

    Args of the fields: what every trial is trained with, as for `Trainer`.
    """

    classifier: Model
    """The network that trials start from; it stays as it is."""
    dataset: ImageDataset
    """With the splits `train` and `val`; others are not used."""
    recipe: Recipe
    """As it was given."""
    trials: int
    """Number of recipes."""
    resolve: Resolve
    """Chooses what a recipe leaves open."""
    directory: Path
    """The run's folder."""
    identity: Mapping[str, Mapping[str, Any]]
    """The inputs of the run; a state of others is refused."""
    device: torch.device
    """Where to train."""
    caller_settings: CallerSettings
    """Settings of the network that training preserves."""
    line: ProgressLine
    """For progress and messages."""
    teacher: Callable[[Recipe], Teacher | None] = field(default=lambda recipe: None)
    """Opens the teacher of a recipe, where there is one."""
    save_seconds: float = 300.0
    """How often, in seconds, a state within an epoch is saved."""
    signals: Signals = field(default_factory=Signals)
    """A search that is requested to stop saves its state, and raises Stopped."""

    def run(self) -> SearchResult:
        """Search, or continue a search that was stopped.

        Raises Stopped when requested to stop, BadCheckpoint for the state of a search of other inputs, and BadInput
        where the loss of every recipe diverges.
        """
        rounds = plan_rounds(self.trials, self.recipe.epochs)
        trials = self._read() or self._draw()
        self._write(trials)
        total = sum(each.trials * each.epochs for each in rounds)
        self.line.log(
            f"search: {len(trials)} recipes, {_describe_rounds(rounds)}, then the best one in full; about "
            f"{total / self.recipe.epochs:.2g} times the epochs of one training before it"
        )
        going = list(range(len(trials)))
        for planned, later in zip_longest(rounds, rounds[1:]):
            going = going[: planned.trials]
            for number, place in enumerate(going, start=1):
                if trials[place].epochs < planned.epochs and trials[place].problem is None:
                    trials[place] = self._train(trials[place], planned)
                    self._write(trials)
                    self.line.log(self._describe(trials[place], planned))
                # A state is as large as the network with its optimizer: those that cannot go on are removed.
                ranked = sorted(going[:number], key=lambda each: trials[each].rank(), reverse=True)
                for lost in ranked[0 if later is None else later.trials :]:
                    shutil.rmtree(self._folder(trials[lost]), ignore_errors=True)
            going.sort(key=lambda place: trials[place].rank(), reverse=True)
        chosen = trials[going[0]]
        if chosen.problem is not None or chosen.best is None:
            raise BadInput(
                f"the search found no recipe that can be trained: {chosen.problem}; check the images with `vggkit "
                "check`, or take the same network with batch norm"
            )
        return SearchResult(tuple(trials), rounds, chosen)

    def _draw(self) -> list[Trial]:
        """The trials of a new search; recipes that come to the same are tried once."""
        from_weights = self.classifier.origin.kind != "random"
        found: list[Trial] = []
        candidates = draw_candidates(
            self.recipe,
            self.trials,
            from_weights=from_weights,
            has_head=from_weights and self._can_train_head(),
            channels=self.classifier.configuration.in_channels,
        )
        for candidate in candidates:
            recipe = candidate.scale(self.resolve(candidate.apply(self.recipe)))
            if all(recipe != trial.recipe for trial in found):
                found.append(Trial(candidate=candidate, recipe=recipe))
        return found

    def _can_train_head(self) -> bool:
        try:
            recipe = self.resolve(replace(self.recipe, trainable="head"))
            self.teacher(recipe)
        except BadConfiguration:
            return False
        return True

    def _folder(self, trial: Trial) -> Path:
        return self.directory / FOLDER / f"trial-{trial.candidate.number:02}"

    def _train(self, trial: Trial, planned: Round) -> Trial:
        """A trial after a round; it continues from its last state where it has one."""
        recipe = replace(trial.recipe, patience=None)
        if recipe.trainable == "head" and trial.history:
            return replace(trial, epochs=planned.epochs)  # solved once and for all
        if recipe.trainable != "head":
            least = 2 if recipe.trainable == "gradual" else 1
            recipe = replace(recipe, epochs=max(least, planned.epochs))
        start = self.classifier
        model = Model(
            copy.deepcopy(start.network), labels=start.labels, preprocessing=start.preprocessing, task=start.task
        )
        model.card = start.card
        folder = self._folder(trial)
        checkpoints = Checkpoints(
            folder,
            card=model.card,
            identity={**self.identity, "recipe": recipe.to_dict()},
            changeable={"recipe": {"epochs"}},
        )
        state: dict[str, Tensor] | None = None
        progress = Progress()
        if (folder / "last.ckpt").is_file():
            state, progress = checkpoints.read_last()
            mine = (key for key in state if key.startswith("network/"))
            model.network.load_state_dict({key.removeprefix("network/"): state[key] for key in mine})
        name = f"trial {trial.candidate.number} of {self.trials}"

        def show(what: str, done: int, total: int | None) -> None:
            self.line.show(f"{name}, {what}", done, total)

        trainer = Trainer(
            model,
            {"train": self.dataset.split("train"), "val": self.dataset.split("val")},
            recipe,
            device=self.device,
            checkpoints=checkpoints,
            caller_settings=self.caller_settings,
            teacher=None if recipe.trainable == "head" else self.teacher(recipe),
            save_seconds=self.save_seconds,
            callbacks=Callbacks(on_step=show, signals=self.signals),
        )
        try:
            history = trainer.fit(state, progress=progress).history
        except BadInput as problem:
            return replace(trial, problem=str(problem), epochs=planned.epochs)
        return replace(trial, history=(*trial.history, find_best(history, recipe.monitor)), epochs=planned.epochs)

    def _describe(self, trial: Trial, planned: Round) -> str:
        what = f"trial {trial.candidate.number:>{len(str(self.trials))}} of {self.trials}  {describe_trial(trial)}"
        if trial.best is None:
            return f"{what}  given up: {trial.problem}"
        after = "solved" if trial.recipe.trainable == "head" else f"{planned.epochs} epochs"
        return f"{what}  {trial.best.figure} {trial.best.val_figure:.4f} ({after})"

    def _write(self, trials: Sequence[Trial]) -> None:
        values = {"identity": self._describe_inputs(), "trials": [trial.to_dict() for trial in trials]}
        write_text(self.directory / FOLDER / STATE, json.dumps(values, indent=1) + "\n")

    def _read(self) -> list[Trial] | None:
        """The trials of a search that was stopped; None where there was none. Raises BadCheckpoint."""
        path = self.directory / FOLDER / STATE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            before, trials = values["identity"], [Trial.from_dict(each) for each in values["trials"]]
        except (OSError, ValueError, TypeError, KeyError) as problem:
            raise BadCheckpoint(f"{path}: is not the state of a search ({problem})") from problem
        now = self._describe_inputs()
        if changed := sorted(name for name in now if before.get(name) != now[name]):
            raise BadCheckpoint(
                f"{path}: is of a search with other {', '.join(changed)} than now, and one continues only with "
                "what it started with. Undo the change, or start a new run in another folder"
            )
        return trials

    def _describe_inputs(self) -> dict[str, Any]:
        inputs = {**self.identity, "recipe": self.recipe.to_dict(), "search": {"trials": self.trials}}
        return dict(json.loads(json.dumps(inputs)))


def describe_trial(trial: Trial) -> str:
    """What distinguishes a recipe of a search."""
    recipe = trial.recipe
    if recipe.trainable == "head":
        return "trainable head, a linear probe"
    return (
        f"learning rate {recipe.learning_rate:<7.2g} weight decay {recipe.weight_decay:<7.2g} "
        f"trainable {recipe.trainable:<4} augmentation {trial.candidate.strength}"
    )


def _describe_rounds(rounds: Sequence[Round]) -> str:
    parts = [f"{each.trials} for {each.epochs} {'epoch' if each.epochs == 1 else 'epochs'}" for each in rounds]
    return ", ".join(parts)
