"""The `vggkit` command: finds the verb, lets tyro read its options, prints what it returns.

The verbs are in `commands/`; this file loads them only when one of them is called, so that
`vggkit --help` is instant.
"""

import difflib
import io
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from vggkit import __version__
from vggkit.errors import VggkitError

VERBS: Final[Mapping[str, Mapping[str, str]]] = {
    "know what you have": {
        "models": "the networks of the paper, with their sizes",
        "summary": "a network layer by layer: shapes, parameters, multiply-adds, receptive field",
        "code": "a network as a standalone listing, ready to paste",
        "identify": "what a file of weights really holds",
        "convert": "weights to torchvision's, timm's, Keras', Caffe's or a listing's dialect",
    },
    "learn from your pictures": {
        "check": "what is wrong with a collection of pictures, before it is learnt from",
        "train": "a Classifier from a folder of pictures",
        "evaluate": "a Classifier on labelled pictures",
    },
    "ask": {
        "predict": "what pictures show",
    },
    "see it all": {
        "demo": "train, evaluate and predict on real handwritten digits, in about three minutes",
    },
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exits with 0, with 2 for a user's error, with 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        sys.exit(_run(given))
    except VggkitError as problem:
        _fail(str(problem))
    except KeyboardInterrupt:
        print("\nvggkit: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `vggkit … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as problem:
        _fail(str(problem))


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

    from vggkit.interfaces import commands

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # its complaints about files; errors say them
    command = getattr(commands, verb)
    result = tyro.cli(
        command,
        prog=f"vggkit {verb}",
        args=options,
        config=(
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.DisallowNone,
            tyro.conf.PositionalMetavarFromFieldName,
        ),
    )
    if sys.stdout is not None:  # closed from the start: vggkit … >&-
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _help() -> str:
    lines = ["usage: vggkit VERB …", "", "VGG, complete, in PyTorch."]
    for purpose, verbs in VERBS.items():
        lines += ["", f"{purpose}:", *(f"  {name:<10} {about}" for name, about in verbs.items())]
    lines += ["", "`vggkit VERB --help` explains a verb. `vggkit --version` prints the version."]
    return "\n".join(lines)


def _fail(message: str) -> NoReturn:
    print(f"vggkit: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
