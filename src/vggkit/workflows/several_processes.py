"""A training run of several processes: the same inputs in each, and one run where torchrun starts them again."""

import hashlib
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.errors import VggkitError
from vggkit.images.dataset import ImageDataset
from vggkit.images.lazy_images import LazyImages
from vggkit.training.distributed.process_group import ProcessGroup
from vggkit.workflows.run_config import FILE_NAME, RunConfig

if TYPE_CHECKING:
    from vggkit.weights.model import Model


def demand_same_inputs(group: ProcessGroup, classifier: "Model", dataset: ImageDataset, config: RunConfig) -> None:
    """Raise BadInput where a process has other options, classes or images; all get the first one's weights."""
    if group.size == 1:
        return
    # Places may differ between machines; what is found there must not.
    options = replace(config, data="", teacher=None, network=replace(config.network, weights=None), found={})
    group.demand_equal(
        {
            **_describe_images(dataset),
            "options": json.dumps(asdict(options), sort_keys=True, default=str),
            "network": json.dumps(classifier.configuration.to_dict(), sort_keys=True),
            "preprocessing": json.dumps(classifier.preprocessing.to_dict(), sort_keys=True),
        }
    )
    state, _ = group.lead_tensors(lambda: (classifier.network.state_dict(), None))
    classifier.network.load_state_dict(state)


def demand_same_images(group: ProcessGroup, dataset: ImageDataset, *, epochs: int | None) -> None:
    """Raise BadInput where a process that continues a run has other images, or is to have other epochs."""
    if group.size > 1:
        group.demand_equal({"number of epochs": epochs, **_describe_images(dataset)})


def _describe_images(dataset: ImageDataset) -> dict[str, str]:
    """What must be the same of the images; their places may differ."""
    order = hashlib.sha256()
    for name, split in dataset.splits.items():
        if isinstance(split, LazyImages):
            order.update(split.digest_order().encode())
            continue
        for image in split:
            order.update(f"{name}/{image.label}/{Path(image.path).name}\n".encode(errors="surrogateescape"))
    images = {name: len(split) for name, split in dataset.splits.items()}
    return {
        "classes": ", ".join(dataset.labels),
        "number of images": ", ".join(f"{count} {name}" for name, count in images.items()),
        "images": dataset.fingerprint(),
        "order of images": order.hexdigest()[:16],
    }


def name_launch() -> str:
    """A name of the command of torchrun that started this process; the same when it starts them again."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{platform.node()}/{os.getppid()}"


def find_interrupted(out: str | Path | None, group: ProcessGroup) -> Path | None:
    """The folder of the run whose processes torchrun started again; None where it had no state yet.

    Args:
        out: The folder as it was named; None: a new one under `runs`.
        group: The processes.
    """
    if not group.restarts:
        return None

    def find() -> Path | None:
        if out is not None:
            return Path(out) if (Path(out) / "last.ckpt").is_file() else None
        written = sorted((path.stat().st_mtime, path) for path in Path("runs").glob(f"*/{FILE_NAME}"))
        for _, path in reversed(written):
            try:
                before = RunConfig.read(path).found.get("processes", {})
            except VggkitError:
                continue
            if before.get("launch") == name_launch() and (path.parent / "last.ckpt").is_file():
                return path.parent
        return None

    return group.lead(find)
