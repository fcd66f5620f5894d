"""What a caller set on a network before it learns, which no file of it says: learning keeps it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

import torch
from torch import nn

from vggkit.errors import BadConfiguration
from vggkit.models.vgg import VGG

USUAL_MOMENTUM: Final = 0.1
"""Of batch norms, as torch builds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetByHand:
    """Where a network is not as it was built."""

    frozen: tuple[str, ...] = ()
    """Keys of parameters that need no gradients."""
    resting: tuple[str, ...] = ()
    """Modules in evaluation mode while the network is in training mode: batch norms whose statistics stay."""
    dropout: Mapping[str, float] = field(default_factory=dict)
    """Chances of dropout, by module."""
    momentum: Mapping[str, float | None] = field(default_factory=dict)
    """Momenta of batch norms, by module."""

    @classmethod
    def of(cls, network: VGG) -> Self:
        """What differs from the network as its configuration builds it."""
        modules = dict(network.named_modules())
        norms = {name: module for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
        drops = {name: module for name, module in modules.items() if isinstance(module, nn.Dropout)}
        usual = network.configuration.dropout
        return cls(
            frozen=tuple(key for key, value in network.named_parameters() if not value.requires_grad),
            # All in evaluation mode is what a prediction leaves, and says nothing of learning.
            resting=tuple(name for name, module in modules.items() if network.training and not module.training),
            dropout={name: module.p for name, module in drops.items() if module.p != usual},
            momentum={name: norm.momentum for name, norm in norms.items() if norm.momentum != USUAL_MOMENTUM},
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; raises BadConfiguration for anything else."""
        try:
            given = dict(values)
            return cls(
                frozen=tuple(map(str, given.pop("frozen", ()))),
                resting=tuple(map(str, given.pop("resting", ()))),
                dropout=dict(given.pop("dropout", {})),
                momentum=dict(given.pop("momentum", {})),
                **given,
            )
        except (TypeError, ValueError) as problem:
            raise BadConfiguration(f"what was set by hand cannot be read ({problem})") from problem

    def to_dict(self) -> dict[str, Any]:
        """A value for YAML or JSON; empty where nothing was set."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value}

    def restore(self, network: VGG) -> None:
        """Set it on a network that was built anew; raises BadConfiguration where that has no such places."""
        try:
            for key in self.frozen:
                network.get_parameter(key).requires_grad_(False)
            for name in self.resting:
                network.get_submodule(name).training = False
            for name, chance in self.dropout.items():
                setattr(network.get_submodule(name), "p", chance)  # noqa: B010 (torch types it as a module)
            for name, momentum in self.momentum.items():
                setattr(network.get_submodule(name), "momentum", momentum)  # noqa: B010
        except AttributeError as problem:
            raise BadConfiguration(f"what was set by hand is of another network ({problem})") from problem

    def describe(self, network: VGG) -> str | None:
        """A sentence on it; None where nothing was set."""
        parameters = [key for key, _ in network.named_parameters()]
        parts = []
        if self.frozen:
            parts.append(f"{len(self.frozen)} of {len(parameters)} parameters frozen ({_shorten(self.frozen)})")
        if self.resting:
            parts.append(f"modules in evaluation mode ({_shorten(self.resting)})")
        for what, values in (("dropout", self.dropout), ("batch norm's momentum", self.momentum)):
            if values:
                parts.append(f"{what} of {_shorten(tuple(values))}")
        return f"set by hand and kept: {'; '.join(parts)}" if parts else None


NOTHING: Final = SetByHand()
"""Set on a network that is as it was built."""


@contextmanager
def left_as_found(network: VGG) -> Iterator[None]:
    """In the end each parameter needs gradients, and each module is in the mode, as before."""
    flags = [(value, value.requires_grad) for value in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for value, learns in flags:
            value.requires_grad_(learns)
        for module, training in modes:
            module.training = training


def demand_learnable(network: VGG) -> None:
    """Raise BadConfiguration where what a network learns could not be kept in its file, nor gone on with.

    Modules that no Configuration describes are refused where the configuration is read.
    """
    own = {key for key, _ in network.named_parameters()}
    tied = [key for key, _ in network.named_parameters(remove_duplicate=False) if key not in own]
    if tied:
        raise BadConfiguration(
            f"{tied[0]} is the same parameter as another one, and a file holds each by itself; give it a clone: "
            "nn.Parameter(value.clone())"
        )
    broken = [key for key, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise BadConfiguration(
            f"{_shorten(tuple(broken))} holds values that are not finite (NaN or infinity); "
            "take an earlier checkpoint"
        )


def bring_to_float32(network: VGG) -> str | None:
    """Convert every weight to float32, in which networks learn; a sentence on it, None where all were."""
    kinds = {value.dtype for value in network.state_dict().values() if value.is_floating_point()}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if not others:
        return None
    network.float()
    return f"weights in {', '.join(others)} are converted to float32, in which they learn and are kept"


def _shorten(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
