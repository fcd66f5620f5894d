"""Classifiers on the Hugging Face hub: published with a model card, and brought back. No torch here."""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vggkit.errors import BadCheckpoint, BadDownload, BadOutput
from vggkit.paths import is_offline
from vggkit.weights.card import find_card
from vggkit.weights.hub import REPOSITORY, bring_file, is_cached, look_at_file, publish_files
from vggkit.weights.model_card import write_model_card

if TYPE_CHECKING:
    from vggkit.weights.model import Model

FILE: Final = "model.safetensors"
ADDRESS: Final = re.compile(r"hf:/+([^@]*)(?:@([^@]+))?")
"""A pathlib.Path has one slash of the two."""


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
        classifier: What to publish; its labels and its whole provenance go with it.
        repository: owner/name; made where there is none.
        private: Whether a new repository is its owner's alone.
        token: None: the one that `hf auth login` keeps, or HF_TOKEN.
        message: The commit's first line.

    Returns its web address. Raises BadOutput and MissingExtra.
    """
    if not isinstance(repository, str) or not REPOSITORY.fullmatch(repository):
        raise BadOutput(f"{repository!r}: is not a repository of the hub, which is owner/name")
    with tempfile.TemporaryDirectory(prefix="vggkit-") as folder:
        file = Path(folder) / FILE
        classifier.save(file)
        card = write_model_card(classifier.card, repository=repository)
        return publish_files(
            repository, {FILE: file, "README.md": card.encode()}, private=private, token=token, message=message
        )


def is_address(path: str | Path) -> bool:
    """Whether it is an address of the hub, hf://owner/name, and not a place on this machine."""
    return _spell(path).startswith("hf:/")


def pull(address: str | Path) -> Path:
    """The file of the Classifier at `hf://owner/name` or `hf://owner/name@revision`, in the hub's own cache.

    What that cache holds serves where the hub does not answer, and with `VGGKIT_OFFLINE=1`.

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
    if not cached:  # one question first, since huggingface_hub asks for half a minute where nobody answers
        look_at_file(repository, FILE, revision=found[2])
    path = bring_file(repository, FILE, revision=found[2], offline=offline)
    if find_card(path) is None:
        raise BadCheckpoint(
            f"hf://{repository}: holds weights, but not a Classifier of vggkit, which knows its labels and its "
            f"preprocessing; start from them with Classifier.create(weights={str(path)!r})"
        )
    return path


def _spell(address: str | Path) -> str:
    return address if isinstance(address, str) else address.as_posix()
