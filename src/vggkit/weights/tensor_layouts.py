"""The tensors of a dialect, turned into its layout and back: views where torch can, copies where the order changes.

Shape letters as in `dialects`: O and I out and in, H and W of a window, C channels, G side of the map.
"""

from torch import Tensor

from vggkit.weights.dialects import Place


def to_layout(value: Tensor, place: Place) -> Tensor:
    """A canonical tensor, (O, I, H, W) or (O, I) or (O), as it lies at that place; any strides."""
    match place.layout:
        case "same":
            return value
        case "hwio":
            return value.permute(2, 3, 1, 0)
        case "io":
            return value.t()
        case "oihw":
            return _window(value, place)
        case "fc_hwio":
            return _window(value, place).permute(2, 3, 1, 0)
        case "hwc_io":
            return _window(value, place).permute(2, 3, 1, 0).reshape(-1, value.shape[0])


def from_layout(value: Tensor, place: Place) -> Tensor:
    """A tensor as it lies at that place, canonical: (O, I, H, W), (O, I) or (O); any strides."""
    match place.layout:
        case "same":
            return value
        case "hwio":
            return value.permute(3, 2, 0, 1)
        case "io":
            return value.t()
        case "oihw":
            return value.flatten(1)
        case "fc_hwio":
            return value.permute(3, 2, 0, 1).flatten(1)
        case "hwc_io":
            out, side = value.shape[1], place.grid
            return value.reshape(side, side, -1, out).permute(3, 2, 0, 1).flatten(1)


def _window(matrix: Tensor, place: Place) -> Tensor:
    """The matrix (O, C*G*G), CHW, as a window (O, C, G, G)."""
    return matrix.reshape(matrix.shape[0], -1, place.grid, place.grid)
