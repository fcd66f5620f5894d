"""The command of a verb's function: tyro reads options and help from its signature and docstring.

Parameters before `/` are positional, the others are options. Each field of a frozen dataclass is an option, too,
and its help is the text under the field.
"""

import dataclasses
import inspect
import io
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Annotated, Any, Final, get_origin, get_type_hints

import tyro
from docstring_parser import parse as parse_docstring
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from vggkit.cli.spelling import list_options, spell_options
from vggkit.cli.values import add_numbers, explain_refusals
from vggkit.errors import BadInput
from vggkit.field_texts import read_field_texts

OTHER_WORDS: Final = {"class": "label", "target": "label", "output": "out", "output-dir": "out"}
"""Words that are typed for options, and the option of each."""
SHELLS: Final = ("bash", "zsh", "fish")
"""Shells that completion scripts are written for."""
_PRINTED: Final = "    for completion in completions:\n        print(completion)\n"
"""The end of the program in tyro's scripts that finds the completions of a word."""
_PRINTED_WITH_FILES: Final = """\
    word = words[current_index] if current_index < len(words) else ''
    completions = [each for each in completions if word.startswith('-') or not each.startswith('-')]
    for completion in completions or ['__TYRO_COMPLETE_FILES__']:
        print(completion)
"""
"""The same, but options complete a hyphen alone, and files what nothing else completes: images, models, folders."""
_FILES_IN_BASH: Final = 'COMPREPLY=($(compgen -f -- "$cur"))'
"""tyro's `cur` is the word together with the arguments before it."""
_WHOLE_FILES_IN_BASH: Final = """\
compopt -o filenames 2>/dev/null
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))"""
MOST_COLUMNS: Final = 100
"""Width of help in characters where the terminal is wider: longer lines are hard to read."""


