"""The first convolution from the training images themselves: it whitens their patches, and is not trained.

The kernels are the principal directions of patches of the prepared images, each divided by the standard deviation
along it, so that the maps have unit variance and are not correlated; each occurs with both signs, as the ReLU keeps
one side only. Coates, Lee and Ng 2011, "An analysis of single-layer networks in unsupervised feature learning";
Jordan 2024, arXiv:2404.00498, section 3.2, for whose 2×2 patches the kernels here have the network's own side.

Shape letters: C channels, H and W pixels, O filters, S their side, D = C·S² values of a patch.
"""

from collections.abc import Sequence
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vggkit.hardware import derive_seed
from vggkit.images.dataset import ImageSample
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.vgg import VGG
from vggkit.training.distributed.process_group import SINGLE, ProcessGroup
from vggkit.training.parameter_groups import WHITENED

MOST_IMAGES: Final = 2_000
"""Training images whose patches are taken, at even distances."""
MOST_PATCHES: Final = 1_000
"""Patches of an image, on a regular grid."""
SMALLEST_VARIANCE: Final = 5e-4
"""Added to each variance (Jordan 2024): directions along which patches hardly vary would be noise alone."""


@torch.no_grad()
def whiten_first_layer(
    network: VGG,
    images: Sequence[ImageSample],
    preprocessing: Preprocessing,
    *,
    seed: int = 0,
    group: ProcessGroup = SINGLE,
) -> None:
    """Set the kernels of the first convolution, in place, and its biases to zero.

    Where the layer has fewer filters than twice D, the directions of the largest variance are taken; where it has
    more, the others are random rotations of the whitened directions.

    Args:
        network: The network.
        images: Readable training images.
        preprocessing: Their preparation for the network.
        seed: Of the rotations.
        group: The processes that train together; all get the first one's kernels.

    Raises BadImage for an image that cannot be read.
    """
    layer = cast(nn.Conv2d, network.features[0])
    count, side = layer.out_channels, layer.kernel_size[0]

    def compute() -> tuple[dict[str, Tensor], None]:
        variances, directions = find_directions(images, preprocessing, side=side)
        whitened = directions / (variances + SMALLEST_VARIANCE).sqrt()[:, None]
        half = (count + 1) // 2
        if half > len(whitened):
            draws = torch.Generator().manual_seed(derive_seed(seed, "whitening"))
            turned = torch.randn(half - len(whitened), len(whitened), generator=draws, dtype=whitened.dtype)
            whitened = torch.cat([whitened, nn.functional.normalize(turned) @ whitened])
        kernels = torch.cat([whitened[:half], -whitened[:half]])[:count]
        return {WHITENED: kernels.view(count, -1, side, side).float()}, None

    found, _ = group.lead_tensors(compute)
    layer.weight.copy_(found[WHITENED])
    if layer.bias is not None:
        layer.bias.zero_()


def find_directions(
    images: Sequence[ImageSample], preprocessing: Preprocessing, *, side: int
) -> tuple[Tensor, Tensor]:
    """The variances (D,) of patches of `side` pixels, largest first, and their directions (D, D), float64.

    The second moment is about zero, as a convolution subtracts no mean.
    """
    places = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(int)
    moment, seen = None, 0
    for place in places.tolist():
        patches = _cut_patches(preprocessing.see(images[place]), side)
        own = patches.T @ patches
        moment = own if moment is None else moment + own
        seen += len(patches)
    assert moment is not None, "there are training images"
    variances, directions = torch.linalg.eigh(torch.from_numpy(moment / seen))
    directions = directions.T.flip(0)
    # The sign of an eigenvector is arbitrary, and here the same everywhere.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return variances.flip(0).clamp(min=0), directions * largest.sign()


def _cut_patches(image: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Patches (P, D) of an image (C, H, W), at most about `MOST_PATCHES` of them."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(1, 2))
    step = max(1, round((windows.shape[1] * windows.shape[2] / MOST_PATCHES) ** 0.5))
    chosen = windows[:, ::step, ::step]
    return chosen.transpose(1, 2, 0, 3, 4).reshape(-1, image.shape[0] * side**2).astype(np.float64)
