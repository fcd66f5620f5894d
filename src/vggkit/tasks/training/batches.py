"""Training pictures in batches, in an order and in views that depend on the seed and the epoch alone.

Shape letters: N pictures, C channels, H and W pixels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vggkit.hardware import count_loaders, derive_seed
from vggkit.images.pictures import Picture
from vggkit.images.preprocessing import Preprocessing
from vggkit.tasks.training.augmentation import View

Visit = tuple[int, int]
"""Epoch and index of a picture: all that its view may depend on, beside the seed."""


class _Views(Dataset[tuple[Tensor, int]]):
    """A picture's view in an epoch, ready for the network, with the number of its class."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        labels: Sequence[str],
        preprocessing: Preprocessing,
        view: View,
        seed: int,
    ) -> None:
        self.pictures, self.preprocessing, self.view, self.seed = pictures, preprocessing, view, seed
        self.numbers = {label: number for number, label in enumerate(labels)}

    def __getitem__(self, visit: Visit) -> tuple[Tensor, int]:
        epoch, index = visit
        picture = self.pictures[index]
        # A view may be a small part, enlarged; where all is decoded, nothing is lost.
        least = None if self.preprocessing.least_side is None else 2 * self.preprocessing.crop_pixels
        pixels = self.view(picture.decode(least_side=least), derive_seed(self.seed, "view", epoch, index))
        return torch.from_numpy(self.preprocessing.normalize(pixels)), self.numbers[str(picture.label)]


class _Order(Sampler[list[Visit]]):
    """Every picture once an epoch, shuffled anew; a last single picture joins the batch before."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed, self.epoch = count, batch_size, seed, 1

    def __iter__(self) -> Iterator[list[Visit]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = [(self.epoch, index) for index in torch.randperm(self.count, generator=generator).tolist()]
        starts = range(0, self.count, self.batch_size)
        for start in starts[: len(self)]:
            last = start == starts[len(self) - 1]
            yield order[start:] if last else order[start : start + self.batch_size]

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        # Batch norm cannot learn from one picture whose map is 1×1.
        return max(1, full + (rest > 1 or (rest == 1 and self.batch_size == 1)))


class TrainingBatches:
    """Batches (images (N, C, H, W), classes (N,)) of each epoch."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        labels: Sequence[str],
        preprocessing: Preprocessing,
        view: View,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._order = _Order(len(pictures), batch_size, seed)
        workers = count_loaders(device)
        self._loader = DataLoader(
            _Views(pictures, labels, preprocessing, view, seed),
            batch_sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own draws stay out of the generator that dropout uses
        )

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self._order)

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of that epoch, counted from 1."""
        self._order.epoch = epoch
        yield from self._loader
