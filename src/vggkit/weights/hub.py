"""The Hugging Face hub: Classifiers published with a model card and downloaded again, and single files.

The one place that uses huggingface_hub.

`HF_ENDPOINT`, `HF_TOKEN` and the hub's other variables hold as that package documents them. No torch here.
"""

import errno
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vggkit.errors import BadCheckpoint, BadDownload, BadOutput, MissingExtra, VggkitError
from vggkit.files import write_text
from vggkit.paths import is_offline
from vggkit.weights.card import find_card
from vggkit.weights.model_card import write_model_card

if TYPE_CHECKING:
    from vggkit.weights.model import Model

FILE: Final = "model.safetensors"
CARD: Final = "README.md"
ADDRESS: Final = re.compile(r"hf:/+([^@]*)(?:@([^@]+))?")
"""A pathlib.Path has one slash of the two."""
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""owner/name."""
LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token of huggingface.co/settings/tokens"


def push(
    classifier: "Model",
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "A Classifier from vggkit",
) -> str:
    """Publish a Classifier as `model.safetensors` and a model card, `README.md`, by one commit.

    Args:
        classifier: The Classifier to publish; its labels and its whole provenance go with it.
        repository: owner/name; made where there is none.
        private: Whether a new repository is its owner's alone.
        token: None: the one that `hf auth login` keeps, or HF_TOKEN.
        message: The commit's first line.

    Returns its web address. Raises BadOutput and MissingExtra.
    """
    if not isinstance(repository, str) or not REPOSITORY.fullmatch(repository):
        raise BadOutput(f"{repository!r}: is not a repository of the hub, which is owner/name")
    with tempfile.TemporaryDirectory(prefix="vggkit-") as folder:
        files = write_repository(classifier, Path(folder), repository=repository)
        return publish_files(repository, files, private=private, token=token, message=message)


def write_repository(
    classifier: "Model", folder: Path, *, repository: str = "owner/name"
) -> dict[str, Path | bytes]:
    """The files of a repository, in a folder that is made where there is none: by name, where each is.

    Args:
        classifier: The Classifier.
        folder: Where `model.safetensors` and the model card `README.md` are written.
        repository: The name that the card states in its examples.

    Raises BadOutput.
    """
    files = {FILE: folder / FILE, CARD: folder / CARD}
    classifier.save(files[FILE])
    write_text(files[CARD], write_model_card(classifier.card, repository=repository))
    return dict(files)


def read_name(given: str | Path, revision: str | None) -> str | Path:
    """What `from_pretrained` was given, as a place: `owner/name`, which is not there as a path, is an address.

    Raises BadCheckpoint for a revision of anything else.
    """
    spelled = _spell(given)
    if isinstance(given, str) and REPOSITORY.fullmatch(given) and not Path(given).exists():
        spelled = given = f"hf://{given}"
    if revision is None:
        return given
    if not is_address(spelled) or "@" in spelled:
        raise BadCheckpoint(f"{given}: revision={revision!r} is of a repository of the hub, owner/name")
    return f"{spelled}@{revision}"


def is_address(path: str | Path) -> bool:
    """Whether it is an address of the hub, hf://owner/name, and not a place on this machine."""
    return _spell(path).startswith("hf:/")


def pull(address: str | Path) -> Path:
    """The file of the Classifier at `hf://owner/name` or `hf://owner/name@revision`, in the hub's own cache.

    A file in that cache is used where the hub does not respond, and with `VGGKIT_OFFLINE=1`.

    Raises BadCheckpoint where that is not one of ours, BadDownload and MissingExtra.
    """
    found = ADDRESS.fullmatch(_spell(address))
    if found is None or not REPOSITORY.fullmatch(found[1]):
        raise BadCheckpoint(f"{address}: an address of the hub is hf://owner/name or hf://owner/name@revision")
    repository = found[1]
    cached, offline = is_cached(repository, FILE, revision=found[2]), is_offline()
    if not cached and offline:
        raise BadDownload(
            f"hf://{repository}: VGGKIT_OFFLINE is set, and the hub's cache on this machine does not hold it; "
            "unset VGGKIT_OFFLINE once, or load the file itself"
        )
    if not cached:  # one request first, because huggingface_hub retries for half a minute if no host responds
        look_at_file(repository, FILE, revision=found[2])
    path = bring_file(repository, FILE, revision=found[2], offline=offline)
    if find_card(path) is None:
        raise BadCheckpoint(
            f"hf://{repository}: contains weights, but not a Classifier of vggkit with its labels and "
            f"preprocessing; start from them with Classifier.create(weights={str(path)!r})"
        )
    return path


def _spell(address: str | Path) -> str:
    return address if isinstance(address, str) else address.as_posix()


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file on the hub, as the hub describes it."""

    commit: str
    """The commit that it is of, 40 hexadecimal digits."""
    sha256: str | None
    """Its SHA-256, 64 hexadecimal digits; None where it is small and git has its own digest."""


def look_at_file(repository: str, name: str, *, revision: str | None = None) -> HubFile:
    """The hub's description of the file `name` of `owner/name`; raises BadDownload and MissingExtra."""
    hub = _import_hub()
    with _explained(f"hf://{repository}", BadDownload):
        # One request without retries: another host or a user is waiting.
        found = hub.get_hf_file_metadata(
            hub.hf_hub_url(repository, name, revision=revision, endpoint=_endpoint()), endpoint=_endpoint()
        )
    if not found.commit_hash or not found.etag:
        raise BadDownload(
            f"hf://{repository}: {_endpoint() or 'the hub'} does not respond as a Hugging Face hub does"
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
        folder: Where to put it; None: the hub's own cache, which is used unchanged where the hub does not respond.
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
    """Read at each call; huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def _explained(address: str, kind: type[VggkitError]) -> Iterator[None]:
    """Errors of the hub's package, as one of ours with a one-line message."""
    # Its messages about retries would appear between our own lines.
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
            return f"access is on request only; request it on its page, then {LOG_IN}"
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
            message = problem.server_message or _first_line(problem)
            return f"the hub responded with {code} ({message}); {advice.get(code, 'try again later')}"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full; make room, or name another one in VGGKIT_HOME or HF_HOME"
        case _:  # its HTTP library's own, a protocol that changed
            while problem.__cause__ is not None:
                problem = problem.__cause__
            host = _endpoint() or "https://huggingface.co"
            message = f"{host} gave no response that could be used ({_first_line(problem)})"
            return f"{message}; see whether there is a network"


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(problem).__name__
