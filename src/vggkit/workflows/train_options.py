"""The options of `vggkit.train`, given by name, as the configuration of a run."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from vggkit.arguments import demand_path
from vggkit.errors import BadConfiguration
from vggkit.images.dataset import ImageDataset
from vggkit.images.sources.tables import Columns
from vggkit.models.configuration import Configuration
from vggkit.training.presets import find_preset
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model
from vggkit.workflows.run_config import NetworkChoice, RunConfig, locate

BESIDE_RESUME: Final = frozenset(
    {"data", "resume", "epochs", "device", "save_seconds", "plots", "quiet", "on_epoch"}
)
"""Options that may be given with `resume`; all others are those of the run."""


def gather_options(options: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run, from options by name and from `config`, `preset` or `recipe` for the others.

    Raises BadConfiguration and UnknownName.
    """
    bases = [name for name in ("config", "preset", "recipe") if name in options]
    if len(bases) > 1:
        raise BadConfiguration(
            f"{' and '.join(bases)} both give a recipe; give one of them, and change it by options"
        )
    base = RunConfig.read(options["config"]) if "config" in options else RunConfig()
    recipe: Recipe = options.get("recipe") or base.recipe
    preset = find_preset(options["preset"]) if "preset" in options else None
    if preset is not None:
        recipe = preset.recipe
    if "find_learning_rate" in options and "learning_rate" not in options and "config" in options:
        recipe = replace(recipe, learning_rate=None)  # of a rate that is given and one that is searched, the newer
    given = {
        kind: {field.name: options[field.name] for field in fields(kind) if field.name in options}
        for kind in (NetworkChoice, Recipe, Columns)
    }
    network, model, data = given[NetworkChoice], options.get("model"), options.get("data")
    if isinstance(model, Model):
        if others := sorted(network.keys() - {"model"}):
            raise BadConfiguration(
                f"{others[0]} is an option of a new network, and model={model!r} is trained as it is; leave it out"
            )
        base = replace(base, network=NetworkChoice.of(model))
        network = {}
    elif isinstance(model, Configuration):
        network["model"] = model.model
    elif model is not None and not isinstance(model, str):
        raise BadConfiguration(
            f"model must be a name of vggkit.list_models(), a Configuration or a Classifier; got {model!r:.100}"
        )
    held = isinstance(network.get("weights"), Mapping)  # in memory, which no file can say
    if "weights" in network:
        demand_path("" if held else network["weights"])
        network["weights"] = None if held else locate(str(network["weights"]))
    if preset is not None and not isinstance(model, Model):
        network = preset.choose_network({*network, *(["model"] if model is not None else [])}) | network
    columns = given[Columns]
    if "root" in columns:
        columns["root"] = locate(str(columns["root"])) if Path(str(columns["root"])).is_dir() else columns["root"]
    if data is not None:
        base = replace(base, data=locate(data.name if isinstance(data, ImageDataset) else str(data)))
    # A configuration and a Classifier name their model; without them the weights may name it.
    initial = base.network if "config" in options or isinstance(model, Model) else NetworkChoice()
    searched = options.get("find_learning_rate", base.find_learning_rate and "learning_rate" not in options)
    return replace(
        base,
        columns=replace(base.columns, **columns),
        despite_findings=options.get("despite_findings", base.despite_findings),
        loggers=tuple(options.get("loggers", base.loggers)),
        find_learning_rate=searched,
        search=options.get("search", base.search),
        teacher=locate(str(options["teacher"])) if "teacher" in options else base.teacher,
        from_python=isinstance(model, Model | Configuration) or isinstance(data, ImageDataset) or held,
        network=replace(initial, **network),
        recipe=replace(recipe, **given[Recipe]),
        found={},
    )


def refuse_beside_resume(options: Mapping[str, Any]) -> None:
    """Raise BadConfiguration for options of a new run, given by name with `resume`."""
    usual = {"find_learning_rate": False}
    others = [name for name in options if name not in BESIDE_RESUME and options[name] != usual.get(name)]
    if others:
        raise BadConfiguration(
            f"{others[0]} does not go with resume: a run continues with the options that it started with. "
            "For a new run like it: train(config=RUN), with the options that are to differ"
        )
