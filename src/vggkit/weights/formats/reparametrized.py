"""Weights that a file stores as the tensors that they are computed from: pruned by a mask, by `weight_norm` or by
`spectral_norm`.

`torch.nn.utils.prune` keeps `weight_orig` and `weight_mask` until `prune.remove`; weight normalisation keeps a
direction and a length, as `weight_v` and `weight_g`, or in torch's parametrizations as `original1` and `original0`.
The network's weight is their product. Spectral normalisation keeps the weight and the estimates of its first
singular vectors, as `weight_orig`, `weight_u` and `weight_v`, or as `original`, `0._u` and `0._v`; in evaluation
the weight is the stored one divided by the singular value u·Wv. Shape letters: O and I channels out and in.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Computed:
    """One tensor of the network, and those that the file stores for it."""

    values: str
    """Key of the values, in the shape of the tensor."""
    others: tuple[str, ...]
    """Keys of the mask, of the lengths, or of the singular vectors."""
    compute: Callable[..., "Tensor"]
    """Computes the tensor from all of them."""


def find_computed(keys: Collection[str]) -> dict[str, Computed]:
    """The tensors that are computed from several others of the file, by the key they have in the network."""
    found = {}
    for key in keys:
        for ending, endings, compute in _STORED:
            name = key.removesuffix(ending)
            others = tuple(name + other for other in endings)
            if name != key and all(other in keys for other in others):
                path, _, parameter = name.rpartition(".")
                # `features.0.parametrizations.weight` is `features.0.weight`.
                own = f"{path.removesuffix('.parametrizations')}.{parameter}"
                if own not in keys:
                    found[own] = Computed(key, others, compute)
    return found


def list_resolved(keys: Collection[str], computed: Mapping[str, Computed]) -> dict[str, str]:
    """Keys of the network in the file's order, each with the key of the file that has its shape and type."""
    own = {made.values: key for key, made in computed.items()}
    others = {other for made in computed.values() for other in made.others}
    return {own.get(key, key): key for key in keys if key not in others}


def _mask(values: "Tensor", mask: "Tensor") -> "Tensor":
    return values * mask.to(values.dtype)


def _normalize(direction: "Tensor", length: "Tensor") -> "Tensor":
    """The length is (O, 1, …), one for each row, or of as many dimensions along another side, or a scalar."""
    import torch

    summed = [at for at in range(direction.dim()) if length.dim() == 0 or length.shape[at] == 1]
    norm: Tensor = torch.linalg.vector_norm(direction, dim=summed, keepdim=length.dim() > 0)
    return direction * (length / norm)


def _divide_by_norm(values: "Tensor", left: "Tensor", right: "Tensor") -> "Tensor":
    """Of a weight (O, I, …) by the singular value of (O, I·…) that belongs to the vectors (O,) and (I·…,)."""
    import torch

    return values / torch.dot(left.to(values.dtype), values.flatten(1) @ right.to(values.dtype))


_STORED: Final = (
    ("_orig", ("_mask",), _mask),
    ("_orig", ("_u", "_v"), _divide_by_norm),
    ("_v", ("_g",), _normalize),
    (".original1", (".original0",), _normalize),
    (".original", (".0._u", ".0._v"), _divide_by_norm),
)
"""The ending of the values' key, those of the others, and the function that computes the tensor."""
