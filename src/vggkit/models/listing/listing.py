"""A VGG as source code: a standalone listing in one of three styles. No torch here."""

from dataclasses import fields
from textwrap import fill
from typing import TYPE_CHECKING, Final, Literal, get_args

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import PAPER_LETTERS, Configuration
from vggkit.models.configure import configure, demand_configuration
from vggkit.models.listing.blocks import write_blocks
from vggkit.models.listing.explicit import write_explicit
from vggkit.models.listing.parts import image_side, name_class
from vggkit.models.listing.sequential import write_sequential

if TYPE_CHECKING:
    from vggkit.models.vgg import VGG

Style = Literal["sequential", "blocks", "explicit"]
"""sequential: the trunk is one nn.Sequential. blocks: a function builds each block. explicit: a name
for every layer, and a forward that spells out each step."""

_INITIALIZE: Final = '''\
def initialize(network: nn.Module) -> None:
    """Draw the first weights, by He et al.'s rule for ReLU as torchvision does."""
    for {values}:
        if values.dim() == 4:  # the filters of a convolution
            nn.init.kaiming_normal_(values, mode="fan_out", nonlinearity="relu")
        elif values.dim() == 2:  # the matrix of a fully connected layer
            nn.init.normal_(values, std=0.01)
        {otherwise}
            nn.init.zeros_(values)
'''
_SCRIPT: Final = """\
if __name__ == "__main__":
    network = {name}().eval()  # to use it, not to train it
    image = torch.randn(1, {channels}, {side}, {side})
    with torch.inference_mode():
        logits = network(image)
    parameters = sum(values.numel() for values in network.parameters())
    print(f"logits {{tuple(logits.shape)}}, {{parameters:,}} parameters")
"""


def write_listing(model: "Configuration | VGG | str", style: Style) -> str:
    """Python source of a module that builds this network with torch and nothing else.

    Its class is named after the model (`VGG16BN`; `VGG` for a trunk that no model has). It takes
    `num_classes`, starts from the Kaiming initialisation (the same seed gives the weights of
    `vggkit.VGG`), and gives the logits of `vggkit.VGG` bit for bit from the same weights, whose
    keys `rename_keys` knows: `sequential` has the canonical ones. Run as a script, it classifies
    one random image. Plain ASCII, at most 88 columns, left as it is by `ruff format`.

    `sequential` writes every configuration. `blocks` and `explicit` write the networks of the
    paper's table and their batch-norm variants, with any `num_classes`, `in_channels` and `dropout`.

    Args:
        model: A name of `list_models`, a Configuration, or an object that has one, such as a VGG.
        style: `sequential`, `blocks` or `explicit`.

    Raises UnknownName for another name or style, and BadConfiguration where the style does not write
    this configuration.
    """
    configuration = demand_configuration(model, "write_listing")
    if style not in get_args(Style):
        raise UnknownName.of("style", style, get_args(Style))
    if style == "sequential":
        network = write_sequential(configuration)
    else:
        _check_is_of_the_table(configuration, style)
        network = write_blocks(configuration) if style == "blocks" else write_explicit(configuration)
    functional = "import torch.nn.functional as F\n" if "F." in network else ""
    imports = f"import torch\n{functional}from torch import Tensor, nn\n"
    side = image_side(configuration)
    script = _SCRIPT.format(name=name_class(configuration), channels=configuration.in_channels, side=side)
    definitions = "\n\n".join([imports, network, _write_initialize(configuration), script])
    return f"{_write_title(configuration, style)}\n\n{definitions}"


def _check_is_of_the_table(configuration: Configuration, style: Style) -> None:
    """Raise BadConfiguration unless the configuration is a row with other classes, channels or dropout."""
    row = configure("vgg11" if configuration.model == "custom" else configuration.model)
    free = ("num_classes", "in_channels", "dropout")
    found = [
        "custom blocks" if field.name == "blocks" else f"{field.name}={getattr(configuration, field.name)!r}"
        for field in fields(configuration)
        if field.name not in free and getattr(configuration, field.name) != getattr(row, field.name)
    ]
    if found:
        raise BadConfiguration(
            f"style {style!r} writes the networks that `vggkit models` lists, with any number of classes and "
            f"channels and any dropout; this network has {', '.join(found)}; "
            "style 'sequential' writes every network"
        )


def _write_title(configuration: Configuration, style: Style) -> str:
    written = {
        "sequential": "its layers in one Sequential",
        "blocks": "built block by block",
        "explicit": "every layer by its name",
    }
    letter = PAPER_LETTERS.get(configuration.model.removesuffix("_bn"))
    which = f"Configuration {letter} (table 1) of" if letter else "A network after"
    source = 'Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"'
    description = [f"{which} {source}, arXiv 1409.1556"]
    if configuration.batch_norm:
        description.append("with batch normalisation, which the paper does not have")
    if configuration.until:
        description.append(f"cut after {configuration.until}")
    if configuration.head == "dense":
        description.append("with the head slid over the map (section 3.2)")
    if configuration.head == "pool":
        what = "mean and standard deviation" if configuration.statistics == "mean+std" else "mean"
        description.append(f"with a head that reads the {what} of each channel")
    convolutions = sum(layer.kind == "conv" for layer in configuration.trunk)
    connected = len(configuration.fully_connected)
    paragraphs = [
        f'"""{name_class(configuration)} in PyTorch, {written[style]}.',
        f"{', '.join(description)}.",
        f"{convolutions + connected} layers with weights: {convolutions} convolutions, {connected} fully "
        f"connected. {configuration.parameters:,} parameters.",
    ]
    return "\n\n".join(fill(text, 88, break_on_hyphens=False) for text in paragraphs) + '\n"""'


def _write_initialize(configuration: Configuration) -> str:
    if configuration.batch_norm:
        return _INITIALIZE.format(
            values="name, values in network.named_parameters()", otherwise='elif name.endswith("bias"):'
        )
    return _INITIALIZE.format(values="values in network.parameters()", otherwise="else:  # a bias")
