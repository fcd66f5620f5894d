"""What the shell does, a call from Python does by the same names: arguments, options, and the model's place."""

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import vggkit as vk
from vggkit.cli.commands import VERBS
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configuration import Configuration
from vggkit.weights.model import Model

FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "summary": (vk.summarize,),
    "code": (vk.write_listing, vk.configure),
    "identify": (vk.identify,),
    "convert": (vk.convert,),
    "check": (vk.check,),
    "train": (vk.train,),
    "shard": (vk.shard,),
    "evaluate": (vk.evaluate,),
    "compare": (vk.compare,),
    "predict": (vk.predict, vk.predict_into),
    "embed": (vk.embed, vk.embed_into),
    "search": (vk.search,),
    "bench": (vk.bench,),
    "compress": (vk.compress,),
    "distance": (vk.distance,),
    "explain": (vk.explain_into, vk.explain, vk.check_explanations),
    "export": (vk.export,),
    "style": (vk.style,),
    "filters": (vk.filters,),
    "serve": (vk.serve,),
    "doctor": (vk.doctor,),
}
"""The calls from Python for each verb."""
WITHOUT = {"models", "demo"}
"""Verbs that Python has other ways for: `list_models`, and a training with what comes with scikit-learn."""
OF_PYTHON_ALONE = {
    "identify": {"path"},  # The shell takes several files.
    "check": {"on_progress"},
    "shard": {"on_progress"},
    "train": {"on_epoch", "recipe"},
    "evaluate": {"model", "data", "name", "on_progress"},  # MODEL… DATA in one row.
    "predict": {"on_progress"},
    "embed": {"on_progress"},
    "search": {"on_progress"},
    "bench": {"on_progress"},
    "distance": {"on_progress"},
    "explain": {"on_progress", "most", "seed"},
    "export": {"on_progress"},
    "style": {"on_progress", "on_image", "on_log"},
    "filters": {"on_progress"},
    "serve": {"on_start"},
    "doctor": {"on_progress"},
}
"""Parameters without an option: functions that are called, and what the shell has in another form."""
PLACES = {"model", "other", "trunk"}
"""Parameters that take a Classifier: `other` is the second of a comparison, `trunk` the VGG of a loss."""


def list_names(called: Callable[..., Any]) -> set[str]:
    """Its parameters, with the fields of records in place of the records."""
    names = set()
    for parameter in inspect.signature(called).parameters.values():
        if dataclasses.is_dataclass(parameter.default):
            names |= {field.name for field in dataclasses.fields(parameter.default)}
        else:
            names.add(parameter.name)
    return names


def find_command(verb: str) -> Callable[..., Any]:
    [entry] = [verbs[verb] for verbs in VERBS.values() if verb in verbs]
    return getattr(importlib.import_module(f"vggkit.cli.{entry.module}"), verb)


def test_every_verb_has_its_calls() -> None:
    assert set(FUNCTIONS) | WITHOUT == {verb for verbs in VERBS.values() for verb in verbs}


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_python_has_no_other_names_than_the_shell(verb: str) -> None:
    names = set().union(*map(list_names, FUNCTIONS[verb]))
    assert names - list_names(find_command(verb)) - OF_PYTHON_ALONE.get(verb, set()) == set()


def list_public() -> dict[str, Callable[..., Any]]:
    """The public functions, and the methods of the Classifier."""
    found = {name: getattr(vk, name) for name in vk.__all__ if inspect.isfunction(getattr(vk, name))}
    methods = inspect.getmembers(vk.Classifier, inspect.isfunction)
    return found | {f"Classifier.{name}": method for name, method in methods if not name.startswith("_")}


@pytest.mark.parametrize(("name", "called"), list_public().items(), ids=list(list_public()))
def test_a_classifier_is_a_model_and_may_be_named_by_its_place(name: str, called: Callable[..., Any]) -> None:
    """One name, one set of types, and a docstring that speaks of it."""
    known = {each: getattr(vk, each) for each in vk.__all__}
    known |= {"Image": PIL.Image.Image, "Tensor": torch.Tensor}
    hints = typing.get_type_hints(called, localns=known)
    hints.pop("return", None)
    for parameter, hint in hints.items():
        kinds = typing.get_args(hint) or (hint,)
        if any(isinstance(kind, type) and issubclass(kind, Model) for kind in kinds):
            assert parameter in PLACES, f"{name}({parameter}=)"
            assert str in kinds, f"{name}({parameter}=) takes no place"
            assert Path in kinds or called is vk.train, f"{name}({parameter}=) takes no path"
            assert re.search(rf"^ +{parameter}: ", str(called.__doc__), re.MULTILINE), f"{name}: {parameter}"


def test_a_classifier_and_its_places_give_the_same(tiny: Configuration, photos: Path, tmp_path: Path) -> None:
    classifier = vk.Classifier.create(
        tiny, labels=["across", "down", "red"], preprocessing=choose_preprocessing(32), seed=1
    )
    file = tmp_path / "m.safetensors"
    classifier.save(file)
    val = photos / "val"
    expected = [prediction.probabilities for prediction in classifier.predict(val)]
    vk.embed_into(model=str(file), images=val, out=tmp_path / "v.npy", precision="fp32")
    near = vk.search(tmp_path / "v.npy", val, model=classifier, top=1)
    for model in (classifier, file, str(file)):
        found = vk.predict(model=model, images=val)
        assert np.allclose([each.probabilities for each in found], expected, atol=1e-6)
        assert vk.embed(model=model, images=val).vectors.shape[0] == 15
        assert vk.evaluate(model=model, data=photos, split="val").n == 15
        assert vk.search(tmp_path / "v.npy", val, model=model, top=1) == near
    for wrong in (classifier.network, 3, None):
        with pytest.raises(vk.BadInput, match="takes a Classifier or its place, got"):
            vk.predict(wrong, val)
