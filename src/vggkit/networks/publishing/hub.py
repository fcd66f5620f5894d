"""The Hugging Face hub: look at a file, bring it, publish files. Everything of huggingface_hub is used here.

`HF_ENDPOINT`, `HF_TOKEN` and the hub's other variables hold as that package documents them. No torch here.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
    etag: str
    """Its SHA-256, 64 hexadecimal digits, where it is stored as large; else git's own of 40."""
    size_bytes: int | None
    """Its size, where it is told."""

    @property
    def sha256(self) -> str | None:
        """Its SHA-256 as far as the hub tells it."""
        return self.etag if re.fullmatch(r"[0-9a-f]{64}", self.etag) else None


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
    return HubFile(found.commit_hash, found.etag, found.size)


def bring_file(
    repository: str,
    name: str,
    *,
    revision: str | None = None,
    folder: Path | None = None,
    offline: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The hub's file on this machine.

    Args:
        repository: owner/name.
        name: The file's path in it.
        revision: A branch, tag or commit; None: `main`.
        folder: Where to put it; None: the hub's own cache, which is used as it is where the hub does not answer.
        offline: Look into that cache alone.
        on_progress: Called with the bytes done and in all; None: huggingface_hub's own bar, in a terminal.

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
                tqdm_class=_reporting_bar(on_progress) if on_progress else None,
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
    from huggingface_hub import errors

    # Its advice about retries would stand between our own lines.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except errors.HFValidationError as problem:
        raise kind(
            f"{address}: is not a repository's name, which is owner/name ({_first_line(problem)})"
        ) from problem
    except errors.GatedRepoError as problem:
        raise kind(f"{address}: its owner gives it on request only; ask on its page, then {LOG_IN}") from problem
    except errors.RevisionNotFoundError as problem:
        raise kind(f"{address}: has no such revision; leave it out, or name a branch, tag or commit") from problem
    except errors.EntryNotFoundError as problem:
        if isinstance(problem, errors.LocalEntryNotFoundError):
            raise _unreachable(address, kind, problem.__cause__ or problem) from problem
        raise kind(f"{address}: does not hold the file that a Classifier is in, model.safetensors") from problem
    except errors.RepositoryNotFoundError as problem:
        raise kind(
            f"{address}: no such repository, or a private one; is the name right? Else {LOG_IN}"
        ) from problem
    except errors.OfflineModeIsEnabled as problem:
        raise kind(f"{address}: HF_HUB_OFFLINE is set; unset it to reach the hub") from problem
    except errors.HfHubHTTPError as problem:
        code = problem.response.status_code
        said = f"the hub answered {code} ({problem.server_message or _first_line(problem)})"
        advice = {401: LOG_IN, 403: f"this account may not; {LOG_IN}", 429: "wait a few minutes"}
        raise kind(f"{address}: {said}; {advice.get(code, 'try again later')}") from problem
    except VggkitError:
        raise
    except Exception as problem:  # its HTTP library's own, a full disk, a protocol that changed
        raise _unreachable(address, kind, problem) from problem
    finally:
        logger.setLevel(level)


def _unreachable(address: str, kind: type[VggkitError], problem: BaseException) -> VggkitError:
    host = _endpoint() or "https://huggingface.co"
    while problem.__cause__ is not None:
        problem = problem.__cause__
    said = f"{host} gave no answer that could be used ({_first_line(problem)})"
    return kind(f"{address}: {said}; see whether there is a network")


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(problem).__name__


def _reporting_bar(on_progress: Callable[[int, int], None]) -> type[Any]:
    """A tqdm that draws nothing and reports."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined, unused-ignore]

    class Bar(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.done = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call, unused-ignore]

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            on_progress(self.done, int(self.total or 0))

        def update_transfer(self, n: float) -> None:
            """The same bytes a second time, compressed, on their way."""

        def set_transfer_postfix_str(self, text: str) -> None:
            """Their speed."""

    return Bar
