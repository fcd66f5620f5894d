"""Calls of version 0.1 that still work, with a DeprecationWarning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from vggkit.errors import BadInput
from vggkit.weights.model import Model

Options = ParamSpec("Options")
Run = TypeVar("Run")


def accept_model_first(train: Callable[Options, Run]) -> Callable[Options, Run]:
    """Accept `train(classifier, data, recipe)` too, in the order of version 0.1."""

    @wraps(train)
    def _accept(*given: Any, **options: Any) -> Run:
        if given and isinstance(given[0], Model):
            order = "train takes the data first, and a Classifier as model: train(data, model=classifier)"
            if len(given) == 1:
                raise BadInput(order)
            warnings.warn(order, DeprecationWarning, stacklevel=2)
            options |= dict(zip(("model", "data", "recipe"), given, strict=False))
            given = ()
        return train(*given, **options)

    return _accept
