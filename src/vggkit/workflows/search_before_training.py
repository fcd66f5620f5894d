"""Searches before a training, for a recipe and for a learning rate: tables and plots go into the run's folder."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from vggkit.images.dataset import ImageDataset
from vggkit.interruption import handle_signals
from vggkit.reports.lr_plot import plot_rate_search
from vggkit.reports.progress import ProgressLine
from vggkit.reports.search_plot import plot_search, write_search_table
from vggkit.training.caller_settings import CallerSettings
from vggkit.training.distillation import open_teacher
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.training.lr_finder import search_learning_rate
from vggkit.training.recipe import Recipe
from vggkit.training.search_trials import SearchResult
from vggkit.weights.model import Model
from vggkit.workflows.recipe_search import RecipeSearch, Resolve, describe_trial
from vggkit.workflows.run_config import RunConfig


def search_recipe(
    classifier: Model,
    dataset: ImageDataset,
    config: RunConfig,
    resolve: Resolve,
    contents: Mapping[str, str],
    *,
    directory: Path,
    device: torch.device,
    caller_settings: CallerSettings,
    save_seconds: float,
    line: ProgressLine,
) -> SearchResult:
    """Search for a recipe, or continue to; its table and its plot are written into the run's folder."""
    with handle_signals(lambda: f"vggkit train --resume {directory}") as signals:
        result = RecipeSearch(
            classifier=classifier,
            dataset=dataset,
            recipe=config.recipe,
            trials=config.search,
            resolve=resolve,
            directory=directory,
            identity={
                "network": asdict(config.network),
                "by_hand": caller_settings.to_dict(),
                "images": {name: contents[name] for name in ("train", "val")},
                "teacher": {"place": config.teacher},
            },
            device=device,
            caller_settings=caller_settings,
            line=line,
            teacher=lambda given: (
                None if config.teacher is None else open_teacher(config.teacher, classifier, given, device=device)
            ),
            save_seconds=save_seconds,
            signals=signals,
        ).run()
    write_search_table(result, directory / "search.csv")
    plot_search(
        result, directory / "search.png", title=f"{classifier.configuration.model} on {dataset.name}: search"
    )
    best = result.chosen.best
    assert best is not None, "a trial that was chosen was trained"
    what = " ".join(describe_trial(result.chosen).split())
    line.log(
        f"search: trial {result.chosen.candidate.number} is the best by validation, {best.figure} "
        f"{best.val_figure:.4f} ({what}); see {directory / 'search.png'} and search.csv. Now it is trained in full"
    )
    return result


def search_rate(
    classifier: Model,
    dataset: ImageDataset,
    recipe: Recipe,
    device: torch.device,
    caller_settings: CallerSettings,
    *,
    directory: Path,
    line: ProgressLine,
    group: ProcessGroup,
) -> Recipe:
    """The recipe with the learning rate that a search suggests, if it suggests one; the search is plotted."""
    search = search_learning_rate(
        classifier,
        dataset.split("train"),
        recipe,
        device=device,
        caller_settings=caller_settings,
        on_step=lambda done, total: line.show("searching for a learning rate", done, total),
        group=group,
    )
    plot = directory / "learning_rate_search.png"
    if group.is_first:
        plot_rate_search(search, plot, title=f"{classifier.configuration.model}: learning rate search")
    line.log(f"{search.why}; see {plot}")
    return recipe if search.suggested is None else replace(recipe, learning_rate=search.suggested)
