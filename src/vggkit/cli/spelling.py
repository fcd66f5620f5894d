"""Messages of functions that Python calls too, with their options spelled as in the shell."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

_OF_A_FILE: Final = re.compile(r"\S+\.ya?ml: ")
"""The beginning of a message about a field of a configuration file, where it has its Python name."""


def list_options(command: Callable[..., Any]) -> list[str]:
    """The Python names of a command's options: its keyword parameters, and the fields of those that are records."""
    names = []
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(parameter.default):
            names += [field.name for field in dataclasses.fields(parameter.default)]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return names


def spell_options(message: str, options: Iterable[str]) -> str:
    """`batch_size must be …` as `--batch-size must be …`, and `trainable=head` as `--trainable head`.

    A name that is a word of English is an option only where a value is assigned to it, or where the message begins
    with `NAME must be`; in a path or in quotes nothing is one.

    >>> spell_options("batch_size must be 1 or more; take trainable=all", ["batch_size", "trainable"])
    '--batch-size must be 1 or more; take --trainable all'
    >>> spell_options("load it with allow_partial=True, or cut it with until=", ["allow_partial", "until"])
    'load it with --allow-partial, or cut it with --until'
    """
    if _OF_A_FILE.match(message):
        return message
    for name in sorted(options, key=len, reverse=True):
        option, apart = "--" + name.replace("_", "-"), r"(?<![\w./\\'\"-])"
        message = re.sub(rf"{apart}{name}=(True\b|(?!\S))", option, message)
        message = re.sub(rf"{apart}{name}=(?=\S)", f"{option} ", message).replace(f"{option} ({option})", option)
        if "_" in name:
            message = re.sub(rf"{apart}{name}(?![\w/\\'\"-]|\.\w)", option, message)
        elif message.startswith(f"{name} must be "):
            message = option + message.removeprefix(name)
    return message
