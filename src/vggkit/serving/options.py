"""Everything that a service is started with, as one record that worker processes get."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vggkit.errors import BadConfiguration, BadInput
from vggkit.serving.limits import ServeLimits
from vggkit.serving.loaded_model import Computing

TOKEN_VARIABLE: Final = "VGGKIT_TOKEN"  # noqa: S105 (its name)
BACKLOG: Final = 512
"""Connections that wait to be accepted."""
LEAST_TOKEN: Final = 16
"""Characters of a token at least."""
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
WILDCARDS: Final = ("", "0.0.0.0", "::")  # noqa: S104 (compared with)


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What a service is started with."""

    places: dict[str, str]
    """The place of each model by its name."""
    computing: Computing = field(default_factory=Computing)
    """What models are computed with."""
    max_wait_ms: float = 5.0
    """Milliseconds that an image waits for others which are being decoded."""
    limits: ServeLimits = field(default_factory=ServeLimits)
    """What requests may take."""
    host: str = "127.0.0.1"
    """The address that it listens at."""
    port: int = 8000
    """The port that it listens at; 0: any free one."""
    workers: int = 1
    """Processes."""
    reload_seconds: float = 2.0
    """Seconds between two looks at the models' files; 0: never."""
    drain_seconds: float = 30.0
    """Seconds that requests have to end when the service is stopped."""
    token: str | None = field(default=None, repr=False)
    """What requests must hold; None: nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which it may be called; empty: any, and this machine's own where it listens there alone."""
    log_file: Path | None = None
    """Where the log is appended; None: standard output."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_wait_ms", 0), ("reload_seconds", 0), ("drain_seconds", 0)):
            if not getattr(self, name) >= least:
                raise BadConfiguration(f"{name} must be {least} or more; got {getattr(self, name)}")
        if not self.computing.max_batch >= 1:
            raise BadConfiguration(f"max_batch must be 1 or more; got {self.computing.max_batch}")
        if not 0 <= self.port <= 65535:
            raise BadConfiguration(f"port must be from 0 to 65535; got {self.port}")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names by which requests may call it; empty: any.

        Where it listens on this machine alone, a page of another name whose address was turned to this machine
        must not reach it.
        """
        if self.allowed_hosts:
            return self.allowed_hosts
        return LOCAL_NAMES if self.host in LOCAL_NAMES else ()

    @property
    def shown_host(self) -> str:
        """The host as it is written in an address."""
        host = "localhost" if self.host in WILDCARDS else self.host
        return f"[{host}]" if ":" in host else host


def read_token(file: Path | None) -> str | None:
    """The token in a file, or of the environment's VGGKIT_TOKEN; None where there is none.

    Raises BadInput for a file that cannot be read, and for a token that is too short or not of printable ASCII.
    """
    if file is None:
        token, place = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    else:
        place = str(file)
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as problem:
            raise BadInput(f"{file}: the token cannot be read ({problem})") from problem
    if token is None:
        return None
    token = token.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise BadInput(
            f"{place}: a token has at least {LEAST_TOKEN} characters of ASCII without spaces; "
            'make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return token
