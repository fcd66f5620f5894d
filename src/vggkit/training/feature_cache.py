"""The features of images below the last layer, computed once and cached on disk.

They are looked up by the content of an image and not by its name. A store is a folder of segments. A segment is
one .npy file of records, mapped into memory and written whole, so that processes side by side, and a kill in the
middle, do no harm.

Shape letters: N images, V views of each, C channels, F features.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.info import explain_choice
from vggkit.engines.model_weights import NetworkWeights
from vggkit.engines.select import choose_engine
from vggkit.engines.stream import Engine, stream_rows
from vggkit.errors import BadImage, BadInput, BadOutput
from vggkit.files import whole_file
from vggkit.hardware import computes_bf16, derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels, decode
from vggkit.images.lazy_images import stream_images
from vggkit.models.vgg import VGG
from vggkit.paths import find_home
from vggkit.training.augmentation import View
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.objective import number_targets
from vggkit.training.recipe import Recipe
from vggkit.weights.model import Model

FORMAT: Final = 1
"""Incremented when the same images and weights give different features."""
SEGMENT_ROWS: Final = 1_000
"""Rows that are written together."""
SEGMENT_SECONDS: Final = 30.0
"""Longest time that a computed row waits for others before it is written."""
LIMIT: Final = 10 * 2**30
"""Largest size of all stores in bytes; beyond it, the least recently used are removed."""
TOGETHER: Final = 32
"""Views that pass through the network together."""


class FeatureStore:
    """Rows (F,) by the digest of an image's content and the number of the view; one writer, many readers.

    Args:
        key: Digest of everything else that the rows depend on; it names the folder.
        width: F.
    """

    def __init__(self, key: str, *, width: int) -> None:
        self.folder = find_home() / "features" / key
        self.problem: str | None = None
        """The reason why nothing more is written; None while rows are written."""
        self._kind = np.dtype([("picture", "V32"), ("view", "<u4"), ("row", "<f4", (width,))])
        self._rows: dict[tuple[bytes, int], NDArray[np.float32]] = {}
        self._pending: list[tuple[bytes, int, NDArray[np.float32]]] = []
        self._written = time.monotonic()
        self._open()

    def find(self, image: bytes, view: int) -> NDArray[np.float32] | None:
        """The row of a view of the image of that SHA-256; safe from several threads."""
        return self._rows.get((image, view))

    def keep(self, image: bytes, view: int, row: NDArray[np.float32]) -> None:
        """Remember a row, and write it before long."""
        if (image, view) in self._rows:
            return
        self._rows[image, view] = row
        self._pending.append((image, view, row))
        if len(self._pending) >= SEGMENT_ROWS or time.monotonic() - self._written > SEGMENT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows. If that fails, `problem` gives the reason, and the rows are in memory only."""
        self._written = time.monotonic()
        if not self._pending or self.problem is not None:
            return
        records = np.array(self._pending, self._kind)
        try:
            with whole_file(self.folder / f"{secrets.token_hex(8)}.npy") as beside, open(beside, "wb") as file:
                np.save(file, records, allow_pickle=False)
        except BadOutput as problem:
            self.problem = str(problem)
        self._pending.clear()

    def _open(self) -> None:
        """Map every complete segment; other files are ignored."""
        try:
            paths = sorted(self.folder.glob("*.npy"))
        except OSError:
            return
        for path in paths:
            try:
                records = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):
                continue
            if records.dtype != self._kind or records.ndim != 1:
                continue
            rows = records["row"]
            marks = zip(records["picture"].tolist(), records["view"].tolist(), strict=True)
            self._rows.update((mark, rows[number]) for number, mark in enumerate(marks))
        with suppress(OSError):  # a new one has no folder yet
            os.utime(self.folder)
        with suppress(OSError):
            remove_oldest(self.folder.parent, spare=self.folder)


