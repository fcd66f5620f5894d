"""The examples in docstrings are run."""

import doctest
import importlib

import pytest

MODULES = [
    "evaluation.comparison",
    "evaluation.evaluation",
    "evaluation.predictions",
    "features.perceptual",
    "images.class_names",
    "images.dataset",
    "images.omissions",
    "images.sources.open_dataset",
    "images.split_names",
    "models.features",
    "models.receptive_field",
    "models.summary",
    "notebook",
    "workflows.filters",
    "workflows.style",
]
"""Modules whose docstrings have examples that take no time."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"vggkit.{name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0, f"vggkit.{name} has no examples; take it from the list"
    assert found.failed == 0
