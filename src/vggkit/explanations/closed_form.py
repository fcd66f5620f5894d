"""Grad-CAM of a VGG in closed form: from one forward pass of any engine, without autograd and without torch.

Grad-CAM (Selvaraju et al., arXiv 1610.02391, section 3) weighs channel c of a map A by the mean over the map's
places of the gradient of a class score (logit) with respect to A, and shows ReLU(Σ_c weight_c · A_c). Between the
trunk's last map and the scores a VGG has matrices and ReLUs alone, so the gradient is a product of matrices:

    ∂ score_k / ∂ (what fc6 reads) = W8[k] · diag(fc7 > 0) · W7 · diag(fc6 > 0) · W6

Only its sum over the places of each channel is needed, and that is the same at every point on the way from fc6 back
to the convolutions: adaptive pooling averages, and each average hands on the whole gradient; a window of the dense
head lies inside the map; a 2×2 pool hands each gradient to one place, or in equal shares to four. So W6 may be
summed over the places of its grid first, 49 times fewer columns, and the weights at what the last pool reads differ
from those behind it by the number of places alone. The pool head's mean is one more average; its standard deviation
adds nothing, for the deviations from a mean sum to zero.

Shape letters: N images, K classes, C channels of the map, H and W its places, P places of a dense head, F widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggkit.engines.model_weights import Weights
from vggkit.models.configuration import Configuration

Values = NDArray[np.float32]


class HeadGradient:
    """The gradient of class scores with respect to the trunk's last map, summed over the places of each channel.

    Args:
        weights: Of a network or of a model file, as engines read them; those of the head are read now.

    Raises BadCheckpoint.
    """

    def __init__(self, weights: Weights) -> None:
        configuration = weights.configuration
        *hidden, last = configuration.fully_connected
        self.needs: tuple[str, ...] = tuple(fc.relu for fc in hidden)
        """Names of the outputs that `sum_over_places` reads, such as relu6 and relu7."""
        keys = [key for key in configuration.state_shapes() if key.startswith("classifier.")]
        state = weights.read([key for key in keys if key.endswith(".weight")])
        self.layers: list[tuple[str | None, list[Values]]] = []
        """From the last back: the output whose sign gates the gradient, and the matrices (out, in) behind."""
        for fc in reversed(configuration.fully_connected):
            key = f"classifier.{fc.index}"
            factors = [f"{key}.weight"] if fc.rank is None else [f"{key}.1.weight", f"{key}.0.weight"]
            self.layers.append((None if fc == last else fc.relu, [state[name] for name in factors]))
        *_, first = self.layers
        first[1][-1] = _sum_columns(first[1][-1], configuration)

    def sum_over_places(self, directions: Values, computed: Mapping[str, Values]) -> Values:
        """The sums (N, C) for one direction of each image.

        Args:
            directions: (N, K) what is differentiated, as a combination of the scores: 1 for a class, and -1 too for
                another that it is contrasted with.
            computed: The outputs that `needs` names: rows (N, F), or maps (N, F, …) of a dense head.
        """
        places = 1
        values = directions
        for relu, factors in self.layers:
            if relu is not None:
                given = computed[relu].reshape(len(directions), computed[relu].shape[1], -1)
                if given.shape[2] != places:  # the last layer's gradient is the same at each place
                    places = given.shape[2]
                    values = np.repeat(values, places, axis=0)
                values = values * (given.transpose(0, 2, 1).reshape(len(values), -1) > 0)
            for factor in factors:
                values = values @ factor
        sums: Values = values.reshape(len(directions), places, -1).mean(axis=1)
        return sums


def grad_cam(maps: Values, sums: Values, *, relu: bool = True) -> Values:
    """Grad-CAM (N, H, W) in units of the score: the channels' weighted sum, and its ReLU.

    Args:
        maps: (N, C, H, W) values of the layer.
        sums: (N, C) the gradient there, summed over the places.
        relu: Set what speaks against the class to 0, as the paper does.
    """
    count, channels, height, width = maps.shape
    weights = (sums / np.float32(height * width))[:, None]
    found: Any = weights @ maps.reshape(count, channels, height * width)
    shown: Values = np.maximum(found, 0) if relu else found
    return shown.reshape(count, height, width)


def list_closed_layers(configuration: Configuration) -> Sequence[str]:
    """Layers whose Grad-CAM `HeadGradient` gives: the trunk's last, and before it what a last pool reads."""
    *_, before, last = configuration.trunk
    return (before.name, last.name) if last.kind == "pool" else (last.name,)


def _sum_columns(matrix: Values, configuration: Configuration) -> Values:
    """The first matrix (F, C): its columns summed over the grid, or those of a pool head's means."""
    channels = configuration.trunk_channels
    if configuration.head == "pool":
        return np.ascontiguousarray(matrix[:, :channels])
    places = configuration.grid**2
    summed = matrix.reshape(-1, places) @ np.ones(places, np.float32)
    return summed.reshape(len(matrix), channels)
