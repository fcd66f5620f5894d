"""The defaults of `train` that --config, --preset and --resume replace; explicit options override them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from vggkit.errors import BadConfiguration, BadInput
from vggkit.reports.terminal import print_line
from vggkit.training.presets import find_preset
from vggkit.training.recipe import Recipe
from vggkit.workflows.run_config import FILE_NAME, NetworkChoice, RunConfig

BESIDE_RESUME: Final = frozenset(
    {"--resume", "--epochs", "--device", "--save-seconds", "--plots", "--json", "--quiet", "--help"}
)
"""Options that may be given with --resume; a run has all others in its folder."""


def find_defaults(options: Sequence[str]) -> dict[str, Any]:
    """Parameters of `train` by name, with the values to begin with.

    Args:
        options: The arguments after the verb.

    From a run's configuration its options are taken, and not its choices, which are made again.

    Raises BadConfiguration for options that contradict each other or a file that is no configuration,
    UnknownName for an unknown preset.
    """
    resume, config, preset = (_find(options, name) for name in ("--resume", "--config", "--preset"))
    if not options:
        raise BadInput(
            "train needs images: vggkit train FOLDER, or vggkit train digits to try it; "
            "vggkit train --help lists the options"
        )
    if resume is not None:
        _refuse_others(options)
        if _find(options, "--epochs") is None and (Path(resume) / FILE_NAME).is_file():
            return {"recipe": replace(Recipe(), epochs=RunConfig.read(resume).recipe.epochs)}
        return {}
    if config is not None and preset is not None:
        raise BadConfiguration(
            "--config and --preset both give a recipe; name one of them, and change it by options"
        )
    if config is not None:
        found = _prefer(options, RunConfig.read(config))
        if found.from_python:
            print_line(
                f"note: {config} was started from Python with weights in memory; this run is not", to_stderr=True
            )
        return {field.name: getattr(found, field.name) for field in fields(found) if field.name != "found"}
    if preset is not None:
        chosen = find_preset(preset)
        given = {_spell(option.partition("=")[0]).removeprefix("--").replace("-", "_") for option in options}
        return {"recipe": chosen.recipe, "network": NetworkChoice(**chosen.choose_network(given))}
    return {}


def _prefer(options: Sequence[str], config: RunConfig) -> RunConfig:
    """A given learning rate and --find-learning-rate exclude each other: explicit options take precedence."""
    given = {_spell(option.partition("=")[0]) for option in options}
    if "--learning-rate" in given:
        return replace(config, find_learning_rate=False)
    if "--find-learning-rate" in given:
        return replace(config, recipe=replace(config.recipe, learning_rate=None))
    return config


def _find(options: Sequence[str], name: str) -> str | None:
    """The value of an option, None where it is absent; the parser reports other errors."""
    for place, option in enumerate(options):
        word, equals, value = option.partition("=")
        if _spell(word) == name:
            if equals:
                return value
            return options[place + 1] if place + 1 < len(options) else None
    return None


def _refuse_others(options: Sequence[str]) -> None:
    for option in options:
        name = _spell(option.partition("=")[0])
        if name.startswith("--") and name not in BESIDE_RESUME:
            raise BadConfiguration(
                f"{name} does not go with --resume: a run continues with the options that it started with. "
                "For a new run like it: vggkit train --config RUN, with the options to change"
            )


def _spell(option: str) -> str:
    """As the parser, which takes --batch_size for --batch-size."""
    return option.replace("_", "-")
