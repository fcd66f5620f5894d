"""Finds the file of a MODEL, given as a file, a run's folder, a model's name, or `hf://owner/name`.

No torch here, but where the published weights of a name are read for the first time.
"""

import difflib
from pathlib import Path

from vggkit.arguments import demand_path
from vggkit.errors import BadCheckpoint, BadInput
from vggkit.models.configuration import list_models
from vggkit.weights.bundled import BUNDLED, find_bundled, is_bundled
from vggkit.weights.hub import FILE, is_address, pull
from vggkit.weights.published_classifiers import find_published_file, is_model_name


def locate_model(place: str | Path) -> Path:
    """The file that `place` means.

    Args:
        place: A file; a run's folder, which means its best epoch; a folder of `save_pretrained`; a name of
            `list_models()`, which means the published ImageNet Classifier, downloaded where it is not there yet;
            `digits`, which comes with vggkit; or `hf://owner/name`, which is downloaded too. An existing file or
            folder with a model's name comes before the model.

    Raises BadCheckpoint where there is no such file, or a run has no best epoch yet, UnknownName for a model
    without published weights, and BadDownload, BadOutput and MissingExtra where something is downloaded.
    """
    place = place if isinstance(place, str) else demand_path(place)
    path = Path(place)
    if path.exists():
        best = path / "best.safetensors"
        if (path / "config.yaml").is_file() and not best.is_file():
            raise BadCheckpoint(f"{path}: is a run's folder without best.safetensors; its first epoch did not end")
        published = path / FILE  # of save_pretrained, or of a clone of the hub's repository
        return next((file for file in (best, published) if file.is_file()), path)
    if is_address(place):
        return pull(place)
    if is_bundled(place):
        return find_bundled(str(place))
    if is_model_name(place):
        return find_published_file(str(place))
    raise BadCheckpoint(f"{path}: no such file{_suggest_name(str(place))}")


def locate_own_model(place: str | Path) -> Path:
    """The file that `place` means, where results are to be stored in it.

    Raises BadInput for a model's name and for an address, whose files other work uses too, and what
    `locate_model` raises.
    """
    if is_address(place) or is_model_name(place) or is_bundled(place):
        what = "an address of the hub" if is_address(place) else "the name of a published model"
        raise BadInput(
            f"{place}: is {what}, and the results are stored in the model's file; make a copy of your own first: "
            f"vggkit convert {place} my-model.safetensors --to torchvision"
        )
    return locate_model(place)


def _suggest_name(place: str) -> str:
    """The nearest name of a model, where `place` may be a mistyped one."""
    if "." in place or "/" in place:
        return ""
    names, cutoff = (list_models(), 0.5) if place.lower().startswith("vgg") else (list(BUNDLED), 0.8)
    near = difflib.get_close_matches(place.lower(), names, n=1, cutoff=cutoff)
    return f", nor a model of that name; did you mean {near[0]}?" if near else ""
