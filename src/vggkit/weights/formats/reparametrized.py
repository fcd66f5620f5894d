"""Weights that a file stores as the tensors that they are computed from: pruned by a mask, or by `weight_norm`.

`torch.nn.utils.prune` keeps `weight_orig` and `weight_mask` until `prune.remove`; weight normalisation keeps a
direction and a length, as `weight_v` and `weight_g`, or in torch's parametrizations as `original1` and `original0`.
The network's weight is their product. Shape letters: O and I channels out and in.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Computed:
    """One tensor of the network, and the two that the file stores for it."""

    values: str
    """Key of the values, in the shape of the tensor."""
    other: str
    """Key of the mask, or of the lengths."""
    compute: Callable[["Tensor", "Tensor"], "Tensor"]
    """Computes the tensor from both."""


def find_computed(keys: Collection[str]) -> dict[str, Computed]:
    """The tensors that are computed from two others of the file, by the key they have in the network."""
    found = {}
    for key in keys:
        for ending, (other, compute) in _PAIRS.items():
            name = key.removesuffix(ending)
            if name != key and name + other in keys:
                path, _, parameter = name.rpartition(".")
                # `features.0.parametrizations.weight` is `features.0.weight`.
                own = f"{path.removesuffix('.parametrizations')}.{parameter}"
                if own not in keys:
                    found[own] = Computed(key, name + other, compute)
    return found


def list_resolved(keys: Collection[str], computed: Mapping[str, Computed]) -> dict[str, str]:
    """Keys of the network in the file's order, each with the key of the file that has its shape and type."""
    own = {made.values: key for key, made in computed.items()}
    others = {made.other for made in computed.values()}
    return {own.get(key, key): key for key in keys if key not in others}


def _mask(values: "Tensor", mask: "Tensor") -> "Tensor":
    return values * mask.to(values.dtype)


def _normalize(direction: "Tensor", length: "Tensor") -> "Tensor":
    """The length is (O, 1, …), one for each row, or of as many dimensions along another side, or a scalar."""
    import torch

    summed = [at for at in range(direction.dim()) if length.dim() == 0 or length.shape[at] == 1]
    norm: Tensor = torch.linalg.vector_norm(direction, dim=summed, keepdim=length.dim() > 0)
    return direction * (length / norm)


_PAIRS: Final = {
    "_orig": ("_mask", _mask),
    "_v": ("_g", _normalize),
    ".original1": (".original0", _normalize),
}
"""The endings of both keys, and the function that computes the tensor."""