def remove_oldest(folder: Path, *, spare: Path, limit: int = LIMIT) -> None:
    """Remove the stores in a folder that were opened the longest time ago, until the rest fits; but `spare`."""
    stores = [entry for entry in folder.iterdir() if entry.is_dir()]
    sizes = {store: sum(file.stat().st_size for file in store.iterdir()) for store in stores}
    total = sum(sizes.values())
    for store in sorted(stores, key=lambda store: store.stat().st_mtime):
        if total <= limit:
            return
        if store != spare:
            shutil.rmtree(store, ignore_errors=True)
            total -= sizes[store]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The input of the last layer for images, the V views of an image one after another."""

    rows: NDArray[np.float32]
    """(N V, F)."""
    targets: NDArray[Any]
    """(N V,) numbers of classes, int64; multi-label (N V, K) with 0 or 1 for each, float32."""
    groups: NDArray[np.int64]
    """(N V,) equal numbers for views of one image, of equal files, and of images of one group."""
    found: int
    """Number of rows that were found in the cache."""
    engine: str | None
    """The engine that computed the others, with the reason for it; None where all were found."""


def extract_features(
    classifier: Model,
    images: Sequence[ImageSample],
    *,
    recipe: Recipe,
    device: torch.device,
    precision: Literal["fp32", "bf16", "auto"],
    views: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    log: Callable[[str], None] | None = None,
    group: ProcessGroup = SINGLE,
) -> Features:
    """Features of labelled images: each view passes the layers below the last one once in all runs.

    They are cached in the folder of `find_home`, by the network below its last layer, the preprocessing, the
    precision and, for augmented views, what draws them. An image is known by its bytes: one added to a
    folder costs only itself, and a renamed one nothing.

    Args:
        classifier: Its network below the last layer, its preprocessing and its labels count.
        images: N of them, each of a class the Classifier knows.
        recipe: Resolved; how augmented views are drawn.
        device: Where to compute.
        precision: auto: bf16 where that is fast.
        views: V; the first is as when predicting, the others are augmented.
        on_progress: Called with the number of images done and of all.
        log: Called with messages, as sentences.
        group: The processes; each computes and caches its part of the images, and the first one gets the features
            of all of them, the others none.

    Raises BadImage for an image that cannot be read, BadInput where the network's values overflow, and
    MissingExtra where views need torchvision.
    """
    log = log or (lambda sentence: None)
    source = _Source(classifier, recipe, views)
    chosen: Literal["fp32", "bf16"] = "fp32"
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        chosen = "bf16"
    stores = source.open_stores(f"{chosen} on {device.type}")
    # Without anything to compute no engine is built.
    engine = _LateEngine(classifier.network, device, "auto" if precision == "auto" else chosen)
    share = group.take_share(images)
    rows = np.empty((len(share) * views, source.width), np.float32)
    marks: list[bytes | str] = []
    found = len(rows)

    def prepare(thing: tuple[int, ImageSample]) -> tuple[list[NDArray[np.float32]], tuple[bytes, list[int]]]:
        return source.prepare(thing[1], stores)

    together = max(1, TOGETHER // views)
    try:
        for (place, image), (content, missing), computed in stream_rows(
            engine, enumerate(stream_images(share)), prepare, batch_size=together
        ):
            for view, row in zip(missing, computed, strict=True):
                if overflow := describe_overflow(row):
                    raise BadInput(f"{image.path}: {overflow}")
                stores[view].keep(content, view, row)
            for view, store in enumerate(stores):
                row = store.find(content, view)
                assert row is not None, "it was found or just stored"
                rows[place * views + view] = row
            found -= len(missing)
            marks.append(content if image.group is None else image.group)
            if on_progress:
                on_progress(place + 1, len(share))
    finally:
        for store in stores:
            store.flush()
    if problem := next((store.problem for store in stores if store.problem), None):
        log(f"features are not cached for later runs: {problem}")
    parts = group.gather((rows, marks, found, engine.description))
    if not parts:
        none = np.empty(0, np.int64)
        return Features(rows[:0], none, none, 0, None)
    if len(parts) > 1:
        rows = np.concatenate([part[0] for part in parts])
    found = sum(part[2] for part in parts)
    description = next((part[3] for part in parts if part[3]), None)
    kind = "images" if views == 1 else "views of images"
    if found:
        log(f"features of {found:,} of {len(rows):,} {kind} were found in the cache")
    if description:
        log(f"features of {len(rows) - found:,} {kind} computed by {description}")
    _, groups = np.unique([str(mark) for part in parts for mark in part[1]], return_inverse=True)
    targets = np.repeat(number_targets(images, classifier.labels, classifier.task), views, axis=0)
    return Features(rows, targets, np.repeat(groups.astype(np.int64), views), found, description)


class _LateEngine:
    """The engine, chosen when there is something to compute."""

    def __init__(self, network: VGG, device: torch.device, precision: Literal["fp32", "bf16", "auto"]) -> None:
        self._network, self._device = network, device
        self._precision: Literal["fp32", "bf16", "auto"] = precision
        self._engine: Engine | None = None
        self.description: str | None = None

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._engine is None:
            weights = NetworkWeights(self._network, pixels=batch.shape[2])
            engine = choose_engine(weights, self._device, output="features", precision=self._precision)
            self._engine = engine
            self.description = explain_choice(engine.info, precision=self._precision, engine="auto")
        return self._engine.run(batch)


class _Source:
    """The source of features: it makes the views, and knows what they depend on."""

    def __init__(self, classifier: Model, recipe: Recipe, views: int) -> None:
        self.network, self.preprocessing = classifier.network, classifier.preprocessing
        self.recipe, self.views = recipe, views
        self.width = classifier.configuration.fully_connected[-1].in_features
        self._view = View.of(recipe, self.preprocessing) if views > 1 else None

    def open_stores(self, precision: str) -> list[FeatureStore]:
        """The store of each view: one for the view as when predicting, which every recipe shares, and one more."""
        base = {
            "format": FORMAT,
            "network": _describe_frozen(self.network),
            "weights": _digest_frozen(self.network),
            "preprocessing": self.preprocessing.to_dict(),
            "precision": precision,
        }
        first = FeatureStore(_digest(base), width=self.width)
        if self.views == 1:
            return [first]
        drawn = ("augmentation", "mirror", "rand_augment", "random_erasing", "seed")
        augmented = base | {name: getattr(self.recipe, name) for name in drawn}
        return [first, *[FeatureStore(_digest(augmented), width=self.width)] * (self.views - 1)]

    def prepare(
        self, image: ImageSample, stores: Sequence[FeatureStore]
    ) -> tuple[list[NDArray[np.float32]], tuple[bytes, list[int]]]:
        """Inputs (C, H, W) of the views whose features are not known; the image's digest and those views."""
        try:
            data = None if image.pixels is not None else image.read()
            content = _digest_content(image, data)
            missing = [view for view, store in enumerate(stores) if store.find(content, view) is None]
            if not missing:
                return [], (content, missing)
            least, channels = self.preprocessing.least_side, self.preprocessing.decoded_channels
            if data is None:
                pixels = image.decode(channels=channels)
            else:
                pixels = decode(data, name=image.path, least_side=least, channels=channels)
        except BadImage as problem:
            raise BadImage(f"{problem}; it could be read when the training began") from problem
        return [self._see(pixels, content, view) for view in missing], (content, missing)

    def _see(self, pixels: Pixels, content: bytes, view: int) -> NDArray[np.float32]:
        """The input for a view of an image; its random numbers depend on seed, content and view alone."""
        if view == 0 or self._view is None:
            return self.preprocessing.normalize(self.preprocessing.fit(pixels))
        seed, name = self.recipe.seed, content.hex()
        # The view as when predicting is not mirrored; the next is, and so in turn.
        mirrored = view % 2 == 1 if self.recipe.mirror == "alternating" else None
        seen = self._view(pixels, seed=derive_seed(seed, "view", name, view), mirrored=mirrored)
        return self.preprocessing.normalize(seen)


def _describe_frozen(network: VGG) -> dict[str, Any]:
    """The configuration without its last layer and its dropout."""
    configuration = network.configuration
    ranks = configuration.ranks and (*configuration.ranks[:-1], None)
    return replace(configuration, num_classes=1, dropout=0.0, ranks=ranks).to_dict()


def _digest_frozen(network: VGG) -> str:
    """Of every weight below the last layer."""
    last = f"classifier.{network.configuration.fully_connected[-1].index}."
    found = hashlib.sha256()
    for key, value in network.state_dict().items():
        if not key.startswith(last) and not key.endswith("num_batches_tracked"):
            found.update(f"{key} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().float().contiguous().numpy().data)
    return found.hexdigest()


def _digest_content(image: ImageSample, data: bytes | None) -> bytes:
    """SHA-256 of the file's bytes, or of the pixels in memory."""
    if data is not None:
        return hashlib.sha256(data).digest()
    assert image.pixels is not None, "an image has bytes or pixels"
    return hashlib.sha256(f"{image.pixels.shape}".encode() + image.pixels.tobytes()).digest()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
