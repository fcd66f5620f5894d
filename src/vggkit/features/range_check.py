"""Whether images have the range of values that a loss declares.

Shape letters: N images, C channels, H and W pixels.
"""

import warnings
from typing import Final

import torch
from torch import Tensor

from vggkit.errors import BadInput

RANGE_TOLERANCE: Final = 0.01
"""Share of the declared range that values may lie outside of it, as resizing makes them; values that all lie within
so small a share of it are suspicious.
"""


class RangeCheck:
    """Refuses images outside of a declared range, and warns, once, of images that seem to be of another one.

    Args:
        input_range: The declared range.
        checks_values: Look at the values too, not only at shape and type.
    """

    def __init__(self, input_range: tuple[float, float], *, checks_values: bool) -> None:
        self.input_range, self.checks_values = input_range, checks_values
        self._is_warned = False

    def __call__(self, images: Tensor, what: str) -> Tensor:
        """The images; raises BadInput.

        Args:
            images: (N, C, H, W), floating point.
            what: What they are called in an error, such as `the target`.
        """
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise BadInput(f"{what} must be a floating point tensor (N, C, H, W); got {found}")
        if images.is_inference():
            raise BadInput(
                f"{what} were made under torch.inference_mode(), where no gradient is recorded; use torch.no_grad()"
            )
        if self.checks_values and not torch.compiler.is_compiling() and images.numel():
            self._check_values(images.detach(), what)
        return images

    def _check_values(self, images: Tensor, what: str) -> None:
        low, high = self.input_range
        least, largest = (float(value) for value in torch.aminmax(images))
        declared = f"input_range=({low:g}, {high:g})"
        if not (least > -float("inf") and largest < float("inf")):  # NaN fails both
            raise BadInput(f"{what} hold values that are not finite")
        slack = RANGE_TOLERANCE * (high - low)
        if least < low - slack or largest > high + slack:
            raise BadInput(
                f"{what} lie in [{least:.4g}, {largest:.4g}], outside of {declared}; scale or clamp them, or "
                "declare the range that they have"
            )
        if self._is_warned:
            return
        doubt = ""
        if largest - least <= RANGE_TOLERANCE * (high - low):
            doubt = f"all values lie in [{least:.4g}, {largest:.4g}], a hundredth of the range"
        elif low < 0 <= least:
            doubt = "no value is below 0"
        if doubt:
            self._is_warned = True
            warnings.warn(f"{what} may be of another range than {declared}: {doubt}", UserWarning, stacklevel=5)
