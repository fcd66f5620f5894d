"""What a file of weights states beside its tensors, where it is no Classifier's: its network, input and labels.

A VGG's own `state_dict()` states its configuration in the metadata that torch keeps with it, and
`convert` writes all three where a format has room for them. No torch here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration

CONFIGURATION_KEY: Final = "vggkit.configuration"
"""Metadata under which weights say what network they are of: JSON of `Configuration.to_dict`."""
PREPROCESSING_KEY: Final = "vggkit.preprocessing"
"""Metadata under which a converted file says what it is fed: JSON of `Preprocessing.to_dict`."""
LABELS_KEY: Final = "vggkit.labels"
"""Metadata under which a converted file keeps a Classifier's labels: a JSON list."""
PREFIX: Final = "vggkit."
"""How all of them begin."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What a file states."""

    configuration: Configuration | None = None
    """Its network; believed where the tensors fit it."""
    preprocessing: Preprocessing | None = None
    """What it is fed."""
    labels: tuple[str, ...] | None = None
    """Class names."""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Self:
        """What `write` gave; raises ValueError, TypeError and RecursionError for what is broken."""

        def load(key: str) -> object:
            return json.loads(metadata[key]) if key in metadata else None

        configuration, preprocessing, labels = map(load, (CONFIGURATION_KEY, PREPROCESSING_KEY, LABELS_KEY))
        if labels is not None and not isinstance(labels, list):
            raise ValueError("its labels are no list")
        return cls(
            configuration=None if configuration is None else Configuration.from_dict(configuration),  # type: ignore[arg-type]
            preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),  # type: ignore[arg-type]
            labels=None if labels is None else tuple(map(str, labels)),
        )


def write_statements(
    configuration: Configuration,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, str]:
    """Metadata that states these; what is None is left out."""
    metadata = {CONFIGURATION_KEY: json.dumps(configuration.to_dict())}
    if preprocessing is not None:
        metadata[PREPROCESSING_KEY] = json.dumps(preprocessing.to_dict())
    if labels is not None:
        metadata[LABELS_KEY] = json.dumps(list(labels), ensure_ascii=False)
    return metadata
