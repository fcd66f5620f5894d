"""The names of splits, in their common spellings in folders, files and tables."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

SPLITS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "vld", "dev", "development"), "val"),
    **dict.fromkeys(("eval", "evaluate", "evaluation", "crossval", "crossvalidation"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout", "unseen"), "test"),
}
"""Names of splits, which are not classes, and the name of each here."""

_FILLERS: Final = "set|sets|image|images|img|imgs|data|dataset|split|folder|photos|pictures"
_SPELLING: Final = re.compile(rf"(?:(?:{_FILLERS})[^a-z]+)?({'|'.join(SPLITS)})(?:[^a-z]*(?:{_FILLERS}))?[^a-z]*")
_TWO_WORDS: Final = re.compile(r"(?<![a-z])(held|hold|cross)[^a-z]+(out|val)")


def tell_split(name: str) -> str | None:
    """The split that a folder's name means in one of its common spellings, or None.

    >>> [tell_split(name) for name in ("Train", "training_set", "images-val", "val2", "held_out", "trainers")]
    ['train', 'train', 'val', 'val', 'test', None]
    """
    found = _SPELLING.fullmatch(_join(name.strip()))
    return SPLITS[found[1]] if found else None


def hint_at_split(name: str) -> str | None:
    """The split that one word of a name means, as in `seg_train`; None where there is none, or several."""
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", _join(name)) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def find_split(path: str) -> str | None:
    """The split by a file's name, or else by its folder's: `data/train-00001.tar`, `val/00001.tar`.

    Folders above do not count: people keep data in folders called test.
    """
    place = Path(path)
    words = [SPLITS[word] for word in re.split(r"[^a-z]+", _join(place.name)) if word in SPLITS]
    return words[0] if words else SPLITS.get(_join(place.parent.name))


def _join(name: str) -> str:
    """In small letters, with names of two words as one: `held_out` as `heldout`."""
    return _TWO_WORDS.sub(r"\1\2", name.lower())
