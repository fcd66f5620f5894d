"""The object that people hold: a model with the verbs as methods."""

from pathlib import Path
from typing import Self

from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model


class Classifier(Model):
    """A VGG that knows how to feed itself and what its predictions mean, with what can be done with it.

    One `.safetensors` file holds network, preprocessing, labels and provenance; see `Model` for the arguments.
    """

    @classmethod
    def of(cls, model: Model) -> Self:
        """The same model, sharing its network, with the verbs."""
        made = cls(model.network, labels=model.labels, preprocessing=model.preprocessing)
        made.card = model.card
        return made


def load(path: str | Path) -> Classifier:
    """The Classifier in a file, or the best one of a run's folder: network, weights, preprocessing,
    labels and provenance. `hf://owner/name` brings one from the Hugging Face hub, `@` a revision.

    Raises BadCheckpoint; from the hub, BadDownload and MissingExtra too.
    """
    return Classifier.load(locate_model(path))
