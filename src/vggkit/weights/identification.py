"""The record of what a file of weights contains, and its description in text. No torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vggkit.escaping import escape_controls
from vggkit.images.preprocessing import Preprocessing
from vggkit.models.configuration import Configuration, Head
from vggkit.weights.dialects import Dialect
from vggkit.weights.input_conventions import describe_convention


@dataclass(frozen=True, slots=True)
class Reading:
    """One of the networks that a file's tensors may be of."""

    configuration: Configuration
    """The network."""
    description: str
    """The difference from the other readings, such as `cut at pool2`; empty where there is no other."""
    load_line: str | None
    """Python code that loads the file so, with `import vggkit as vk`; None where none would."""

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON."""
        return {
            "settings": self.configuration.to_dict(),
            "description": self.description,
            "load_line": self.load_line,
        }


@dataclass(frozen=True, kw_only=True)
class Identification:
    """The contents of a file of weights, as `identify` found them."""

    path: Path
    """The file."""
    is_vgg: bool
    """Whether its shapes are those of a VGG, whole or in part."""
    verdict: str
    """One sentence for people."""
    dialect: Dialect | str | None = None
    """The dialect of its keys; `ordered` where layers are identified by their order and not by names."""
    configuration: Configuration | None = None
    """The network; `.model` is its row of the paper's table, or `custom`. Where the file has no head,
    or no last layer, it has the paper's."""
    batch_norm: bool = False
    """Batch normalisation behind each convolution."""
    num_classes: int | None = None
    """Length of the logits; None where the file has no last layer."""
    labels: tuple[str, ...] | None = None
    """Names of the classes in the order of the logits, where the file keeps them."""
    in_channels: int | None = None
    """Channels of the images."""
    head: Head | None = None
    """fc or pool; None where the file has none. The dense head holds the same weights as fc."""
    until: str | None = None
    """The last layer of a cut trunk; None: the trunk is whole."""
    dtype: str | None = None
    """torch's name of the weights' type, `mixed` for several."""
    container: str
    """The file's format: `safetensors`, `pytorch`, `npz`, `keras-h5`, `keras-3`, `keras-archive`."""
    stripped: tuple[str, ...] = ()
    """Wrappers and prefixes that were removed, such as `state_dict` and `module.`."""
    complete: bool = False
    """Every tensor of the network is there, in its shape."""
    missing: tuple[str, ...] = ()
    """Keys that the network needs and the file lacks, as its dialect names them."""
    misshapen: tuple[str, ...] = ()
    """Keys of another shape than the network's, with both shapes."""
    unexpected: tuple[str, ...] = ()
    """Keys of the file that are none of the network's."""
    preprocessing: Preprocessing | None = None
    """The preprocessing of its images, with the input convention; None: unknown."""
    evidence: str | None = None
    """The source of `preprocessing`: `card`, `metadata` or `fingerprint`."""
    load_line: str | None = None
    """Python code that loads it, with `import vggkit as vk`; None where none would."""
    readings: tuple[Reading, ...] = ()
    """Every network that its tensors may belong to, since activations, pools and cuts have none; this is the first,
    unless another was requested. None where it is not a VGG."""
    reading: int = 0
    """The index of this one among the readings."""

    @property
    def input_convention(self) -> str | None:
        """Channel order, range, mean and std in a few words; None: unknown; state `--input-convention`."""
        return describe_convention(self.preprocessing) if self.preprocessing else None

    @property
    def model(self) -> str | None:
        """The paper's network by its name here, `custom` for another VGG, None for no VGG."""
        return self.configuration.model if self.configuration else None

    def to_dict(self) -> dict[str, Any]:
        """A value for JSON; `configuration` is the model's name, `settings` all of its Configuration."""
        return {
            "path": str(self.path),
            "is_vgg": self.is_vgg,
            "verdict": self.verdict,
            "dialect": self.dialect,
            "configuration": self.model,
            "settings": self.configuration.to_dict() if self.configuration else None,
            "batch_norm": self.batch_norm,
            "num_classes": self.num_classes,
            "labels": list(self.labels) if self.labels else None,
            "in_channels": self.in_channels,
            "head": self.head,
            "until": self.until,
            "dtype": self.dtype,
            "container": self.container,
            "stripped": list(self.stripped),
            "complete": self.complete,
            "missing": list(self.missing),
            "misshapen": list(self.misshapen),
            "unexpected": list(self.unexpected),
            "input_convention": self.input_convention,
            "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None,
            "evidence": self.evidence,
            "load_line": self.load_line,
            "readings": [reading.to_dict() for reading in self.readings],
            "reading": self.reading,
        }

    def __str__(self) -> str:
        return f"{self.path}: {self.verdict}"


FACT_COLUMNS = 17
"""Characters of a row of `describe_identification` before the fact: two spaces, its name, and a space."""
_UNKNOWN = "unknown, state --input-convention; loading assumes ImageNet's unless preprocessing= is given"


def describe_identification(found: Identification) -> str:
    """The verdict, and a line for each of the facts behind it."""
    lines = [str(found)]
    if found.configuration is not None:
        c = found.configuration
        parts = [
            f"{len(block)}×{block[0]}" if len(set(block)) == 1 else "+".join(map(str, block)) for block in c.blocks
        ]
        lines.append(f"  convolutions   {' | '.join(parts)}{', batch norm' if found.batch_norm else ''}")
    facts = {
        "dialect": f"{found.dialect or 'unknown'}, in {found.container}, {found.dtype or 'no numbers'}",
        "classes": found.num_classes,
        "labels": _list(tuple(map(_show, found.labels or ()))),
        "channels": found.in_channels,
        "input": found.input_convention or (_UNKNOWN if found.is_vgg else None),
        "evidence": found.evidence,
        "removed": ", ".join(found.stripped) or None,
        "missing": _list(found.missing),
        "misshapen": _list(found.misshapen),
        "unexpected": _list(found.unexpected),
        "read as": found.readings[found.reading].description if len(found.readings) > 1 else None,
        "load": found.load_line,
    }
    lines += [f"  {name:<14} {value}" for name, value in facts.items() if value is not None]
    for number, reading in enumerate(found.readings if len(found.readings) > 1 else ()):
        if number != found.reading:
            lines += [
                f"  {f'or, reading {number}':<14} {reading.description}",
                f"  {'load':<14} {reading.load_line}",
            ]
    return "\n".join(map(escape_controls, lines))


def _show(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:40])


def _list(keys: tuple[str, ...]) -> str | None:
    shown = ", ".join(keys[:6])
    return (shown + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")) or None
