"""The verbs of the command line: the module of each, and its summary for `vggkit --help`. Imports nothing."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Verb(NamedTuple):
    """A verb of the command line."""

    module: str
    """The module of `vggkit.cli` with the function of the verb's name."""
    summary: str
    """A summary in one line."""


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
        "shard": Verb("shard", "pack images into shards that a training streams"),
        "train": Verb("train", "train a classifier on labelled images"),
        "evaluate": Verb("evaluate", "measure classifiers on labelled images"),
        "compare": Verb("compare", "compare training runs"),
    },
    "Inference": {
        "predict": Verb("predict", "classify images"),
        "embed": Verb("predict", "compute feature vectors of images"),
        "search": Verb("predict", "find similar images"),
        "distance": Verb("distance", "compare images perceptually: LPIPS, DISTS"),
        "explain": Verb("explain", "show which regions of images support a class"),
        "bench": Verb("bench", "measure the speed of inference on this machine"),
    },
    "Shipping": {
        "compress": Verb("compress", "make a classifier smaller and faster"),
        "export": Verb("export", "write a classifier for ONNX, torch.export, OpenVINO, Keras"),
        "serve": Verb("serve", "serve classifiers by HTTP, with a page for people"),
    },
    "Looking inside": {
        "filters": Verb("filters", "show what each channel of a layer responds to"),
        "style": Verb("style", "give an image the style of another"),
    },
    "First steps": {
        "demo": Verb("demo", "train, evaluate and predict on handwritten digits"),
        "doctor": Verb("doctor", "say what is installed here and what of it works"),
    },
}
