"""The Hugging Face hub: look at a file, bring it, publish files. Everything of huggingface_hub is used here.

`HF_ENDPOINT`, `HF_TOKEN` and the hub's other variables hold as that package documents them. No torch here.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from vggkit.errors import BadDownload, BadOutput, MissingExtra, VggkitError

REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""owner/name."""
LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token of huggingface.co/settings/tokens"


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the hub says about a file."""

    commit: str
    """The commit that it is of, 40 hexadecimal digits."""
    sha256: str | None
    """Its SHA-256, 64 hexadecimal digits; None where it is small and git has its own digest."""


def look_at_file(repository: str, name: str, *, revision: str | None = None) -> HubFile:
    """What the hub says about the file `name` of `owner/name`; raises BadDownload and MissingExtra."""
    hub = _import_hub()
    with _explained(f"hf://{repository}", BadDownload):
        # One question without retries: whoever asks has another host, or a person who waits.
        found = hub.get_hf_file_metadata(
            hub.hf_hub_url(repository, name, revision=revision, endpoint=_endpoint()), endpoint=_endpoint()
        )
    if not found.commit_hash or not found.etag:
        raise BadDownload(
            f"hf://{repository}: {_endpoint() or 'the hub'} does not answer as a Hugging Face hub does"
        )
    return HubFile(found.commit_hash, found.etag if len(found.etag) == 64 else None)


def bring_file(
    repository: str,
    name: str,
    *,
    revision: str | None = None,
    folder: Path | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The hub's file on this machine.

    Args:
        repository: owner/name.
        name: The file's path in it.
        revision: A branch, tag or commit; None: `main`.
        folder: Where to put it; None: the hub's own cache, which is used as it is where the hub does not answer.
        offline: Look into that cache alone.
        progress: Show huggingface_hub's bar, in a terminal.

    Raises BadDownload and MissingExtra.
    """
    hub = _import_hub()
    with _explained(f"hf://{repository}", BadDownload):
        return Path(
            hub.hf_hub_download(
                repository,
                name,
                revision=revision,
                local_files_only=offline,
                local_dir=folder,
                endpoint=_endpoint(),
                tqdm_class=None if progress else partial(hub.utils.tqdm, disable=True),
            )
        )


def is_cached(repository: str, name: str, *, revision: str | None = None) -> bool:
    """Whether the hub's own cache holds some version of that file; raises MissingExtra."""
    hub = _import_hub()
    return isinstance(hub.try_to_load_from_cache(repository, name, revision=revision), str)


def publish_files(
    repository: str, files: Mapping[str, Path | bytes], *, private: bool, token: str | None, message: str
) -> str:
    """Make the repository where there is none, and put the files there by one commit; its web address.

    Raises BadOutput and MissingExtra.
    """
    hub = _import_hub()
    api = hub.HfApi(endpoint=_endpoint(), token=token)
    with _explained(f"hf://{repository}", BadOutput):
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, operations, commit_message=message)
    return str(address)


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as problem:
        raise MissingExtra.of("huggingface_hub", "the Hugging Face hub", "weights") from problem
    return huggingface_hub


def _endpoint() -> str | None:
    """Read when it is needed; huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def _explained(address: str, kind: type[VggkitError]) -> Iterator[None]:
    """Everything that the hub's package raises becomes one sentence for people."""
    # Its advice about retries would stand between our own lines.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except Exception as problem:
        raise kind(f"{address}: {_explain(problem)}") from problem
    finally:
        logger.setLevel(level)


def _explain(problem: BaseException) -> str:
    from huggingface_hub import errors

    match problem:
        case errors.GatedRepoError():
            return f"its owner gives it on request only; ask on its page, then {LOG_IN}"
        case errors.RevisionNotFoundError():
            return "has no such revision; leave it out, or name a branch, tag or commit"
        case errors.EntryNotFoundError() if not isinstance(problem, errors.LocalEntryNotFoundError):
            return "does not hold the file that a Classifier is in, model.safetensors"
        case errors.RepositoryNotFoundError():
            return f"no such repository, or a private one; is the name right? Else {LOG_IN}"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset it to reach the hub"
        case errors.HfHubHTTPError():
            code = problem.response.status_code
            advice = {401: LOG_IN, 403: f"this account may not; {LOG_IN}", 429: "wait a few minutes"}
            said = problem.server_message or _first_line(problem)
            return f"the hub answered {code} ({said}); {advice.get(code, 'try again later')}"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full; make room, or name another one in VGGKIT_HOME or HF_HOME"
        case _:  # its HTTP library's own, a protocol that changed
            while problem.__cause__ is not None:
                problem = problem.__cause__
            host = _endpoint() or "https://huggingface.co"
            said = f"{host} gave no answer that could be used ({_first_line(problem)})"
            return f"{said}; see whether there is a network"


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(problem).__name__
