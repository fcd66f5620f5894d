"""Published weights on this machine: found, or downloaded and checked. No torch here.

Torchvision's host first; the same values on the Hugging Face hub, as timm publishes them, when it
fails. Files are stored in `VGGKIT_HOME` (default: the platform's folder for caches); with
`VGGKIT_OFFLINE=1` the network is not used. `VGGKIT_TORCHVISION_HOST` and `HF_ENDPOINT`
name mirrors.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from vggkit.errors import BadCheckpoint, BadDownload, MissingExtra
from vggkit.files import move_file, take_turn
from vggkit.paths import find_home, is_offline
from vggkit.weights.downloads import check_digest, download, hash_file
from vggkit.weights.hub import bring_file, look_at_file
from vggkit.weights.published import PublishedWeights, Tag, find_published

HUB_FILE: Final = "model.safetensors"
"""The weights' name in every repository of the hub."""
LONGEST_SECONDS: Final = 6 * 3600.0
"""Longest wait for another process that downloads the same file."""


@dataclass(frozen=True, slots=True)
class FetchedWeights:
    """Published weights on this machine."""

    path: Path
    """The file."""
    dialect: Literal["torchvision", "timm"]
    """The dialect of its keys."""
    source: str
    """The address it came from, or that it was there already."""
    sha256: str
    """Digest of the whole file, 64 hexadecimal digits."""
    published: PublishedWeights
    """Metadata of the weights."""

    def to_dict(self) -> dict[str, Any]:
        """The entry in a Classifier's provenance."""
        known = self.published
        return {
            "published": f"{known.model}, {known.tag}",
            "source": self.source,
            "sha256": self.sha256,
            "licence": known.licence,
            "terms": known.terms,
        }


def fetch(
    model: str, *, tag: Tag = "imagenet", folder: str | Path | None = None, progress: bool = True
) -> FetchedWeights:
    """Published weights on this machine, downloaded if they are missing; about half a gigabyte.

    A file that lies in the folder under torchvision's own name or as `<model>.safetensors`, or in
    torch hub's cache, is used as it is. Else it comes from torchvision's host, and from the Hugging
    Face hub where that fails; one that breaks off leaves nothing. Processes that want the same file
    take turns, and one of them brings it.

    Args:
        model: A name of `list_models()`.
        tag: `imagenet`, or `features` (vgg16's trunk alone).
        folder: Where to look for and to store files; None: `find_home()`.
        progress: Show the download on standard error, and in a terminal its progress.

    Raises UnknownName, BadDownload (naming the response of each host, or offline which file to put where),
    and BadOutput where the folder cannot be written to.
    """
    record = find_published(model, tag=tag)
    home = Path(folder) if folder is not None else find_home()
    found = _find_here(record, home)
    if found is not None:
        return found
    offline = f"put {record.file} (from {record.url}) or {record.offline_file} into {home}"
    if is_offline():
        raise BadDownload(
            f"{record.model}: VGGKIT_OFFLINE is set, and its weights are not in {home}; {offline}, "
            "or unset VGGKIT_OFFLINE"
        )

    def report() -> None:
        if progress:
            sys.stderr.write(f"waiting for another process, which fetches {record.file}\n")

    with take_turn(home / f".{record.file}.lock", LONGEST_SECONDS, meanwhile=report):
        return _find_here(record, home) or _bring(record, home, offline, progress=progress)


def _bring(record: PublishedWeights, home: Path, offline: str, *, progress: bool) -> FetchedWeights:
    """The file from torchvision's host, else from the hub."""
    address, path = _address(record), home / record.file
    try:
        digest = download(address, path, digest_prefix=record.digest_prefix, progress=progress)
        return FetchedWeights(path, "torchvision", address, digest, record)
    except BadDownload as first:
        if record.hub_repository is None:
            raise BadDownload(f"{first}; {offline}") from first
        try:
            return _bring_from_hub(record, record.hub_repository, home, progress=progress)
        except (BadDownload, MissingExtra) as second:
            raise BadDownload(
                f"{record.model}: neither host gave its weights. First {first}. Then {second}. "
                f"If there is no network: {offline}"
            ) from second


def _bring_from_hub(record: PublishedWeights, repository: str, home: Path, *, progress: bool) -> FetchedWeights:
    """The hub's file, with the SHA-256 that the hub states, under the name that a user's file would have."""
    there = look_at_file(repository, HUB_FILE)
    folder = _hub_folder(repository, home)
    brought = bring_file(repository, HUB_FILE, revision=there.commit, folder=folder, progress=progress)
    digest = hash_file(brought)
    if there.sha256 not in (None, digest):
        shutil.rmtree(folder)
        raise BadDownload(
            f"hf://{repository}: a file came whose SHA-256 begins {digest[:8]}, and the hub states "
            f"{there.sha256[:8]}; it was deleted, try again"
        )
    path = home / record.offline_file
    move_file(brought, path)
    shutil.rmtree(folder)
    return FetchedWeights(path, _read_dialect(path), f"hf://{repository}@{there.commit}", digest, record)


def _address(record: PublishedWeights) -> str:
    host = os.environ.get("VGGKIT_TORCHVISION_HOST", "").rstrip("/")
    return f"{host}{urlsplit(record.url).path}" if host else record.url


def _find_here(record: PublishedWeights, home: Path) -> FetchedWeights | None:
    """The file where it is on this machine; raises BadDownload for one of that name that is not it."""
    if (path := home / record.file).is_file():
        digest = check_digest(path, record.digest_prefix)
        return FetchedWeights(path, "torchvision", f"{path}, which was there", digest, record)
    candidates = [home / record.offline_file]
    if record.hub_repository is not None:  # where version 0.1 stored the hub's files
        candidates.append(_hub_folder(record.hub_repository, home) / HUB_FILE)
    for path in candidates:
        if path.is_file():
            source = f"{path}, which was there"
            return FetchedWeights(path, _read_dialect(path), source, hash_file(path), record)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    path = Path(os.environ.get("TORCH_HOME") or cache).expanduser() / "hub" / "checkpoints" / record.file
    # A damaged file there belongs to another program, and is not removed.
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
