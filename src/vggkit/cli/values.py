"""Values of options: how numbers are read, and the errors for values and options that cannot be."""

import difflib
import types
import typing
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from vggkit.errors import BadInput

NUMBERS: Final = {int: "a whole number", float: "a number"}
LISTS: Final = {int: "whole numbers", float: "numbers"}


def add_numbers(registry: ConstructorRegistry) -> None:
    """Read numbers, with errors that name the rule and the value; several have spaces or commas between them."""

    @registry.primitive_rule
    def read(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind: Any = info.type
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            kinds = [each for each in typing.get_args(kind) if each is not type(None)]
            kind = kinds[0] if len(kinds) == 1 else kind
        if kind in NUMBERS:
            return _read_one(kind)
        items = typing.get_args(kind) if typing.get_origin(kind) is tuple else ()
        if len(items) == 2 and items[0] in LISTS and items[1] is ...:
            return _read_several(items[0])
        return _read_words(len(items)) if items and set(items) == {str} else None


def _read_one(kind: Any) -> PrimitiveConstructorSpec[Any]:
    def convert(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"must be {NUMBERS[kind]}; got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=convert,
        is_instance=lambda value: value is None or isinstance(value, kind | int),
        str_from_instance=lambda value: [str(value)],
    )


def _read_several(kind: Any) -> PrimitiveConstructorSpec[Any]:
    def convert(words: list[str]) -> Any:
        rule = f"must be {LISTS[kind]} with spaces or commas between them"
        if not words:
            raise ValueError(f"{rule}; got none")
        try:
            return tuple(kind(number) for word in words for number in word.split(",") if number)
        except ValueError:
            raise ValueError(f"{rule}; got {' '.join(words)!r}") from None

    one = kind.__name__.upper()
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[{one} [{one} ...]]",
        instance_from_str=convert,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [str(value) for value in values],
    )


def _read_words(count: int) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=count,
        metavar=" ".join(["STR"] * count),
        instance_from_str=tuple,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda words: ["None"] if words is None else list(words),
    )


def explain_refusals(verb: str, options: Sequence[str]) -> AbstractContextManager[None]:
    """A context in which BadInput is raised for a command line that tyro refuses, in one sentence.

    Args:
        verb: The verb.
        options: Its options as they are typed, such as `--batch-size`.

    A version of tyro without the hook draws a box and exits with 2.
    """
    events: Any = getattr(tyro, "_errors", None)
    if not hasattr(events, "on_parse_error"):
        return nullcontext()
    help_line = f"`vggkit {verb} --help` lists its options"

    def refuse(event: Any) -> None:
        match type(event).__name__:
            case "InvalidChoice":
                given = [choice for choice in event.choices if choice != "None"]
                choices = given if len(given) == len(event.choices) else sorted(given)
                *others, last = choices
                raise BadInput(
                    f"{_name(event.argument)} must be {', '.join(others)} or {last}; got {event.value!r}"
                    f"{_suggest(event.value, choices)}"
                )
            case "InstantiationFailure" if event.argument is not None:
                message = str(event.message)
                rule = message if message.startswith("must be ") else f"cannot be read: {' '.join(message.split())}"
                raise BadInput(f"{_name(event.argument)} {rule}")
            case "BadValue":
                count = event.argument.lowered.nargs
                raise BadInput(f"{_name(event.argument)} needs {'a value' if count == 1 else f'{count} values'}")
            case "MissingArgs":
                names = [_name(each.arg) for each in event.missing_arguments]
                text = event.missing_arguments[0].arg.field.helptext
                about = f": {text.removesuffix('.')}" if len(names) == 1 and isinstance(text, str) else ""
                raise BadInput(f"{verb} needs {' and '.join(names)}{about}; {help_line}")
            case "UnrecognizedArgs":
                word = event.tokens[0]
                if word.startswith("-"):
                    name = word.partition("=")[0]
                    near = _suggest(name, options) or ";"
                    raise BadInput(f"{name} is not an option of {verb}{near} {help_line}")
                raise BadInput(f"{verb} does not take the argument {word!r} too; {help_line}")

    found: AbstractContextManager[None] = events.on_parse_error(refuse)
    return found


def _name(argument: Any) -> str:
    """The option as it is typed, or the positional argument as the help names it."""
    lowered = argument.lowered
    return str(lowered.metavar) if argument.is_positional() else str(lowered.name_or_flags[-1])


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.replace("_", "-"), known, n=1, cutoff=0.6)
    return f". Did you mean {near[0]}?" if near else ""
