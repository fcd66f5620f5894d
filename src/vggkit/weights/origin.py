"""The origin of a model's weights, as a record: the start of a training depends on it. No torch here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from vggkit.errors import BadConfiguration

OriginKind = Literal["random", "loaded", "trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsOrigin:
    """The origin of a model's weights.

    Raises BadConfiguration for impossible values.

    >>> WeightsOrigin(kind="loaded", source="vgg16-397923af.pth", random_keys=("classifier.6.weight",)).kind
    'loaded'
    """

    kind: OriginKind = "random"
    """`random`: initialised at random. `loaded`: read from a file of weights, perhaps published ones, that were
    trained for another task. `trained`: trained by vggkit on the classes that the model names."""
    source: str | None = None
    """Name of the file that the weights were read from; None where there was none."""
    random_keys: tuple[str, ...] = ()
    """Keys of the tensors that the file did not provide, and that are random."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(OriginKind):
            raise BadConfiguration(
                f"origin.kind must be one of {', '.join(get_args(OriginKind))}; got {self.kind!r}"
            )
        if self.source is not None and not isinstance(self.source, str):
            raise BadConfiguration(f"origin.source must be the name of a file; got {self.source!r:.100}")
        if not isinstance(self.random_keys, list | tuple) or not all(isinstance(k, str) for k in self.random_keys):
            raise BadConfiguration(f"origin.random_keys must be a list of keys; got {self.random_keys!r:.100}")
        object.__setattr__(self, "random_keys", tuple(self.random_keys))

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {**asdict(self), "random_keys": list(self.random_keys)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record that `to_dict` gave; raises BadConfiguration for anything else."""
        if not isinstance(values, Mapping) or not set(values) <= {"kind", "source", "random_keys"}:
            raise BadConfiguration(f"origin must hold kind, source and random_keys; got {values!r:.100}")
        return cls(**values)

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any]) -> Self:
        """The record for a file of format 1 to 4, which stored this in its free-form provenance."""
        loaded = provenance.get("weights")
        if not isinstance(loaded, Mapping):
            loaded = {}
        source, random_keys = loaded.get("file"), loaded.get("random")
        return cls(
            kind="trained" if "metrics" in provenance else "loaded" if loaded else "random",
            source=source if isinstance(source, str) else None,
            random_keys=tuple(map(str, random_keys)) if isinstance(random_keys, list) else (),
        )
