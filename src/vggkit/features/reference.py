"""What images are compared with: other images, or what a loss computed of them before.

Shape letters: N images, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reference:
    """What a loss compares images with, computed once by `PerceptualLoss.reference`."""

    content: Mapping[str, Tensor]
    """Values of each layer, as the loss compares them."""
    style: Mapping[str, Tensor]
    """Gram matrices (N, C, C) of each layer."""

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return replace(
            self,
            content={name: values.to(device) for name, values in self.content.items()},
            style={name: values.to(device) for name, values in self.style.items()},
        )


Compared = Tensor | Reference | None
"""What images are compared with."""
Pair = tuple[Compared, Compared]
"""What the layers of a config's `content` are compared with, and those of its `style`."""


def change_pair(compared: Pair, change: Callable[[Compared], Compared]) -> Pair:
    """Both of a pair, changed; where they are one they stay one."""
    first = change(compared[0])
    return first, first if compared[1] is compared[0] else change(compared[1])


def is_batch(compared: Compared) -> bool:
    """Whether images are compared with several, one each."""
    return isinstance(compared, Tensor) and len(compared) > 1


def take_images(compared: Compared, rows: slice) -> Compared:
    """Of some images of a batch; what is one for all stays."""
    if isinstance(compared, Reference):
        return replace(
            compared,
            content={name: _take_rows(values, rows) for name, values in compared.content.items()},
            style={name: _take_rows(values, rows) for name, values in compared.style.items()},
        )
    return None if compared is None else _take_rows(compared, rows)


def join_references(found: list[Reference]) -> Reference:
    """Those of several images as one; the list is emptied, so that memory holds them once."""
    if len(found) == 1:
        return found[0]
    content, style = [dict(each.content) for each in found], [dict(each.style) for each in found]
    found.clear()
    return Reference(_join(content), _join(style))


def _join(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Layer by layer, each of which is freed."""
    return {name: torch.cat([each.pop(name) for each in found]) for name in list(found[0])}


def _take_rows(values: Tensor, rows: slice) -> Tensor:
    return values if len(values) == 1 else values[rows]
