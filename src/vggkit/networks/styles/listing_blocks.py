"""The second way of writing a VGG: a function builds one block, and the trunk is a row of blocks and pools."""

from vggkit.networks.configurations import Configuration
from vggkit.networks.styles.layout import STEP, lay_call, lay_comment
from vggkit.networks.styles.listing_heads import lay_classifier, lay_forward
from vggkit.networks.styles.listing_trunks import (
    LRN,
    Block,
    lay_convolution_remarks,
    lay_layer,
    lay_pool_remarks,
    walk_blocks,
    window,
)


def write_blocks(configuration: Configuration) -> tuple[list[str], list[str]]:
    """Lines inside `__init__`, and lines of `forward`."""
    lines = [*lay_pool_remarks(configuration, depth=2), f"{STEP * 2}self.features = nn.Sequential("]
    for block in walk_blocks(configuration):
        lines += lay_comment(block.heading, depth=3)
        lines += _lay_block(block, configuration)
        if block.pool:
            lines += lay_layer(block.pool, configuration, end=",", depth=3)
    lines.append(f"{STEP * 2})")
    return [*lines, *lay_classifier(configuration)], lay_forward(configuration)


def _lay_block(block: Block, configuration: Configuration) -> list[str]:
    """The call that builds a block, and the slice that cuts it."""
    mixed = _mixes_kernels(configuration)
    widths = [f"({c.out_channels}, {c.kernel})" if mixed else c.out_channels for c in block.convolutions]
    arguments = [block.convolutions[0].in_channels, *widths]
    positions = [layer.name.split("_")[1] for layer in block.layers if layer.kind == "lrn"]
    if positions:
        arguments.append(f"lrn_after=({', '.join(positions)}{',' if len(positions) == 1 else ''})")
    # A block is built whole; a trunk cut at a convolution or at its batch norm leaves the rest off.
    kind = block.layers[-1].kind
    missing = {"conv": 1 + configuration.batch_norm, "bn": 1}.get(kind, 0)
    return lay_call("conv_block", arguments, end=f"[:-{missing}]," if missing else ",", depth=3)


def write_conv_block(configuration: Configuration) -> list[str]:
    """The function that builds a block, with only the parameters that this network needs."""
    mixed, normalised = _mixes_kernels(configuration), any(layer.kind == "lrn" for layer in configuration.trunk)
    parameters = ["in_channels: int", "*layers: tuple[int, int]" if mixed else "*widths: int"]
    if normalised:
        parameters.append("lrn_after: tuple[int, ...] = ()")
    kernels = {layer.kernel for layer in configuration.trunk if layer.kind == "conv"}
    names = "Convolution, batch norm and ReLU" if configuration.batch_norm else "Convolution and ReLU"
    of = "(width, side of the window)" if mixed else "width"
    if mixed:
        loop, shape = "for i, (width, kernel) in enumerate(layers, start=1):", "kernel, padding=kernel // 2"
    else:
        loop, shape = "for i, width in enumerate(widths, start=1):", window(kernels.pop())
    lines = [
        *lay_call("def conv_block", parameters, end=" -> nn.Sequential:"),
        f'{STEP}"""{names}, once for each {of}."""',
        f"{STEP}block = nn.Sequential()",
        f"{STEP}{loop}",
        *lay_convolution_remarks(configuration, depth=2),
        f"{STEP * 2}conv = nn.Conv2d(in_channels, width, {shape})",
        f'{STEP * 2}block.add_module(f"conv{{i}}", conv)',
    ]
    if configuration.batch_norm:
        lines.append(f'{STEP * 2}block.add_module(f"bn{{i}}", nn.BatchNorm2d(width))')
    lines.append(f'{STEP * 2}block.add_module(f"relu{{i}}", nn.ReLU(inplace=True))')
    if normalised:
        lines += [
            f"{STEP * 2}if i in lrn_after:",
            f"{STEP * 3}lrn = nn.LocalResponseNorm({LRN})",
            f'{STEP * 3}block.add_module(f"lrn{{i}}", lrn)',
        ]
    return [*lines, f"{STEP * 2}in_channels = width", f"{STEP}return block"]


def _mixes_kernels(configuration: Configuration) -> bool:
    return len({layer.kernel for layer in configuration.trunk if layer.kind == "conv"}) > 1
