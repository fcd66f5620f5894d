"""Settings of a network that its file does not hold, such as frozen parameters: training preserves them."""

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
class CallerSettings:
    """Differences between a network and one that is built from its configuration."""

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
        """The settings of a network."""
        modules = dict(network.named_modules())
        norms = {name: module for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
        drops = {name: module for name, module in modules.items() if isinstance(module, nn.Dropout)}
        usual = network.configuration.dropout
        return cls(
            frozen=tuple(key for key, value in network.named_parameters() if not value.requires_grad),
            # A network that is in evaluation mode as a whole is so after any prediction.
            resting=tuple(name for name, module in modules.items() if network.training and not module.training),
            dropout={name: module.p for name, module in drops.items() if module.p != usual},
            momentum={name: norm.momentum for name, norm in norms.items() if norm.momentum != USUAL_MOMENTUM},
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The value of which `to_dict` made these values; raises BadConfiguration for anything else."""
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
            raise BadConfiguration(f"the settings of the network (by_hand) cannot be read ({problem})") from problem

    def to_dict(self) -> dict[str, Any]:
        """A value for YAML or JSON; empty where nothing was set."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value}

    def restore(self, network: VGG) -> None:
        """Apply the settings to a newly built network; raises BadConfiguration where it lacks these modules."""
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
            raise BadConfiguration(
                f"the settings of the network (by_hand) are of another network ({problem})"
            ) from problem

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
        return f"settings of the network that are preserved: {'; '.join(parts)}" if parts else None


NO_SETTINGS: Final = CallerSettings()
"""The settings of a network that is unchanged."""


@contextmanager
def left_as_found(network: VGG) -> Iterator[None]:
    """Restore at the end which parameters need gradients, the mode of each module, and batch norm's momentum."""
    flags = [(value, value.requires_grad) for value in network.parameters()]
    modes = [(module, module.training) for module in network.modules()]
    momenta = [(module, module.momentum) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    try:
        yield
    finally:
        for value, learns in flags:
            value.requires_grad_(learns)
        for module, training in modes:
            module.training = training
        for norm, momentum in momenta:
            norm.momentum = momentum


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Set the weight of the newest batch in the running statistics of every batch norm."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def demand_learnable(network: VGG) -> None:
    """Raise BadConfiguration for parameters that could not be saved, or with which training could not continue.

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
    """Convert every weight to float32, in which networks are trained; a sentence on it, None if nothing changed."""
    kinds = {value.dtype for value in network.state_dict().values() if value.is_floating_point()}
    others = sorted(str(kind).removeprefix("torch.") for kind in kinds - {torch.float32})
    if not others:
        return None
    network.float()
    return f"weights in {', '.join(others)} are converted to float32, in which they are trained and saved"


def _shorten(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
