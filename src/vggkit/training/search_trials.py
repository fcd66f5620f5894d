"""The recipes of a search, and what each reached."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vggkit.training.checkpoint import Epoch
from vggkit.training.recipe import Recipe, rank_epoch
from vggkit.training.search_space import Candidate, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A recipe of a search, and what it reached."""

    candidate: Candidate
    """What it differs in."""
    recipe: Recipe
    """The resolved recipe; its epochs are those of the whole training."""
    history: tuple[Epoch, ...] = ()
    """The best epoch of each round that it was trained in."""
    epochs: int = 0
    """Epochs that it was trained for."""
    problem: str | None = None
    """Why it was given up: its loss diverged."""

    @property
    def best(self) -> Epoch | None:
        """The epoch that it is ranked by, that of the longest round; None before the first."""
        return self.history[-1] if self.history else None

    def rank(self) -> tuple[bool, tuple[float, float], int]:
        """A value that is higher for a better trial; of equal ones the first is better."""
        best = self.best
        if best is None or self.problem is not None:
            return False, (0.0, 0.0), -self.candidate.number
        figures = rank_epoch(
            self.recipe.monitor,
            val_top1=best.val_top1,
            val_loss=best.val_loss,
            val_macro_f1=best.val_macro_f1,
            val_map=best.val_map,
        )
        return True, figures, -self.candidate.number

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "candidate": asdict(self.candidate),
            "recipe": self.recipe.to_dict(),
            "history": [asdict(epoch) for epoch in self.history],
            "epochs": self.epochs,
            "problem": self.problem,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Trial":
        """The trial that `to_dict` gave."""
        return cls(
            candidate=Candidate(**values["candidate"]),
            recipe=Recipe.from_dict(values["recipe"]),
            history=tuple(Epoch(**each) for each in values["history"]),
            epochs=values["epochs"],
            problem=values["problem"],
        )


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search."""

    trials: tuple[Trial, ...]
    """Every recipe, in order."""
    rounds: tuple[Round, ...]
    """What was planned."""
    chosen: Trial
    """The best one of the last round."""

    @property
    def ranked(self) -> list[Trial]:
        """The trials, those that were trained longest first, and of these the best."""
        return sorted(self.trials, key=lambda trial: (trial.epochs, trial.rank()), reverse=True)