def call_with_options(
    command: Callable[..., Any], options: Sequence[str], *, verb: str, defaults: Mapping[str, Any]
) -> Any:
    """Call the function of a verb with the given options, and return its result.

    Args:
        command: The function.
        options: The arguments after the verb.
        verb: The verb's name, for the help.
        defaults: Parameters whose defaults are others than the function's.

    Exits with 0 after `--help`, and raises BadInput for options that the verb does not have.
    """
    _refuse_other_words(options, list_options(command))
    markers = [tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName]
    if not defaults:  # a flag that a file set can be given again, and taken back
        markers.append(tyro.conf.FlagCreatePairsOff)
    names = list_options(command)
    with explain_refusals(verb, [f"--{name.replace('_', '-')}" for name in names]):
        return tyro.cli(
            _describe(command, defaults),
            prog=f"vggkit {verb}",
            description=_wrap(str(parse_docstring(command.__doc__ or "").description)),
            args=options,
            registry=_read_frozen_values(names),
            config=markers,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedArgument:
    """An argument or option of a verb, as the reference of the command line shows it."""

    name: str
    """As it is typed: `MODEL`, `--batch-size`."""
    kind: Any
    """Its type."""
    default: Any
    """`inspect.Parameter.empty` where it must be given."""
    text: str
    """What its help says."""


def describe_arguments(command: Callable[..., Any]) -> list[DescribedArgument]:
    """The arguments and options of a verb's function, in the order of its help."""
    texts = {each.arg_name: each.description for each in parse_docstring(command.__doc__ or "").params}
    names, kinds, described = list_options(command), get_type_hints(command), []

    def add(name: str, kind: Any, default: Any, text: str | None) -> None:
        described.append(
            DescribedArgument(name, kind, default, spell_options(" ".join((text or "").split()), names))
        )

    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            record = type(parameter.default)
            fields, under = get_type_hints(record), read_field_texts(record)
            for field in dataclasses.fields(record):
                spelled = "--" + field.name.replace("_", "-")
                add(spelled, fields[field.name], getattr(parameter.default, field.name), under.get(field.name))
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            add(name.upper().replace("_", " "), kinds[name], parameter.default, texts.get(name))
        else:
            add("--" + name.replace("_", "-"), kinds[name], parameter.default, texts.get(name))
    return described


def _refuse_other_words(options: Sequence[str], known: Sequence[str]) -> None:
    """Raise BadInput with the option's name for another word that is often typed in its place."""
    for given in options:
        if given == "--":
            return
        word = given.removeprefix("--").partition("=")[0]
        meant = OTHER_WORDS.get(word)
        if given.startswith("--") and meant in known and word not in known:
            raise BadInput(f"there is no option --{word}; did you mean --{meant}?")


def _describe(command: Callable[..., Any], defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """The command with these defaults, and with its docstring's help in its annotations, where tyro reads it."""
    signature, kinds = inspect.signature(command), get_type_hints(command)
    texts = {each.arg_name: each.description for each in parse_docstring(command.__doc__ or "").params}
    options = list_options(command)
    parameters = []
    for name, parameter in signature.parameters.items():
        default = defaults.get(name, parameter.default)
        kind = kinds[name]
        repeated = parameter.kind is parameter.POSITIONAL_ONLY and get_origin(kind) is tuple
        metavar = f"{name.upper().replace('_', ' ')} ..." if repeated else None
        kind = _annotate(kind, texts.get(name), options=options, metavar=metavar)
        parameters.append(parameter.replace(default=default, annotation=kind))

    def _call(*given: Any, **options: Any) -> Any:
        return command(*given, **options)

    _call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    _call.__annotations__ = {each.name: each.annotation for each in parameters}
    return _call


def _read_frozen_values(options: Sequence[str]) -> ConstructorRegistry:
    """Each field of a frozen value is an option, and its help the text under the field."""
    registry = ConstructorRegistry()
    add_numbers(registry)

    @registry.struct_rule
    def read(info: StructTypeInfo) -> StructConstructorSpec | None:
        ours = str(getattr(info.type, "__module__", "")).startswith("vggkit.")  # tyro has dataclasses of its own
        if not ours or not dataclasses.is_dataclass(info.type) or not isinstance(info.default, info.type):
            return None
        texts, kinds = read_field_texts(info.type), get_type_hints(info.type)
        fields = [
            StructFieldSpec(
                field.name,
                _annotate(kinds[field.name], texts.get(field.name), options=options),
                getattr(info.default, field.name),
            )
            for field in dataclasses.fields(info.type)
        ]
        return StructConstructorSpec(info.type, tuple(fields))

    return registry


def _annotate(kind: Any, text: str | None, *, options: Sequence[str], metavar: str | None = None) -> Any:
    """The type with its help on one line, which tyro wraps, and the default if it is informative."""

    def show(default: str) -> str:
        return "" if default in ("None", "False", "", "''") else f"(default: {default})"

    help_text = spell_options(" ".join((text or "").split()), options)
    return Annotated[kind, tyro.conf.arg(metavar=metavar, help=help_text, help_behavior_hint=show)]


def _wrap(text: str) -> str:
    """Paragraphs broken to the terminal's width, and indented: tyro joins lines that start with a letter.

    Each begins on a line of its own; tyro would make two blank lines of one between them.
    """
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n".join(textwrap.fill(each, width, initial_indent="  ", subsequent_indent="  ") for each in paragraphs)


def write_completion(commands: Mapping[str, Callable[..., Any]], shell: str) -> str:
    """The completion script of a shell for all verbs, as tyro makes it, with files for positional arguments.

    Args:
        commands: The function of each verb.
        shell: bash, zsh or fish.

    Raises BadInput for another shell.
    """
    if shell not in SHELLS:
        raise BadInput(f"completion is printed by: vggkit --tyro-print-completion {{{','.join(SHELLS)}}}")
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    options = {option for command in commands.values() for option in list_options(command)}
    script = io.StringIO()
    with redirect_stdout(script), suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            {verb: _describe(command, {}) for verb, command in commands.items()},
            prog="vggkit",
            args=["--tyro-print-completion", shell],
            registry=_read_frozen_values(sorted(options)),
            config=(*markers, tyro.conf.FlagCreatePairsOff),
        )
    with_files = script.getvalue().replace(_PRINTED, _PRINTED_WITH_FILES)
    return with_files.replace(_FILES_IN_BASH, _WHOLE_FILES_IN_BASH)
