"""Training images in batches, in an order and in views that depend on the seed and the epoch alone.

Threads prepare the next batches while the network computes. Decoding and resizing leave Python's lock
to others, so threads do on a GPU too, without the memory and the start of processes, and all of them
share the cache of decoded images.

Shape letters: N images, C channels, H and W pixels, K classes.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vggkit.hardware import count_threads, derive_seed, find_available_memory
from vggkit.images.dataset import ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.lazy_images import Advance, LazyImages
from vggkit.images.preprocessing import Preprocessing
from vggkit.task import Task
from vggkit.training.augmentation import View
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.objective import number_targets
from vggkit.training.recipe import Recipe

AHEAD: Final = 2
"""Number of batches that are prepared in advance."""
TIMED: Final = 8
"""Images by which the time to prepare one is measured."""
MEMORY_SHARE: Final = 1 / 8
"""Of the memory that is free: what decoded images may take."""


class TrainingBatches:
    """Batches (images (N, C, H, W), float32; targets) of each epoch, targets as for `Objective`.

    Args:
        images: The training images; each has a label.
        labels: Class names, in the order of their numbers.
        task: single-label or multi-label.
        preprocessing: The preparation of images for the network.
        view: How each image is seen.
        batch_size: Images a batch, of all processes together; a last single image joins the batch before, and so do
            so few that a process would have less than its least share.
        seed: Order and views depend on it and the epoch alone, not on the number of threads.
        device: Where the network learns; for CUDA the images are in pinned memory.
        sampling: Draw with replacement, every class equally often in expectation, in place of every
            image once.
        threads: That prepare images; None: half of the processors where these learn too, else all, 16 at
            most, divided among the processes of the machine.
        group: The processes that learn together, each of which has a part of every batch. Together they have the
            batches of one process alone, but for images of shards, whose order is one of each process's own.
        least_share: Images that each process has of a batch at least.
    """

    def __init__(
        self,
        images: Sequence[ImageSample],
        *,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        view: View,
        batch_size: int,
        seed: int,
        device: torch.device,
        task: Task = "single-label",
        sampling: bool = False,
        threads: int | None = None,
        group: ProcessGroup = SINGLE,
        least_share: int = 1,
    ) -> None:
        self._images, self._preprocessing, self._view = images, preprocessing, view
        self._batch_size, self._seed, self._sampling = batch_size, seed, sampling
        self._pinned = device.type == "cuda"
        assert batch_size % group.size == 0, "resolve_recipe refuses others"
        self.threads = threads or max(1, _choose_threads(device) // group.local_size)
        self._group, self._least = group, max(2, least_share * group.size)
        self._targets = number_targets(images, labels, task)
        self._held = _Held(len(images))

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        images: Sequence[ImageSample],
        *,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        device: torch.device,
        task: Task = "single-label",
        group: ProcessGroup = SINGLE,
        least_share: int = 1,
    ) -> Self:
        """The batches of a resolved recipe."""
        assert recipe.batch_size is not None, "the recipe is resolved"
        return cls(
            images,
            labels=labels,
            preprocessing=preprocessing,
            view=View.of(recipe, preprocessing),
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            device=device,
            task=task,
            sampling=recipe.balance == "sampling",
            group=group,
            least_share=least_share,
        )

    def __len__(self) -> int:
        """Batches an epoch."""
        return count_batches(len(self._images), self._batch_size, least=self._least)

    def count_images(self) -> int:
        """Images that this process prepares in an epoch."""
        return len(self._group.take_share(self._images))

    def size_of(self, number: int) -> int:
        """Images of an epoch's batch, counted from 0, of all processes."""
        first, last = number * self._batch_size, (number + 1) * self._batch_size
        return (len(self._images) if number == len(self) - 1 else last) - first

    def of_epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The process's part of the batches of an epoch, counted from 1, from batch number `start` on.

        Those before are not even read. Raises BadImage for an image that cannot be read.
        """
        order = self._draw_order(epoch)
        with self._follow(order[start * self._batch_size + self._group.rank :: self._group.size]) as advance:
            yield from self._prepare_batches(order, epoch, start, advance)

    def _follow(self, order: NDArray[np.int64]) -> AbstractContextManager[Advance | None]:
        """Brings the files of images that are stored elsewhere, as the epoch comes to them."""
        if isinstance(self._images, LazyImages) and not self._sampling and not self._held.is_complete():
            return self._images.follow(order)
        return nullcontext()

    def _prepare_batches(
        self, order: NDArray[np.int64], epoch: int, start: int, advance: Advance | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        ahead: deque[tuple[Tensor, Tensor, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="view") as pool:
            try:
                for step in range(start, len(self)):
                    if advance is not None:
                        own = self._batch_size // self._group.size
                        first = (step - start) * own
                        advance(first - len(ahead) * own, first + len(self._list_places(step)))
                    ahead.append(self._begin(pool, epoch, order, step))
                    if len(ahead) > AHEAD:
                        yield _finish(ahead.popleft())
                while ahead:
                    yield _finish(ahead.popleft())
            finally:
                for _, _, parts in ahead:
                    for part in parts:
                        part.cancel()

    def time_images(self) -> tuple[float, float]:
        """Seconds of one thread to prepare an image in the first epoch, and in later ones, by some images."""
        chosen = [place * len(self._images) // TIMED for place in range(TIMED)]
        started = time.perf_counter()
        prepared = [self._prepare(index) for index in chosen]
        decoded = time.perf_counter()
        for index, pixels in zip(chosen, prepared, strict=True):
            self._preprocessing.normalize(self._view.vary(pixels, seed=index))
        varied = time.perf_counter()
        stays = all(self._held.find(index) is not None for index in chosen)
        return (varied - started) / TIMED, (varied - (decoded if stays else started)) / TIMED

    def _list_places(self, step: int) -> range:
        """The places of an epoch's order whose images this process has of a batch: every P-th, of P processes."""
        first = step * self._batch_size
        return range(first + self._group.rank, first + self.size_of(step), self._group.size)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the images as they come in that epoch."""
        if isinstance(self._images, LazyImages) and not self._sampling:
            return self._draw_lazy_order(self._images, epoch)
        draws = np.random.default_rng(derive_seed(self._seed, "order", epoch))
        if not self._sampling:
            return draws.permutation(len(self._images))
        counts = np.bincount(self._targets)
        ends = np.cumsum(counts)
        drawn = draws.choice(np.flatnonzero(counts), len(self._images))
        within = draws.integers(counts[drawn])
        order: NDArray[np.int64] = np.argsort(self._targets, kind="stable")[ends[drawn] - counts[drawn] + within]
        return order

    def _draw_lazy_order(self, images: LazyImages, epoch: int) -> NDArray[np.int64]:
        """The same of images that are stored elsewhere: each process reads other files than the others.

        It is that of the processes with which the run began, so that others continue within an epoch.
        """
        processes = self._group.began_with or self._group.size
        counts = [len(range(rank, len(images), processes)) for rank in range(processes)]
        order = np.empty(len(images), np.int64)
        for rank, part in enumerate(images.draw_parts(seed=self._seed, epoch=epoch, counts=counts)):
            order[rank::processes] = part
        return order

    def _begin(
        self, pool: ThreadPoolExecutor, epoch: int, order: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor, list[Future[None]]]:
        """A batch that the threads begin to fill."""
        places, crop = np.array(self._list_places(step)), self._preprocessing.crop_pixels
        images = torch.empty((len(places), self._preprocessing.channels, crop, crop), pin_memory=self._pinned)
        rows, parts = images.numpy(), []
        for part in np.array_split(np.arange(len(places)), min(self.threads, len(places))):
            here = rows[part[0] : part[-1] + 1]
            parts.append(pool.submit(self._fill, here, epoch, order, places[part].tolist()))
        return images, torch.from_numpy(self._targets[order[places]]), parts

    def _fill(self, rows: NDArray[np.float32], epoch: int, order: NDArray[np.int64], places: Sequence[int]) -> None:
        """The views at these places of the epoch, ready for the network, into `rows` (N, C, H, W)."""
        crop = self._preprocessing.crop_pixels
        seen = np.empty((len(places), crop, crop, self._preprocessing.decoded_channels), np.uint8)
        for row, place in enumerate(places):
            index = int(order[place])
            seen[row] = self._view.vary(
                self._prepare(index),
                # By its position: an image that is sampled twice has two views.
                seed=derive_seed(self._seed, "view", epoch, place),
                mirrored=self._choose_side(epoch, index),
            )
        # One above the other they are one tall image: many small ones are scaled at once.
        tall = self._preprocessing.normalize(seen.reshape(-1, crop, seen.shape[-1]))
        rows[...] = tall.reshape(-1, len(places), crop, crop).swapaxes(0, 1)

    def _prepare(self, index: int) -> Pixels:
        """The part of an image's preparation that is the same in every epoch."""
        held = self._held.find(index)
        if held is not None:
            return held
        image = self._images[index]
        # A view may be a small part, enlarged; where all is decoded, nothing is lost.
        least = None if self._preprocessing.least_side is None else 2 * self._preprocessing.crop_pixels
        pixels = self._view.prepare(image.decode(least_side=least, channels=self._preprocessing.decoded_channels))
        if pixels is not image.pixels:
            self._held.hold(index, pixels)
        return pixels

    def _choose_side(self, epoch: int, index: int) -> bool | None:
        """Whether the image is mirrored in that epoch, where it alternates: first either way, then the other."""
        if self._view.mirror != "alternating":
            return None
        return (derive_seed(self._seed, "side", index) + epoch) % 2 == 1


