"""Opens a network with its preprocessing for inspection, including files that contain part of a network."""

from pathlib import Path

from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.models.configure import configure
from vggkit.models.vgg import VGG
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.identify import identify_file
from vggkit.weights.locate import locate_model
from vggkit.weights.model import Model


def open_model(given: VGG | Model | str | Path) -> Model:
    """A network with the preprocessing of its images.

    Args:
        given: A network, which is taken to read ImageNet-normalised images; a Classifier, which is returned; a
            Classifier's file or a run's folder; a model's name for the published weights; or a file of weights in
            any dialect, of which the trunk is taken as far as it goes.

    Raises BadInput for anything else, BadConfiguration, BadCheckpoint, and BadDownload.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, VGG):
        preprocessing = choose_preprocessing(in_channels=given.configuration.in_channels)
        labels = [f"class {number}" for number in range(given.configuration.num_classes)]
        return Model(given, labels=labels, preprocessing=preprocessing)
    if not isinstance(given, str | Path):
        raise BadInput(f"a network is a VGG, a Classifier, a file or a model's name, got {type(given).__name__}")
    path = locate_model(given)
    with open_weights(path) as file:
        identified = identify_file(file)
    if identified.card is not None:
        return Model.load(path)
    found = identified.identification.configuration
    if found is None:
        raise BadCheckpoint(f"{path}: {identified.identification.verdict}")
    if found.in_channels not in (1, 3, 4):
        raise BadConfiguration(f"{path}: its network reads {found.in_channels} channels, which no image has")
    trunk = configure(found, until=found.trunk[-1].name, head="pool", num_classes=1)
    return Model.create(trunk, labels=["unused"], weights=path, seed=0)
