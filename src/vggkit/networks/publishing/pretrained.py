"""Published weights on this machine: found, or brought from their hosts and checked. No torch here.

Torchvision's host first; the same values on the Hugging Face hub, as timm publishes them, when it
fails. Files are kept in `VGGKIT_HOME` (default: the platform's folder for caches); with
`VGGKIT_OFFLINE=1` nothing is asked of the network. `VGGKIT_TORCHVISION_HOST` and `HF_ENDPOINT`
name mirrors.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from vggkit.errors import BadCheckpoint, BadDownload, MissingExtra
from vggkit.home import find_home, is_offline
from vggkit.networks.publishing.downloads import PATIENCE, check_digest, download, hash_file
from vggkit.networks.publishing.hub import bring_file, look_at_file
from vggkit.networks.publishing.published import PublishedWeights, Tag, find_published
from vggkit.writing import write_text

HUB_FILE: Final = "model.safetensors"
"""The weights' name in every repository of the hub."""


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """Published weights on this machine."""

    path: Path
    """The file."""
    dialect: Literal["torchvision", "timm"]
    """How its tensors are named."""
    source: str
    """The address it came from, or that it lay there already."""
    sha256: str
    """Digest of the whole file, 64 hexadecimal digits."""
    published: PublishedWeights
    """What is known about the weights."""

    def to_dict(self) -> dict[str, Any]:
        """What a Classifier's provenance tells of them."""
        known = self.published
        return {
            "published": f"{known.model}, {known.tag}",
            "source": self.source,
            "sha256": self.sha256,
            "licence": known.licence,
            "terms": known.terms,
        }


