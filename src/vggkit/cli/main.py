"""The `vggkit` command: finds the verb, calls it with its options, and reports errors.

A verb's module is imported only when the verb is called, so that `vggkit --help` is instant.
"""

import difflib
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from vggkit._version import __version__
from vggkit.cli.commands import VERBS, Verb
from vggkit.errors import VggkitError, describe_problem
from vggkit.escaping import escape_controls


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; its exit codes are those that `vggkit --help` lists."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        sys.exit(_run(given))
    except VggkitError as problem:
        _fail(_spell(describe_problem(problem), given[0]))
    except KeyboardInterrupt as stop:
        print(f"\nvggkit: {escape_controls(str(stop)) or 'interrupted'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:  # `vggkit … | head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as problem:
        _fail(describe_problem(problem))


def _run(given: list[str]) -> int:
    if given[:1] == ["help"] and len(given) > 1:  # help train: train --help
        given = [given[1], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version"):
        print(f"vggkit {__version__}")
        return 0
    known = _list_verbs()
    if given[0] == "--tyro-print-completion":
        from vggkit.cli.options import write_completion

        print(write_completion({name: _find_command(name) for name in known}, " ".join(given[1:])))
        return 0
    verb, options = given[0], given[1:]
    if verb not in known:
        if verb.startswith("-"):
            _fail(f"the verb comes first, then its options, as in `vggkit train photos --epochs 3`; got {verb!r}")
        near = difflib.get_close_matches(verb, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        _fail(f"{verb!r} is not a verb of vggkit.{hint} `vggkit --help` lists the verbs")

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries, which are for programmers

    import logging

    from vggkit.cli.options import call_with_options

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # its warnings about files; errors name them
    command = _find_command(verb)
    defaults = {}
    if verb == "train":
        from vggkit.cli.defaults import find_defaults

        defaults = find_defaults(options)
    result = call_with_options(command, options, verb=verb, defaults=defaults)
    if sys.stdout is not None:  # closed from the start: vggkit … >&-
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _help() -> str:
    lines = ["usage: vggkit VERB [ARGUMENTS] [OPTIONS]", "", "VGG, complete, in PyTorch."]
    for group, verbs in VERBS.items():
        lines += ["", f"{group}:", *(f"  {name:<10}{verb.summary}" for name, verb in verbs.items())]
    lines += [
        "",
        "MODEL is a model's name such as vgg16 (the published ImageNet weights) or",
        "digits (handwritten digits; its file comes with vggkit), a classifier's file,",
        "the folder of a training run, or hf://owner/name.",
        "",
        "`vggkit VERB --help` describes a verb's arguments and options,",
        "`vggkit --version` prints the version, and `vggkit --tyro-print-completion`",
        "{bash,zsh,fish} a script with which the shell completes verbs and options.",
        "",
        "Exit codes: 0; 1 where some images failed, or check found a problem; 2 where",
        "nothing was done; 128 and the signal's number when stopped (Ctrl-C: 130).",
    ]
    return "\n".join(lines)


def _list_verbs() -> Mapping[str, Verb]:
    return {name: each for verbs in VERBS.values() for name, each in verbs.items()}


def _find_command(verb: str) -> Callable[..., Any]:
    command: Callable[..., Any] = getattr(importlib.import_module(f"vggkit.cli.{_list_verbs()[verb].module}"), verb)
    return command


def _spell(message: str, verb: str) -> str:
    """A verb's error with its options as they are typed."""
    if verb not in _list_verbs():
        return message
    from vggkit.cli.spelling import list_options, spell_options

    return spell_options(message, list_options(_find_command(verb)))


def _fail(message: str) -> NoReturn:
    from vggkit.reports.terminal import print_line

    print_line(f"vggkit: error: {message}", to_stderr=True)
    sys.exit(2)