def count_batches(images: int, batch_size: int, *, least: int = 2) -> int:
    """Batches an epoch of so many images; fewer last ones than `least` join the batch before."""
    full, rest = divmod(images, batch_size)
    # Batch norm cannot train on one image whose map is 1×1, and no process on none.
    return max(1, full + (rest >= least))


class _Held:
    """A cache of decoded images, used only if all of them fit in a share of the free memory."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pixels: dict[int, Pixels] = {}
        self._taken = 0
        available = find_available_memory()
        self._most = 0 if available is None else int(available * MEMORY_SHARE)
        self._lock = threading.Lock()

    def is_complete(self) -> bool:
        """Whether it holds every image, so that none is read again."""
        return len(self._pixels) == self._count

    def find(self, index: int) -> Pixels | None:
        return self._pixels.get(index)

    def hold(self, index: int, pixels: Pixels) -> None:
        if self._most == 0:
            return
        # A part of a larger image would keep the whole of it.
        pixels = pixels if pixels.base is None else pixels.copy()
        with self._lock:
            if self._most == 0 or index in self._pixels:
                return
            self._pixels[index] = pixels
            self._taken += pixels.nbytes
            # The first few, in random order, give an estimate of the size of the others.
            if self._taken * self._count > self._most * max(min(32, self._count), len(self._pixels)):
                self._most = 0
                self._pixels = {}


def _choose_threads(device: torch.device) -> int:
    available = count_threads()
    return max(1, min(16, available // 2 if device.type == "cpu" else available))


def _finish(batch: tuple[Tensor, Tensor, list[Future[None]]]) -> tuple[Tensor, Tensor]:
    images, classes, parts = batch
    for part in parts:
        part.result()
    return images, classes
