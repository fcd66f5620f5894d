"""The `vggkit` command: finds the verb, lets tyro read its options, prints what it returns.

The verbs are in `commands/`; this file loads them only when one of them is called, so that
`vggkit --help` is instant.
"""

import dataclasses
import difflib
import functools
import inspect
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_type_hints

from vggkit import __version__
from vggkit.errors import VggkitError, describe_problem
from vggkit.escaping import escape_controls

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

VERBS: Final[Mapping[str, Mapping[str, str]]] = {
    "know what you have": {
        "models": "the networks of the paper, with their sizes",
        "summary": "a network layer by layer: shapes, parameters, multiply-adds, receptive field",
        "code": "a network as a standalone listing, ready to paste",
        "identify": "what a file of weights really holds",
        "convert": "weights to torchvision's, timm's, Keras', Caffe's or a listing's dialect",
    },
    "learn from your images": {
        "check": "what is wrong with a collection of images, before it is learnt from",
        "train": "a Classifier from a folder of images",
        "evaluate": "a Classifier on labelled images",
        "compare": "trainings side by side: what differs between them, and what came of it",
    },
    "ask": {
        "predict": "what images show; with --out, of any number of them",
        "embed": "images as vectors, to search, group or learn from",
        "search": "the images that look most like others",
    },
    "ship": {
        "bench": "how fast each engine and precision is on this machine, and how true",
    },
    "see it all": {
        "demo": "train, evaluate and predict on real handwritten digits, in about three minutes",
    },
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exits with 0, with 2 for a user's error, with 128 and the signal's number when stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        sys.exit(_run(given))
    except VggkitError as problem:
        _fail(describe_problem(problem))
    except KeyboardInterrupt as stop:
        print(f"\nvggkit: {escape_controls(str(stop)) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:  # `vggkit … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as problem:
        _fail(describe_problem(problem))


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version"):
        print(f"vggkit {__version__}")
        return 0
    verb, options = given[0], given[1:]
    known = [name for verbs in VERBS.values() for name in verbs]
    if verb not in known:
        near = difflib.get_close_matches(verb, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        what = "option" if verb.startswith("-") else "verb"
        _fail(f"no {what} {verb!r}.{hint} `vggkit --help` lists the verbs")

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell their programmers

    import logging

    import tyro

    from vggkit.cli import commands

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # its complaints about files; errors say them
    command = getattr(commands, verb)
    defaults = commands.find_defaults(options) if verb == "train" else {}
    markers = [tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName]
    if not defaults:  # a flag that a file set can be said again, and taken back
        markers.append(tyro.conf.FlagCreatePairsOff)
    result = tyro.cli(
        _with_defaults(command, defaults),
        prog=f"vggkit {verb}",
        args=options,
        registry=_read_frozen_values(),
        config=markers,
    )
    if sys.stdout is not None:  # closed from the start: vggkit … >&-
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _read_frozen_values() -> "ConstructorRegistry":
    """Each field of a frozen value is an option, and its help the text under the field."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    from vggkit.workflows.run_config import read_field_texts

    registry = ConstructorRegistry()

    @registry.struct_rule
    def read(info: StructTypeInfo) -> StructConstructorSpec | None:
        if not dataclasses.is_dataclass(info.type) or not isinstance(info.default, info.type):
            return None
        texts, kinds = read_field_texts(info.type), get_type_hints(info.type)
        fields = [
            StructFieldSpec(name, kinds[name], getattr(info.default, name), texts.get(name))
            for name in (field.name for field in dataclasses.fields(info.type))
        ]
        return StructConstructorSpec(info.type, tuple(fields))

    return registry


def _with_defaults(command: Callable[..., Any], defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """The command with other defaults, which tyro reads from its signature."""
    signature = inspect.signature(command)
    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]

    @functools.wraps(command)
    def _call(*given: Any, **options: Any) -> Any:
        return command(*given, **options)

    _call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return _call


def _help() -> str:
    lines = ["usage: vggkit VERB …", "", "VGG, complete, in PyTorch."]
    for purpose, verbs in VERBS.items():
        lines += ["", f"{purpose}:", *(f"  {name:<10} {about}" for name, about in verbs.items())]
    lines += ["", "`vggkit VERB --help` explains a verb. `vggkit --version` prints the version."]
    return "\n".join(lines)


def _fail(message: str) -> NoReturn:
    print(f"vggkit: error: {escape_controls(message)}", file=sys.stderr)
    sys.exit(2)
