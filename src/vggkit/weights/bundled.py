"""Classifiers that come with vggkit: their files lie in the package, and need no network. No torch here.

`digits` reads handwritten digits. tools/train_digits.py made it; its card states the data, the recipe and the
accuracy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

BUNDLED: Final[Mapping[str, str]] = {"digits": "handwritten digits in images of any size"}
"""The name of each, and what it classifies."""


def is_bundled(place: str | Path) -> bool:
    """Whether `place` is the name of a classifier that comes with vggkit; an existing path comes first.

    >>> is_bundled("digits"), is_bundled("vgg16")
    (True, False)
    """
    return str(place) in BUNDLED and not Path(place).exists()


def find_bundled(name: str) -> Path:
    """The file of the classifier of that name."""
    return Path(__file__).with_name(f"{name}.safetensors")
