"""The table and the plot of a search for a recipe."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.files import write_text
from vggkit.reports.plots import BLUE, INK, ORANGE, PALE_INK, draw_to, write_name

if TYPE_CHECKING:
    from vggkit.training.search_trials import SearchResult

COLUMNS = ("learning_rate", "weight_decay", "trainable", "augmentation", "mirror", "rand_augment", "random_erasing")
"""Of the recipe."""


def write_search_table(result: "SearchResult", path: str | Path) -> None:
    """Write a row for each recipe, the best first: what it is, and what it reached. Raises BadOutput."""
    text = io.StringIO()
    header = ("trial", "chosen", "epochs", "val_figure", "val_loss", *COLUMNS, "mixup", "strength", "problem")
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for trial in result.ranked:
        best = trial.best
        writer.writerow(
            {
                "trial": trial.candidate.number,
                "chosen": int(trial is result.chosen),
                "epochs": trial.epochs,
                "val_figure": "" if best is None else f"{best.val_figure:.6f}",
                "val_loss": "" if best is None else f"{best.val_loss:.6f}",
                **{name: getattr(trial.recipe, name) for name in (*COLUMNS, "mixup")},
                "strength": trial.candidate.strength,
                "problem": trial.problem or "",
            }
        )
    write_text(path, text.getvalue())


def plot_search(result: "SearchResult", path: str | Path, *, title: str) -> None:
    """Plot what each recipe reached after each round, and by its learning rate; the chosen one is marked.

    Args:
        result: The search.
        path: A .png, .pdf or .svg file.
        title: The title of the figure.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    shown = [trial for trial in result.trials if trial.history]
    figure_name = shown[0].history[-1].figure
    with draw_to(path, width_inches=9.0, height_inches=3.8) as figure:
        figure.suptitle(write_name(title, longest=60), x=0.012, ha="left", fontsize=12, fontweight="bold")
        left, right = figure.subplots(1, 2, sharey=True)
        epochs = [planned.epochs for planned in result.rounds]
        for trial in shown:
            is_chosen = trial is result.chosen
            colour, above = (ORANGE, 3) if is_chosen else (BLUE, 2)
            values = [100 * epoch.val_figure for epoch in trial.history]
            places = epochs[: len(values)]
            if trial.recipe.trainable == "head":  # solved once
                places, values = places[:1], values[:1]
            left.plot(
                places, values, color=colour, marker="o", markersize=5, alpha=1 if is_chosen else 0.55, zorder=above
            )
            if trial.recipe.learning_rate is not None:
                size = 30 + 90 * (trial.epochs / epochs[-1])
                right.scatter(
                    [trial.recipe.learning_rate],
                    values[-1:],
                    s=size,
                    color=colour,
                    alpha=1 if is_chosen else 0.55,
                    zorder=above,
                )
        left.set_title("After each round")
        left.set_xlabel("epochs of training")
        left.set_ylabel(f"{figure_name.replace('val ', 'validation ')} (%)")
        left.set_xticks(epochs)
        left.set_xlim(0, epochs[-1] * 1.15 + 0.2)
        right.set_title("By learning rate")
        right.set_xlabel("learning rate; larger dots were trained longer")
        if rates := [trial.recipe.learning_rate for trial in shown if trial.recipe.learning_rate is not None]:
            right.set_xscale("log")
            ticks = _choose_ticks(min(rates), max(rates))
            right.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            right.set_xticks([], minor=True)
            right.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
        best = 100 * result.chosen.history[-1].val_figure
        chosen = f"trial {result.chosen.candidate.number}: {best:.1f} %"
        right.set_title(f"chosen: {chosen}", loc="right", color=ORANGE, fontsize=9)
        for axes in (left, right):
            axes.grid(axis="y", color="#eeeeee")
            axes.tick_params(colors=PALE_INK)
            axes.xaxis.label.set_color(INK)


def _choose_ticks(low: float, high: float) -> list[float]:
    """Round learning rates in a range: 1, 2 and 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        tick for power in powers for tick in (10.0**power, 2 * 10.0**power, 5 * 10.0**power) if low <= tick <= high
    ]
