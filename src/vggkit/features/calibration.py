"""The trained weights of LPIPS and DISTS, in the files that their authors publish.

Shape letters: C channels of a layer.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vggkit.errors import BadCheckpoint
from vggkit.features.loss_config import LossConfig, demand_calibration
from vggkit.weights.formats.detect import open_weights

IMAGE = "image"


class Calibrated(nn.Module):
    """Calibration weights of each layer, as buffers: they move with the loss and are in its state dict."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in values.items():
            self.register_buffer(name, tensor)

    def linear(self, layer: str) -> Tensor:
        """(C,) weights of LPIPS."""
        return self.get_buffer(layer)

    def structure(self, layer: str) -> tuple[Tensor, Tensor]:
        """(C,) alpha and beta of DISTS."""
        return self.get_buffer(f"{layer}_alpha"), self.get_buffer(f"{layer}_beta")


def read_calibration(
    given: Mapping[str, Tensor] | str | Path | None, config: LossConfig, widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """The weights by layer.

    Args:
        given: A file or its tensors: of LPIPS `lin0.model.1.weight` … `lin4.model.1.weight`, each (1, C, 1, 1); of
            DISTS `alpha` and `beta`, each (1, 3 + channels of all layers, 1, 1).
        config: The loss.
        widths: Channels of each layer of the trunk.

    Raises BadConfiguration where the loss needs a calibration and none is given, or the reverse, and BadCheckpoint
    for tensors that are missing, unexpected or of another shape.
    """
    demand_calibration(given, config)
    if given is None:
        return {}
    tensors = dict(given) if isinstance(given, Mapping) else _read_tensors(given)
    where = "calibration" if isinstance(given, Mapping) else str(given)
    layers = tuple(config.content)
    if config.metric == "lpips":
        # The same layer goes by two names: inside the module, and in the list of all of them.
        tensors = {key: value for key, value in tensors.items() if not key.startswith("lins.")}
        expected = {f"lin{number}.model.1.weight": widths[layer] for number, layer in enumerate(layers)}
        _demand_shapes(where, tensors, expected)
        return {layer: tensors[key].detach().flatten().float() for key, layer in zip(expected, layers, strict=True)}
    sizes = {IMAGE: 3} | {layer: widths[layer] for layer in layers}
    total = sum(sizes.values())
    _demand_shapes(where, tensors, {"alpha": total, "beta": total})
    alpha, beta = (tensors[name].detach().flatten().float() for name in ("alpha", "beta"))
    # Divided by their sum, as the authors do whenever they are used.
    weight = alpha.sum() + beta.sum()
    found: dict[str, Tensor] = {}
    for layer, ours, theirs in zip(
        sizes, alpha.split(list(sizes.values())), beta.split(list(sizes.values())), strict=True
    ):
        found |= {f"{layer}_alpha": ours / weight, f"{layer}_beta": theirs / weight}
    return found


def _demand_shapes(where: str, tensors: Mapping[str, Tensor], expected: Mapping[str, int]) -> None:
    wrong = sorted(tensors.keys() ^ expected.keys())
    if wrong:
        raise BadCheckpoint(
            f"{where}: must hold {', '.join(expected)} and nothing else; missing or unexpected: "
            f"{', '.join(wrong[:6])}"
        )
    for key, width in expected.items():
        if tensors[key].numel() != width:
            raise BadCheckpoint(
                f"{where}: {key} has {tensors[key].numel()} values, and the layers have {width} channels"
            )


def _read_tensors(path: str | Path) -> dict[str, Tensor]:
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.entries}
