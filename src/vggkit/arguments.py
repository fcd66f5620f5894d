"""Checks of numbers and paths in arguments: NumPy's and torch's are accepted, and floats are not integers."""

import operator
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, SupportsIndex, TypeGuard, cast

from vggkit.errors import BadInput


def plain_number(value: object) -> Any:
    """A whole number, a real one or a truth value of NumPy or torch as Python's own; anything else as it is.

    A float stays a float, even 3.0: where a whole number is required, it is an error.
    """
    if value is None or isinstance(value, bool | int | str):
        return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
    kind = str(getattr(value, "dtype", ""))
    if kind in ("bool", "torch.bool"):  # torch's would pass for 0 and 1
        return bool(value) if getattr(value, "ndim", 1) == 0 else value
    try:
        return operator.index(cast(SupportsIndex, value))
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: tensors on a device without values
        pass
    return float(value) if isinstance(value, Real) else value


def demand_count(name: str, value: object, *, least: int = 1) -> int:
    """The integer `value`, not below the given minimum; raises BadInput, naming it, for anything else."""
    found = plain_number(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise BadInput(f"{name} must be a whole number of {least} or more, got {value!r}")
    return found


def demand_counts(name: str, values: object) -> tuple[int, ...]:
    """Whole numbers of 1 or more in a list or another row; raises BadInput, naming it, for anything else."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise BadInput(f"{name} must be a list of whole numbers, such as [256, 384]; got {values!r}")
    return tuple(demand_count(f"each of {name}", value) for value in values)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite number of Python; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def demand_share(name: str, value: object) -> float:
    """The share `value`, above 0 and at most 1; raises BadInput, naming it, for anything else."""
    found = plain_number(value)
    if not is_number(found) or not 0 < found <= 1:
        percent = f"; {found:g} % is {found / 100:g}" if is_number(found) and 1 < found <= 100 else ""
        raise BadInput(f"{name} must be a share above 0 and at most 1, got {value!r}{percent}")
    return found


def demand_seconds(name: str, value: object) -> float:
    """The seconds `value`, 0 or more and even infinite; raises BadInput, naming it, for anything else."""
    found = plain_number(value)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 0:  # nan is not either
        raise BadInput(f"{name} must be a number of 0 or more, got {value!r}")
    return found


def demand_path(value: object) -> Path:
    """The path `value`, of text or of a path object; raises BadInput for anything else."""
    if isinstance(value, bytes):
        raise BadInput(f"a path is text or a pathlib.Path, got bytes: {value!r:.80}; write os.fsdecode(path)")
    try:
        return Path(os.fspath(cast("str | os.PathLike[str]", value)))
    except TypeError as problem:
        save = "; save it, and give its file" if hasattr(value, "save") else ""
        raise BadInput(f"a path is text or a pathlib.Path, got {type(value).__name__}{save}") from problem
