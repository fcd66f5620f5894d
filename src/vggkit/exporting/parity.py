"""The check of an exported program: its own runtime must give the Classifier's probabilities.

Torch is imported to compute the reference. Shape letters: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.graph_builder import describe_overflow
from vggkit.engines.model_weights import Weights
from vggkit.engines.select import choose_engine
from vggkit.errors import BadInput, BadOutput
from vggkit.exporting.plan import ExportPlan, StoredPrecision
from vggkit.images.decoding import Pixels
from vggkit.images.resizing import resize
from vggkit.task import Activation, Task, decide

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""A program: its first output for images (N, H, W, C)."""
TOGETHER: Final = 3
"""The larger batch size."""
SHARE: Final[dict[StoredPrecision, float]] = {"fp32": 1e-4, "fp16": 1e-2, "int8": 5e-2}
"""Largest difference of logits that is accepted, as a share of their range from the least to the largest."""
LEVELS: Final = 2
"""Largest difference of a pixel, in levels of 255, from Pillow's or fast_image_resize's resizing."""
WIDER_PIXELS: Final = (19, 45)
"""By how much the second size of images is higher and wider."""
_LEAST_PROBABILITY: Final = 1e-12
"""The lower bound of probabilities before the logarithm, which has few digits in float32 below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The result of checking an exported program."""

    runtime: str
    """The library that ran the file, and its version."""
    images: str
    """The images: how many, and whether the caller's."""
    predictions: int
    """Number of predictions, over all sizes and batches."""
    batch_sizes: tuple[int, ...]
    """Batch sizes."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths in pixels of the program's input."""
    agreement: float
    """Share in [0, 1] of predictions with the same most probable class."""
    difference: float
    """Largest difference of a probability from the Classifier's, which PyTorch computes in float32."""
    logit_difference: float
    """Largest difference of a logit; probabilities determine logits up to a constant of each image."""
    tolerance: float
    """Largest accepted difference of a logit."""
    resizing_levels: int | None = None
    """If the program resizes: largest difference of a pixel from `predict`'s, in levels of 255."""
    resizing_share: float | None = None
    """Share in [0, 1] of these values that differ."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        sizes = " and ".join(f"{height}×{width}" for height, width in self.sizes)
        lines = [
            f"checked with {self.runtime} on {self.images} of {sizes} pixels, "
            f"{' and '.join(map(str, self.batch_sizes))} at a time",
            f"  same class for {self.agreement:.1%}; probabilities differ by {self.difference:.1e} at most, "
            f"logits by {self.logit_difference:.1e} (tolerance {self.tolerance:.1e})",
        ]
        if self.resizing_levels is not None:
            lines.append(
                f"  resized pixels differ from those of predict by {self.resizing_levels} of 255 levels at most, "
                f"in {self.resizing_share:.1%} of values"
            )
        return "\n".join(lines)


def check_parity(
    run: Run,
    weights: Weights,
    plan: ExportPlan,
    images: Sequence[Pixels],
    *,
    runtime: str,
    name: str,
    fit: Run | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Parity:
    """Compare a program with the network that it was written from.

    Args:
        run: The program.
        weights: The network.
        plan: The program's plan.
        images: Images (H, W, C) of any sizes, one at least.
        runtime: The runtime's name and version.
        name: A description of the images, for the record.
        fit: For a program that resizes: its resized and cropped images (N, C, H, W).
        on_progress: Called with the number of images done and of all.

    Raises BadOutput where they differ by more than the tolerance, and BadInput for a network whose values overflow.
    """
    exact = choose_engine(weights, "cpu", output="logits", precision="fp32", engine="pytorch")
    preprocessing, card = plan.card.preprocessing, plan.card
    batches = list(_list_batches(plan, images))
    total, done, same = sum(map(len, batches)), 0, 0
    difference = logit_difference = reach = 0.0
    levels = _Levels()
    for batch in batches:
        fitted = batch if fit is None else levels.measure(batch, fit(batch), plan)
        logits = exact.run(np.stack([preprocessing.normalize(each) for each in fitted])) / card.temperature
        if (problem := describe_overflow(logits)) is not None:
            raise BadInput(f"the network cannot be exported: {problem}")
        expected, found = Activation(card.task)(logits), run(batch)
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise BadOutput(
                f"the exported program was not kept: it gives {found.shape}, or values that are not finite"
            )
        one, other = (_find_logits(each, card.task) for each in (expected, found))
        difference = max(difference, float(np.abs(expected - found).max()))
        logit_difference = max(logit_difference, float(np.abs(one - other).max()))
        # The sigmoid of a logit depends on its distance from zero.
        spread = np.ptp(logits, axis=1) if card.task == "single-label" else 2 * np.abs(logits)
        reach = max(reach, float(spread.max()))
        if card.task == "multi-label":
            same += int((decide(expected, card.thresholds) == decide(found, card.thresholds)).all(1).sum())
        else:
            same += int((expected.argmax(1) == found.argmax(1)).sum())
        done += len(batch)
        if on_progress is not None:
            on_progress(done, total)
    tolerance = SHARE[plan.precision] * reach + 1e-6  # the rounding of a probability in float32
    if logit_difference > tolerance:
        raise BadOutput(
            f"the exported program was not kept: its logits differ from the Classifier's by "
            f"{logit_difference:.1e}, more than {tolerance:.1e} ({runtime}, {name})"
        )
    return Parity(
        runtime=runtime,
        images=name,
        predictions=total,
        batch_sizes=tuple(sorted({len(batch) for batch in batches})),
        sizes=tuple(dict.fromkeys((batch.shape[1], batch.shape[2]) for batch in batches)),
        agreement=same / total,
        difference=difference,
        logit_difference=logit_difference,
        tolerance=tolerance,
        resizing_levels=None if fit is None else levels.largest,
        resizing_share=None if fit is None else levels.share,
    )


def _find_logits(probabilities: NDArray[Any], task: Task) -> NDArray[np.float64]:
    """Logits up to a constant that gave probabilities, as far as these tell them apart."""
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), _LEAST_PROBABILITY))
    if task == "single-label":
        return logs
    # In float32 a sigmoid near 1 has too few digits to tell its logit.
    rest: NDArray[np.float64] = np.log(np.maximum(1 - probabilities.astype(np.float64), 1e-2))
    return np.where(probabilities > 0.99, -rest, logs - rest)


class _Levels:
    """The differences of pixels that a program resized from those of `Preprocessing.fit`."""

    def __init__(self) -> None:
        self.largest, self._differing, self._values = 0, 0, 0

    @property
    def share(self) -> float:
        return self._differing / max(self._values, 1)

    def measure(self, batch: NDArray[np.uint8], fitted: NDArray[np.float32], plan: ExportPlan) -> NDArray[np.uint8]:
        """The program's images (N, H, W, C); raises BadOutput where they differ too much."""
        pixels = np.ascontiguousarray(fitted.transpose(0, 2, 3, 1)).astype(np.uint8)
        ours = np.stack([plan.card.preprocessing.fit(each) for each in batch])
        apart = np.abs(pixels.astype(np.int16) - ours)
        self.largest = max(self.largest, int(apart.max()))
        self._differing += int(np.count_nonzero(apart))
        self._values += apart.size
        if self.largest > LEVELS:
            raise BadOutput(
                f"the exported program was not kept: pixels that it resizes differ from Pillow's by {self.largest} "
                f"of 255 levels, more than {LEVELS}; export without resize, and resize with Pillow"
            )
        return pixels


def _list_batches(plan: ExportPlan, images: Sequence[Pixels]) -> Iterator[NDArray[np.uint8]]:
    """One image alone and the others in batches, at each size; with `resize`, images in their own sizes."""
    if plan.resize:
        for pixels in images:
            yield pixels[None]
        yield np.stack([images[0], images[0][:, ::-1], images[0][::-1]])
        return
    side = plan.crop_pixels
    sizes = [(side, side)]
    if plan.is_dynamic:
        sizes.append((side + WIDER_PIXELS[0], side + WIDER_PIXELS[1]))
    for height, width in sizes:
        fitted = [
            plan.card.preprocessing.fit(pixels)
            if (height, width) == (side, side)
            else resize(pixels, (width, height), "bilinear")
            for pixels in images
        ]
        fitted += [fitted[0][:, ::-1], fitted[0][::-1]][: max(0, TOGETHER + 1 - len(fitted))]
        yield np.stack(fitted[:1])
        for first in range(1, len(fitted), TOGETHER):
            yield np.stack(fitted[first : first + TOGETHER])
