"""Datasets by name: torchvision's public ones, downloaded where there is a network, and scikit-learn's digits.

Shape letters: N images, C channels, H and W pixels.
"""

import errno
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError

import numpy as np
from numpy.typing import NDArray

from vggkit.errors import BadDownload, BadOutput, MissingExtra
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.decoding import Pixels
from vggkit.images.splits import divide
from vggkit.paths import find_home, is_offline


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A dataset of torchvision, with its names of the splits."""

    home: str
    """The class in torchvision.datasets."""
    splits: Mapping[str, Mapping[str, Any]]
    """The arguments of torchvision's class for each of our splits."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The arguments for every split."""
    is_checked: bool = True
    """Whether torchvision compares the digest of an existing file before it uses it."""


_TRAIN_OR_NOT: Final = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST: Final = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_VAL: Final = {"train": {"split": "train"}, "val": {"split": "val"}}
_ALL_THREE: Final = {**_TRAIN_VAL, "test": {"split": "test"}}

PUBLIC_SETS: Final[Mapping[str, PublicSet]] = {
    "cifar10": PublicSet("CIFAR10", _TRAIN_OR_NOT),
    "cifar100": PublicSet("CIFAR100", _TRAIN_OR_NOT),
    "country211": PublicSet(
        "Country211",
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
    ),
    "dtd": PublicSet("DTD", _ALL_THREE),
    "eurosat": PublicSet("EuroSAT", {"all": {}}),
    "fashion_mnist": PublicSet("FashionMNIST", _TRAIN_OR_NOT),
    "fgvc_aircraft": PublicSet("FGVCAircraft", _ALL_THREE, is_checked=False),
    "flowers102": PublicSet("Flowers102", _ALL_THREE),
    "food101": PublicSet("Food101", _TRAIN_TEST),
    "gtsrb": PublicSet("GTSRB", _TRAIN_TEST),
    "imagenette": PublicSet("Imagenette", _TRAIN_VAL, {"size": "320px"}),
    "kmnist": PublicSet("KMNIST", _TRAIN_OR_NOT),
    "mnist": PublicSet("MNIST", _TRAIN_OR_NOT),
    "oxford_pets": PublicSet("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "rendered_sst2": PublicSet("RenderedSST2", _ALL_THREE),
    "stl10": PublicSet("STL10", _TRAIN_TEST),
    "sun397": PublicSet("SUN397", {"all": {}}),
    "svhn": PublicSet("SVHN", _TRAIN_TEST),
    "usps": PublicSet("USPS", _TRAIN_OR_NOT, is_checked=False),
}
"""torchvision's data sets of whole images with one class each that it can download."""

DISK: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR})
"""Errors that are not the network's."""

PATIENCE_SECONDS: Final = 30.0
"""Longest wait for a host's response."""

ARCHIVES: Final = frozenset({".gz", ".tgz", ".zip", ".mat"})
"""Endings of files of an unfinished download that the next one may use: torchvision compares their digests."""

NAMES: Final = ("digits", *PUBLIC_SETS)
"""Every collection that has a name."""


def read_named(name: str) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of a collection of NAMES.

    Raises BadDownload where it cannot be downloaded, BadOutput where it cannot be stored, and MissingExtra.
    """
    return _read_digits() if name == "digits" else _read_public(name)


def _read_public(name: str) -> Iterator[tuple[str | None, ImageSample]]:
    """(Split, image) of one of torchvision's data sets, which is stored below `VGGKIT_HOME`."""
    public = PUBLIC_SETS[name]
    try:
        from torchvision import datasets
    except ImportError as problem:
        raise MissingExtra.of("torchvision", f"the data set {name}", "train") from problem
    kind = getattr(datasets, public.home)
    folder = find_home() / "data" / name
    if not folder.is_dir():
        _bring(name, kind, folder)
    for split, options in public.splits.items():
        with _explained(name, folder, f"delete {folder}, and it is downloaded again"):
            opened = kind(folder, **public.options, **options)
        for place, (file, pixels, label) in enumerate(_read(opened)):
            yield split, ImageSample(str(file or f"{name}/{split}/{place:06d}"), label, pixels)


