"""Images as tensors become a network's input, with gradients: the normalisation of `Preprocessing`, no resizing.

Shape letters: N images, C channels, H and W pixels.
"""

from typing import Final

import torch
from torch import Tensor

from vggkit.errors import BadConfiguration
from vggkit.images.preprocessing import Preprocessing

LUMINANCE: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601)."""


def normalize_images(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What the network reads, (N, C, H, W), of RGB images (N, 3, H, W) in [0, 1], in their type.

    Raises BadConfiguration for networks that read a fourth channel.
    """
    match preprocessing.channel_order:
        case "BGR":
            images = images.flip(1)
        case "L":
            weights = torch.tensor(LUMINANCE, device=images.device, dtype=images.dtype)
            images = (images * weights[:, None, None]).sum(1, keepdim=True)
        case "RGBX":
            raise BadConfiguration("this works on colour and grey images, and the network reads a fourth channel")
        case "RGB":
            pass
    mean, std = (
        torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (images * preprocessing.full_value - mean) / std
