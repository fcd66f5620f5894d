"""A VGG as source to hand out: a standalone listing of any configuration, in one of three styles. No torch here."""

from typing import Literal, get_args

from vggkit.errors import UnknownName
from vggkit.networks.configurations import PAPER_LETTERS, Configuration, demand_configuration
from vggkit.networks.styles.layout import STEP, lay_docstring
from vggkit.networks.styles.listing_blocks import write_blocks, write_conv_block
from vggkit.networks.styles.listing_explicit import write_explicit
from vggkit.networks.styles.listing_heads import SLIDE
from vggkit.networks.styles.listing_sequential import write_sequential
from vggkit.networks.styles.listing_trunks import picture_side

Style = Literal["sequential", "blocks", "explicit"]
"""sequential: the trunk is one nn.Sequential. blocks: a function builds each block. explicit: a name
for every layer, and a forward that spells out each step."""


def write_listing(configuration: Configuration, style: Style) -> str:
    """Python source of a module that builds this network with torch and nothing else.

    Its class is named after the model (`VGG16BN`; `VGG` for a trunk of no model). It takes
    `num_classes`, starts from the Kaiming initialisation (the same seed gives the weights of
    `vggkit.VGG`), and gives the logits of `vggkit.VGG` bit for bit from the same weights, whose
    keys `rename_keys` knows: `sequential` has the canonical ones. Run as a script, it classifies
    one random picture. Plain ASCII, at most 88 columns, left as it is by `ruff format`.

    Raises UnknownName for another style.
    """
    configuration = demand_configuration(configuration, "write_listing")
    match style:
        case "sequential":
            init, forward = write_sequential(configuration)
        case "blocks":
            init, forward = write_blocks(configuration)
        case "explicit":
            init, forward = write_explicit(configuration)
        case _:
            raise UnknownName.of("style", style, get_args(Style))
    parts = [write_conv_block(configuration)] if style == "blocks" else []
    if configuration.head == "dense":
        parts.append(SLIDE.splitlines())
    parts += [
        [*_lay_class_head(configuration), *init, f"{STEP * 2}initialize(self)", "", *forward],
        _lay_initialization(configuration),
        _lay_script(configuration),
    ]
    body = "\n\n\n".join("\n".join(part) for part in parts)
    title = "\n".join(_lay_title(configuration, style))
    return f"{title}\n\n{_lay_imports(body)}\n\n\n{body}\n"


def _name_class(configuration: Configuration) -> str:
    """`vgg16_bn` is `VGG16BN`."""
    return "VGG" if configuration.model == "custom" else configuration.model.replace("_", "").upper()


def _lay_title(configuration: Configuration, style: Style) -> list[str]:
    written = {
        "sequential": "its layers in one Sequential",
        "blocks": "built block by block",
        "explicit": "every layer by its name",
    }
    letter = PAPER_LETTERS.get(configuration.model.removesuffix("_bn"))
    which = f"Configuration {letter} (table 1) of" if letter else "A network after"
    source = 'Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"'
    said = [f"{which} {source}, arXiv 1409.1556"]
    if configuration.batch_norm:
        said.append("with batch normalisation, which the paper does not have")
    if configuration.until:
        said.append(f"cut after {configuration.until}")
    if configuration.head == "dense":
        said.append("with the head slid over the map (section 3.2)")
    if configuration.head == "pool":
        what = "mean and standard deviation" if configuration.statistics == "mean+std" else "mean"
        said.append(f"with a head that reads the {what} of each channel")
    convolutions = sum(layer.kind == "conv" for layer in configuration.trunk)
    connected = len(configuration.fully_connected)
    return lay_docstring(
        f"{_name_class(configuration)} in PyTorch, {written[style]}.",
        f"{', '.join(said)}.",
        f"{convolutions + connected} layers with weights: {convolutions} convolutions, {connected} fully "
        f"connected. {configuration.parameters:,} parameters.",
    )


def _lay_imports(body: str) -> str:
    functional = "import torch.nn.functional as F\n" if "F." in body else ""
    return f"import torch\n{functional}from torch import Tensor, nn"


def _lay_class_head(configuration: Configuration) -> list[str]:
    side = configuration.minimum_side
    sides = f"; H and W from {side} pixels" if side > 1 else ""
    about = f"Pictures (N, {configuration.in_channels}, H, W) to logits (N, num_classes){sides}."
    return [
        f"class {_name_class(configuration)}(nn.Module):",
        *lay_docstring(about, depth=1),
        "",
        f"{STEP}def __init__(self, num_classes: int = {configuration.num_classes}) -> None:",
        f"{STEP * 2}super().__init__()",
    ]


def _lay_initialization(configuration: Configuration) -> list[str]:
    biases = 'elif name.endswith("bias"):' if configuration.batch_norm else "else:  # a bias"
    return [
        "def initialize(network: nn.Module) -> None:",
        *lay_docstring("Draw the first weights, by He et al.'s rule for ReLU as torchvision does.", depth=1),
        *(
            [f"{STEP}for name, values in network.named_parameters():"]
            if configuration.batch_norm
            else [f"{STEP}for values in network.parameters():"]
        ),
        f"{STEP * 2}if values.dim() == 4:  # the filters of a convolution",
        f'{STEP * 3}nn.init.kaiming_normal_(values, mode="fan_out", nonlinearity="relu")',
        f"{STEP * 2}elif values.dim() == 2:  # the matrix of a fully connected layer",
        f"{STEP * 3}nn.init.normal_(values, std=0.01)",
        f"{STEP * 2}{biases}",
        f"{STEP * 3}nn.init.zeros_(values)",
    ]


def _lay_script(configuration: Configuration) -> list[str]:
    side = picture_side(configuration)
    return [
        'if __name__ == "__main__":',
        f"{STEP}network = {_name_class(configuration)}().eval()  # to use it, not to train it",
        f"{STEP}picture = torch.randn(1, {configuration.in_channels}, {side}, {side})",
        f"{STEP}with torch.inference_mode():",
        f"{STEP * 2}logits = network(picture)",
        f"{STEP}parameters = sum(values.numel() for values in network.parameters())",
        f'{STEP}print(f"logits {{tuple(logits.shape)}}, {{parameters:,}} parameters")',
    ]
