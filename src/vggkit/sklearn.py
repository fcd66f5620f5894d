"""VGG as an estimator of scikit-learn: `vk.sklearn.VGGClassifier`, for arrays of images.

Shape letters: N images, H height, W width, C channels, K classes.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vggkit.errors import BadInput, MissingExtra
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import FitMode
from vggkit.models.configuration import Head
from vggkit.training.recipe import Augmentation, Balance, Mirror, Optimizer, Precision, Schedule, Trainable
from vggkit.workflows.train import train

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as problem:
    raise MissingExtra.of("scikit-learn", "vggkit.sklearn", "train") from problem

OWN: Final = frozenset({"image_shape", "random_state", "verbose"})
"""Parameters that `vggkit.train` does not have, or has by another name."""


class VGGClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn carries no types
    """A VGG that is trained by `fit`, as scikit-learn's classifiers are.

    It works in `cross_val_score`, `GridSearchCV` and pipelines, can be cloned and pickled, and with an integer
    `random_state` two fits give the same predictions. `fit` is `vggkit.train` in a temporary folder: a share of the
    images is held out to choose the best epoch and the temperature of the probabilities.

    Images are an array (N, H, W) in grey or (N, H, W, C) with 1 or 3 channels, or 4 with `in_channels=4`. Rows of a
    table (N, F) are images, too: of `image_shape`, else square where F is a square number, else one pixel high.
    Values of type uint8 are 0 to 255; of any other type the least and the largest value of the training images
    become black and white.

    Args:
        model: A name of `vggkit.list_models()`.
        weights: `imagenet`, or a file of weights; None: random.
        blocks: Widths in place of the model's, such as `16/32/64`.
        head: fc, dense or pool; None: the model's, and pool for images below 128 pixels.
        until: Cut the network after this layer.
        image_shape: (H, W) or (H, W, C) of the images in the rows of a table.
        image_size: Height and width of the network's input in pixels; None: that of the images, rounded to 32.
        fit_mode: crop, pad or stretch, for images that are not square.
        in_channels: 3, 1 for a network on grey images, or 4.
        dropout: Chance in [0, 1).
        preset: A recipe by its name: quick, small-images, modern, paper or torchvision.
        trainable: Which layers are trained: head, top, all or gradual.
        epochs: Passes over the training images.
        batch_size: Images in a batch.
        optimizer: sgd, adamw or muon.
        learning_rate: The peak of the learning rate.
        momentum: In [0, 1).
        weight_decay: Of kernels and matrices.
        schedule: cosine, step, one-cycle or constant.
        warmup_epochs: Epochs in which the learning rate rises.
        ema_decay: Decay of a moving average of the weights, in (0, 1).
        patience: Epochs without a lower validation loss after which training stops.
        label_smoothing: In [0, 1).
        augmentation: none, shift or photo.
        mirror: none, random or alternating.
        random_erasing: Chance that a rectangle of an image is erased.
        mixup: Alpha of mixup.
        cutmix: Alpha of CutMix.
        balance: none, weights or sampling.
        validation_share: Share of each class that is held out, in (0, 1).
        precision: fp32, bf16, amp or auto.
        device: auto, cpu, cuda or mps.
        random_state: A number, for the same result at each fit; a `numpy.random.RandomState`; or None.
        verbose: Above 0: progress on standard error. Else warnings about the training are Python's, which can be
            filtered.

    The options are those of `vggkit.train`, where they are described in full; None leaves one to its choice.

    Attributes:
        classes_: The K classes, sorted, as they are in `y`.
        classifier_: The trained `vggkit.Classifier`, which has `save`, `explain`, `export` and other methods.
        history_: The record of each epoch.
        n_features_in_: Number of values of each row, where the images came as rows.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import cross_val_score
    >>> X, y = load_digits(return_X_y=True)
    >>> cross_val_score(VGGClassifier(blocks="16/32", random_state=0), X, y)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str = "vgg11_bn",
        *,
        weights: str | None = None,
        blocks: str | None = None,
        head: Head | None = None,
        until: str | None = None,
        image_shape: tuple[int, ...] | None = None,
        image_size: int | None = None,
        fit_mode: FitMode | None = None,
        in_channels: int | None = None,
        dropout: float | None = None,
        preset: str | None = None,
        trainable: Trainable | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: Optimizer | None = None,
        learning_rate: float | None = None,
        momentum: float | None = None,
        weight_decay: float | None = None,
        schedule: Schedule | None = None,
        warmup_epochs: float | None = None,
        ema_decay: float | None = None,
        patience: int | None = None,
        label_smoothing: float | None = None,
        augmentation: Augmentation | None = None,
        mirror: Mirror | None = None,
        random_erasing: float | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        balance: Balance | None = None,
        validation_share: float | None = None,
        precision: Precision | None = None,
        device: str = "auto",
        random_state: "int | np.random.RandomState | None" = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.weights = weights
        self.blocks = blocks
        self.head = head
        self.until = until
        self.image_shape = image_shape
        self.image_size = image_size
        self.fit_mode = fit_mode
        self.in_channels = in_channels
        self.dropout = dropout
        self.preset = preset
        self.trainable = trainable
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs
        self.ema_decay = ema_decay
        self.patience = patience
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation
        self.mirror = mirror
        self.random_erasing = random_erasing
        self.mixup = mixup
        self.cutmix = cutmix
        self.balance = balance
        self.validation_share = validation_share
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803 (scikit-learn's name)
        """Train on images.

        Args:
            X: Images (N, H, W[, C]), or rows (N, F).
            y: The class of each, (N,): numbers or texts.

        Returns itself. Raises BadInput and BadData, which are ValueErrors, where the images or the options do not
        fit; see `vggkit.train`.
        """
        images, targets = validate_data(self, X, y, ensure_min_samples=2, **_ACCEPTED)
        check_classification_targets(targets)
        self.classes_, numbers = np.unique(targets, return_inverse=True)
        if images.ndim > 2 and hasattr(self, "n_features_in_"):
            del self.n_features_in_  # the height, which predictions need not share
        self._pixel_range = _find_range(images)
        pixels = self._to_pixels(images)
        names = _name_classes(self.classes_)
        samples = [
            (None, ImageSample(f"image {number:06d}", names[target], each))
            for number, (each, target) in enumerate(zip(pixels, numbers, strict=True))
        ]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        options = {name: value for name, value in self.get_params(deep=False).items() if name not in OWN}
        with TemporaryDirectory(prefix="vggkit-") as folder, _collect_warnings(not self.verbose):
            run = train(
                ImageDataset.of("images of an array", samples),
                **options,
                seed=seed,
                out=Path(folder) / "run",
                quiet=not self.verbose,
                despite_findings=True,  # findings are warnings here, and end no search
            )
        self.classifier_, self.history_ = run.classifier, run.history
        order = {name: column for column, name in enumerate(run.classifier.labels)}
        self._columns = [order[name] for name in names]
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """The probability of each class, (N, K), in the order of `classes_`, for images as `fit` takes them."""
        check_is_fitted(self)
        images = validate_data(self, X, reset=False, **_ACCEPTED) if self._has_rows() else _check_images(X)
        labels = self.classifier_.labels
        column = {name: number for number, name in enumerate(labels)}
        found = np.empty((len(images), len(labels)))
        predictions = self.classifier_.predict(
            [ImageSample(f"image {number}", None, each) for number, each in enumerate(self._to_pixels(images))],
            top=len(labels),
            device=self.device,
        )
        for row, prediction in zip(found, predictions, strict=True):
            row[[column[name] for name in prediction.labels]] = prediction.probabilities
        in_order: NDArray[np.float64] = found[:, self._columns]
        return in_order

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The most probable class of each image, (N,), for images as `fit` takes them."""
        best = self.predict_proba(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def _has_rows(self) -> bool:
        return hasattr(self, "n_features_in_")

    def _to_pixels(self, images: NDArray[Any]) -> NDArray[np.uint8]:
        """Pixels (N, H, W, 3), or of four channels where the network reads them."""
        if images.ndim == 2:
            images = images.reshape(len(images), *_choose_shape(images.shape[1], self.image_shape))
        if images.ndim == 3:
            images = images[..., None]
        channels = images.shape[-1] if images.ndim == 4 else 0
        if channels not in (1, 3) and (channels, self.in_channels) != (4, 4):
            raise BadInput(
                "images are an array (N, H, W) or (N, H, W, C) with 1 or 3 channels, or 4 with in_channels=4; got "
                f"the shape {images.shape}"
            )
        low, high = self._pixel_range
        if images.dtype != np.uint8:
            scaled = (images.astype(np.float64) - low) / ((high - low) or 1.0)
            images = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
        return np.repeat(images, 3, axis=-1) if channels == 1 else images


_ACCEPTED: Final[dict[str, Any]] = {"dtype": "numeric", "allow_nd": True}
"""Arrays of any number of dimensions, of finite numbers."""


class _Collector(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())


@contextmanager
def _collect_warnings(wanted: bool) -> Iterator[None]:
    """Turn the training's warnings on standard error into Python's warnings."""
    if not wanted:
        yield
        return
    logger, collector = logging.getLogger("vggkit"), _Collector()
    logger.addHandler(collector)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.removeHandler(collector)
    for message in collector.messages:
        warnings.warn(message, UserWarning, stacklevel=4)


def _check_images(images: ArrayLike) -> NDArray[Any]:
    from sklearn.utils import check_array

    found: NDArray[Any] = check_array(images, **_ACCEPTED)
    return found


def _find_range(images: NDArray[Any]) -> tuple[float, float]:
    """The values that become black and white."""
    return (0.0, 255.0) if images.dtype == np.uint8 else (float(images.min()), float(images.max()))


def _choose_shape(count: int, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of the image in a row of `count` values."""
    if given is not None:
        if len(given) not in (2, 3) or int(np.prod(given)) != count:
            raise BadInput(f"image_shape must be (H, W) or (H, W, C) of {count} values in all; got {given}")
        return tuple(given)
    side = round(count**0.5)
    return (side, side) if side * side == count else (1, count)


def _name_classes(classes: NDArray[Any]) -> list[str]:
    """The classes as texts; by number where these would be empty or alike."""
    names = [str(each).strip() for each in classes]
    return names if all(names) and len(set(names)) == len(names) else [f"class {n}" for n in range(len(names))]
