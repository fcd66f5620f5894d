"""Metadata of weight files that are not Classifier files: the network, its preprocessing and its labels.

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
"""Metadata key of the network that the weights belong to: JSON of `Configuration.to_dict`."""
PREPROCESSING_KEY: Final = "vggkit.preprocessing"
"""Metadata key of a converted file's preprocessing: JSON of `Preprocessing.to_dict`."""
LABELS_KEY: Final = "vggkit.labels"
"""Metadata key of a converted file's class names: a JSON list."""
PREFIX: Final = "vggkit."
"""The common prefix of these keys."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The record of such metadata."""

    configuration: Configuration | None = None
    """The network; used where the tensors fit it."""
    preprocessing: Preprocessing | None = None
    """The preprocessing of its images."""
    labels: tuple[str, ...] | None = None
    """Class names."""

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Self:
        """The record that `write_statements` wrote; raises ValueError, TypeError or RecursionError if damaged."""

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
    """Metadata with these values; those that are None are left out."""
    metadata = {CONFIGURATION_KEY: json.dumps(configuration.to_dict())}
    if preprocessing is not None:
        metadata[PREPROCESSING_KEY] = json.dumps(preprocessing.to_dict())
    if labels is not None:
        metadata[LABELS_KEY] = json.dumps(list(labels), ensure_ascii=False)
    return metadata
