"""The card of a Classifier's file, and what a file of weights without one contains.

Only PyTorch's files import torch.
"""

import json
from pathlib import Path
from typing import Final

from vggkit.errors import BadCheckpoint
from vggkit.weights.card import Card, find_card
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identify import identify_file

_CONTAINERS: Final = {
    "safetensors": "a safetensors file",
    "pytorch": "a PyTorch file",
    "npz": "a NumPy archive",
    "npy": "a NumPy file",
    "keras-h5": "a Keras HDF5 file",
    "keras-3": "a Keras HDF5 file",
    "keras-archive": "a Keras archive",
}
"""Names of a WeightFile's containers."""


def read_card(path: str | Path) -> Card:
    """The card of a Classifier's file.

    Raises BadCheckpoint for any other file: one of weights alone is identified by its keys and shapes, and the
    message has the code that makes a Classifier of it.
    """
    card = find_card(path)
    if card is None:
        raise _explain_weights(Path(path))
    return card


def _explain_weights(path: Path) -> BadCheckpoint:
    with open_weights(path) as file:
        found = identify_file(file).identification
    problem = f"{path}: is {_CONTAINERS[file.container]} of weights, not a Classifier's file: {found.verdict}"
    if found.load_line is None:
        return BadCheckpoint(f"{problem}; no Classifier can be made of it")
    made = found.load_line.removeprefix("clf = ")
    target = json.dumps(f"{path.stem}-classifier.safetensors", ensure_ascii=False)
    return BadCheckpoint(
        f"{problem}. Make a Classifier of it in Python, with `import vggkit as vk` and `{made}.save({target})`; or "
        f"begin a training with it: vggkit train DATA --weights {path}"
    )