def _bring(name: str, kind: Callable[..., Any], folder: Path) -> None:
    """Download a data set; its folder appears only when complete, since torchvision accepts incomplete ones."""
    public = PUBLIC_SETS[name]
    copying = f"copy {folder} from a machine that has it"
    if is_offline():
        raise BadDownload(
            f"the data set {name} is not in {folder}, and VGGKIT_OFFLINE is set; unset it once, or {copying}"
        )
    unfinished = folder.with_name(f"{name}.unfinished")
    with _explained(name, folder, f"with a network, try again; without one, {copying}"):
        unfinished.mkdir(parents=True, exist_ok=True)
        for file in unfinished.rglob("*"):
            if not file.is_dir() and not (public.is_checked and file.suffix in ARCHIVES):
                file.unlink()
        _remove_empty_folders(unfinished)
        for options in public.splits.values():
            kind(unfinished, **public.options, **options, download=True)
        unfinished.rename(folder)


def _remove_empty_folders(folder: Path) -> None:
    """Remove those below a folder, deepest first: torchvision recognises some data sets by their folders alone."""
    for inner in sorted(folder.rglob("*/"), reverse=True):
        if inner.is_dir() and not any(inner.iterdir()):
            inner.rmdir()


@contextmanager
def _explained(name: str, folder: Path, advice: str) -> Iterator[None]:
    """The errors of torchvision, in words for users; a host that stops responding counts as an error."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)  # torchvision has no timeout
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles are older than numpy's present rules.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            yield
    except ModuleNotFoundError as problem:
        package = str(problem.name).partition(".")[0]
        raise MissingExtra(f"the data set {name} needs {package}: pip install {package}") from problem
    except Exception as problem:  # the network's, the disk's, those of tar, zip, pickle and SciPy
        if isinstance(problem, OSError) and problem.errno in DISK:
            raise BadOutput(f"{folder}: cannot be written ({problem.strerror})") from problem
        raise BadDownload(f"the data set {name} cannot be downloaded ({_describe(problem)}); {advice}") from problem
    finally:
        socket.setdefaulttimeout(patience)


def _describe(problem: Exception) -> str:
    """One line."""
    if isinstance(problem, URLError) and not isinstance(problem, HTTPError):
        return str(problem.reason)
    message = " ".join(str(problem).split()) or type(problem).__name__
    # torchvision's message where the digest differs.
    return (
        "the downloaded file is damaged or is another file"
        if message == "File not found or corrupted."
        else message
    )


def _read(opened: Any) -> Iterator[tuple[Any, Pixels | None, str]]:
    """File or pixels, and class, of each image of torchvision's data set; nothing is decoded or copied."""
    classes = [label[0] if isinstance(label, tuple) else str(label) for label in getattr(opened, "classes", ())]

    def label_of(number: Any) -> str:
        return classes[int(number)] if classes else str(int(number))

    if pairs := _list_files(opened):
        for file, number in pairs:
            yield file, None, label_of(number)
        return
    numbers = opened.targets if hasattr(opened, "targets") else opened.labels
    for pixels, number in zip(_channels_last(np.asarray(opened.data)), numbers, strict=True):
        yield None, pixels, label_of(number)


def _list_files(opened: Any) -> list[tuple[Any, Any]]:
    """(File, class number) of each image, by torchvision's own names; empty where it holds pixels."""
    for files in ("_image_files", "_images"):
        if hasattr(opened, files):
            return list(zip(getattr(opened, files), opened._labels, strict=True))
    return list(getattr(opened, "samples", getattr(opened, "_samples", ())))


def _channels_last(held: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, 3) of (N, H, W), (N, 3, H, W) or (N, H, W, 3), without a copy."""
    if held.ndim == 3:
        return np.broadcast_to(held[..., None], (*held.shape, 3))
    return held if held.shape[-1] == 3 else held.transpose(0, 2, 3, 1)


def _read_digits() -> Iterator[tuple[str | None, ImageSample]]:
    """scikit-learn's 1,797 real handwritten digits, 8×8, in fixed splits of 70, 10 and 20 %."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as problem:
        raise MissingExtra.of("scikit-learn", "the digits", "train") from problem
    bunch = load_digits()
    # 17 levels of ink, 0 to 16, white on black as scikit-learn has them.
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    whole = ImageDataset.of(
        "digits",
        (
            (None, ImageSample(f"digits/{index:04d}", str(label), np.repeat(image[:, :, None], 3, axis=2)))
            for index, (image, label) in enumerate(zip(grey, bunch.target, strict=True))
        ),
    )
    # The test split is set apart first and never depends on a run's seed.
    held_out = divide(whole, validation_share=0.2, seed=0)
    rest = divide(whole.keep({"all": held_out.split("train")}), validation_share=0.125, seed=1)
    for name, split in (
        ("train", rest.split("train")),
        ("val", rest.split("val")),
        ("test", held_out.split("val")),
    ):
        for image in split:
            yield name, image
