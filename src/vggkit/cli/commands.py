"""The verbs of the command line: the module of each, and what it does, for `vggkit --help`. Imports nothing."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Verb(NamedTuple):
    """A verb of the command line."""

    module: str
    """The module of `vggkit.cli` with the function of the verb's name."""
    summary: str
    """What it does, in a line."""


VERBS: Final[Mapping[str, Mapping[str, Verb]]] = {
    "Networks and weights": {
        "models": Verb("models", "list the networks: parameters, multiply-adds, accuracy"),
        "summary": Verb("models", "describe a network layer by layer"),
        "code": Verb("models", "print a network as standalone PyTorch code"),
        "identify": Verb("models", "report what a weights file contains"),
        "convert": Verb("models", "convert weights: torchvision, timm, Keras, Caffe"),
    },
    "Training and evaluation": {
        "check": Verb("check", "find problems in an image dataset before training"),
        "train": Verb("train", "train a classifier on labelled images"),
        "evaluate": Verb("evaluate", "measure classifiers on labelled images"),
        "compare": Verb("compare", "compare training runs"),
    },
    "Inference": {
        "predict": Verb("predict", "classify images"),
        "embed": Verb("predict", "compute feature vectors of images"),
        "search": Verb("predict", "find similar images"),
        "explain": Verb("explain", "show which places of images speak for a class"),
        "bench": Verb("bench", "measure the speed of inference on this machine"),
    },
    "First steps": {
        "demo": Verb("predict", "train, evaluate and predict on handwritten digits"),
    },
}