def fetch(
    model: str,
    *,
    tag: Tag = "imagenet",
    folder: str | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> FetchedWeights:
    """Published weights on this machine, brought here unless they are; about half a gigabyte.

    A file that lies in the folder under torchvision's own name or as `<model>.safetensors`, or in
    torch hub's cache, is used as it is. Else it comes from torchvision's host, and from the Hugging
    Face hub where that fails.

    Args:
        model: A name of `list_models()`.
        tag: `imagenet`, or `features` (vgg16's trunk alone).
        folder: Where to look and to keep; None: `find_home()`.
        on_progress: Called now and then with the bytes done and in all (0: unknown).

    Raises UnknownName, BadDownload (naming what each host answered, or offline what to put where),
    and BadOutput where the folder cannot be written to.
    """
    record = find_published(model, tag=tag)
    home = Path(folder) if folder is not None else find_home()
    found = _find_here(record, home)
    if found is not None:
        return found
    by_hand = f"put {record.file} (from {record.url}) or {record.offline_file} into {home}"
    if is_offline():
        raise BadDownload(
            f"{record.model}: VGGKIT_OFFLINE is set, and its weights are not in {home}; {by_hand}, "
            "or unset VGGKIT_OFFLINE"
        )
    address = _address(record)
    try:
        digest = download(
            address,
            home / record.file,
            digest_prefix=record.digest_prefix,
            at_most_bytes=record.at_most_bytes,
            on_progress=on_progress,
            patience=PATIENCE,
        )
        return FetchedWeights(home / record.file, "torchvision", address, digest, record)
    except BadDownload as first:
        if record.hub_repository is None:
            raise BadDownload(f"{first}; {by_hand}") from first
        try:
            return _fetch_from_hub(record, record.hub_repository, home, on_progress)
        except (BadDownload, MissingExtra) as second:
            raise BadDownload(
                f"{record.model}: neither host gave its weights. First {first}. Then {second}. "
                f"If there is no network: {by_hand}"
            ) from second


def _address(record: PublishedWeights) -> str:
    host = os.environ.get("VGGKIT_TORCHVISION_HOST", "").rstrip("/")
    return f"{host}{urlsplit(record.url).path}" if host else record.url


def _find_here(record: PublishedWeights, home: Path) -> FetchedWeights | None:
    """The file where it is on this machine; raises BadDownload for one of that name that is not it."""
    if (path := home / record.file).is_file():
        digest = check_digest(path, record.digest_prefix)
        return FetchedWeights(path, "torchvision", f"{path}, which was there", digest, record)
    if (path := home / record.offline_file).is_file():
        return FetchedWeights(path, _read_dialect(path), f"{path}, which was there", hash_file(path), record)
    if record.hub_repository is not None:
        path = _hub_folder(record.hub_repository, home) / HUB_FILE
        if path.is_file() and (noted := _read_note(path)):
            return FetchedWeights(
                path, "timm", _hub_source(noted), _check_note(path, noted, hash_file(path)), record
            )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    path = Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / record.file
    # A broken file there is another program's; it is left alone.
    if path.is_file() and (digest := hash_file(path)).startswith(record.digest_prefix):
        return FetchedWeights(path, "torchvision", f"{path}, which was there", digest, record)
    return None


def _read_dialect(path: Path) -> Literal["torchvision", "timm"]:
    """`timm` where the header of a safetensors file names its head, else `torchvision`."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(path.stat().st_size, 100_000_000):
                raise ValueError(f"a header of {size} bytes")
            keys = json.loads(file.read(size)).keys()
    except (OSError, ValueError, AttributeError, RecursionError) as problem:
        raise BadCheckpoint(f"{path}: is not a whole safetensors file ({problem})") from problem
    return "timm" if "head.fc.weight" in keys or "pre_logits.fc1.weight" in keys else "torchvision"


def _hub_folder(repository: str, home: Path) -> Path:
    return home / "hub" / repository.replace("/", "--")


def _hub_source(noted: Mapping[str, Any]) -> str:
    return f"hf://{noted['repository']}@{noted['commit']}"


def _fetch_from_hub(
    record: PublishedWeights, repository: str, home: Path, on_progress: Callable[[int, int], None] | None
) -> FetchedWeights:
    """The hub's file, compared with what the hub answered on first use."""
    folder = _hub_folder(repository, home)
    noted = _read_note(folder / HUB_FILE)
    there = look_at_file(repository, HUB_FILE)
    if noted and there.sha256:
        _check_note(folder / HUB_FILE, noted, there.sha256)
    path = bring_file(
        repository, HUB_FILE, revision=there.commit, folder=folder, on_progress=on_progress or (lambda _d, _t: None)
    )
    digest = hash_file(path)
    if there.sha256 not in (None, digest):
        path.unlink()
        raise BadDownload(
            f"hf://{repository}: a file came whose SHA-256 begins {digest[:8]}, and the hub itself says "
            f"{there.etag[:8]}; it was thrown away, try again"
        )
    if noted:
        _check_note(path, noted, digest)
    else:
        noted = {
            "repository": repository,
            "commit": there.commit,
            "etag": there.etag,
            "sha256": digest,
            "size_bytes": path.stat().st_size,
            "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_text(_note_of(path), json.dumps(noted, indent=2) + "\n")
    return FetchedWeights(path, "timm", _hub_source(noted), digest, record)


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_note(path: Path) -> dict[str, Any] | None:
    """What the hub answered on first use, noted beside its file."""
    try:
        noted = json.loads(_note_of(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise BadDownload(f"{_note_of(path)}: cannot be read ({problem}); delete it and run again") from problem
    if not isinstance(noted, dict) or not {"repository", "commit", "sha256", "recorded"} <= noted.keys():
        raise BadDownload(f"{_note_of(path)}: is not what was recorded there; delete it and run again")
    return noted


def _check_note(path: Path, noted: Mapping[str, Any], digest: str) -> str:
    """The digest, which must be the one of first use."""
    if digest != noted["sha256"]:
        raise BadDownload(
            f"{path}: its SHA-256 begins {digest[:8]} and was {noted['sha256'][:8]} on {noted['recorded'][:10]}, "
            f"when it first came from hf://{noted['repository']}; it changed under the same name and is refused. "
            f"If you trust the new one, delete {_note_of(path)} and {path.name}"
        )
    return digest
