"""Every error a user can cause.

    VggkitError
    ├── UnknownName          an unknown model, layer, head, verb or source; the nearest name is suggested
    ├── BadConfiguration     a network or a recipe that cannot exist, or options that contradict
    ├── BadInput             a tensor or a value that the network or function cannot take
    ├── BadImage             a file that is not a readable image
    ├── BadData              a place without the requested images or classes
    ├── BadCheckpoint        a weights file that is broken, unsafe or of another network
    ├── BadDownload          a host that does not give the requested file, or no network
    ├── BadOutput            a place that cannot be written to
    └── MissingExtra         an optional package that is not installed

Each message is for people: the rule, what was received, what to do. The command line prints it
on one line and exits with 2; nothing here is ever raised for a bug of ours (`assert` is).
`Stopped` is not part of the tree: stopping long work is no error.
"""

import difflib
from collections.abc import Iterable
from typing import Self


class VggkitError(Exception):
    """Base of everything below; catch it to catch them all."""


def describe_problem(problem: BaseException) -> str:
    """The message of an error on one line, including that of a library's error that it repeats.

    Line ends of names stay, the code that shows the message escapes them.
    """
    message, cause = str(problem).strip(), problem.__cause__
    while cause is not None:
        if not isinstance(cause, VggkitError) and "\n" in str(cause):
            message = message.replace(str(cause), " ".join(str(cause).split()))
        cause = cause.__cause__
    return message


class UnknownName(VggkitError, ValueError):
    """A name that is not one of the known ones."""

    @classmethod
    def of(cls, kind: str, name: object, known: Iterable[str]) -> Self:
        """The error for `name`, with the nearest known name and all of them."""
        known = list(known)
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return cls(f"{name!r} is not a {kind}.{hint} Known: {', '.join(known)}.")


class BadConfiguration(VggkitError):
    """A network or a recipe that cannot exist, or options that contradict each other."""


class BadInput(VggkitError, ValueError):
    """A tensor or a value that cannot be taken."""


class BadImage(VggkitError, ValueError):
    """A file that is not a readable image; the message starts with its path."""


class BadData(VggkitError, ValueError):
    """A place without the requested images or classes."""


class BadCheckpoint(VggkitError, ValueError):
    """A weights file that is broken, unsafe or of another network."""


class BadDownload(VggkitError, OSError):
    """A host does not deliver the requested file, or there is no network."""


class BadOutput(VggkitError, OSError):
    """A place that cannot be written to."""


class MissingExtra(VggkitError, ImportError):
    """An optional package that is not installed."""

    @classmethod
    def of(cls, package: str, purpose: str, extra: str) -> Self:
        """The error for a missing `package`, with the exact line that installs it."""
        return cls(f'{purpose} needs {package}: pip install "vggkit[{extra}]"')


class Stopped(KeyboardInterrupt):
    """Work was requested to stop, and finished work is saved; `command` continues it."""

    def __init__(self, signal_number: int, command: str = "") -> None:
        super().__init__(f"stopped; continue with: {command}" if command else "stopped")
        self.signal_number, self.command = signal_number, command
