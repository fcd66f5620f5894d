"""The second way of writing a VGG: a function builds one block, and the trunk is a row of blocks and pools."""

from textwrap import indent

from vggkit.models.configuration import Configuration
from vggkit.models.listing.parts import (
    LRN,
    Block,
    remark_on_convolutions,
    remark_on_head,
    remark_on_sizes,
    split_blocks,
    write_class,
    write_classifier,
    write_layer,
    write_sequence,
)
from vggkit.models.listing.sequential import write_forward


def write_blocks(configuration: Configuration) -> str:
    """The definitions of a listing; the trunk is one of the table."""
    lines = []
    for block in split_blocks(configuration):
        pool = write_layer(block.layers[-1], configuration)
        lines += [block.heading, f"{_call_conv_block(block, configuration)},", f"{pool},"]
    init = [
        remark_on_sizes(configuration),
        write_sequence("self.features", "\n".join(lines)),
        remark_on_head(configuration),
        write_classifier(configuration),
    ]
    network = write_class(configuration, init="\n".join(init), forward=write_forward(configuration))
    return f"{_write_conv_block(configuration)}\n\n\n{network}"


def _call_conv_block(block: Block, configuration: Configuration) -> str:
    convolutions = block.convolutions
    mixed = configuration.kernels is not None
    layers = [f"({conv.out_channels}, {conv.kernel})" if mixed else str(conv.out_channels) for conv in convolutions]
    lrn = ["lrn=True"] if any(layer.kind == "lrn" for layer in block.layers) else []
    return f"conv_block({', '.join([str(convolutions[0].in_channels), *layers, *lrn])})"


def _write_conv_block(configuration: Configuration) -> str:
    """The function that builds a block, with only the parameters that this network needs."""
    parameters, of, each = "*widths: int", "width", "width in enumerate(widths, start=1)"
    window, names, norm, lrn = "kernel_size=3, padding=1", "Convolution and ReLU", "", ""
    if configuration.kernels is not None:
        parameters, of = "*layers: tuple[int, int]", "(width, side of the window)"
        each, window = "(width, kernel) in enumerate(layers, start=1)", "kernel, padding=kernel // 2"
    if configuration.batch_norm:
        names = "Convolution, batch norm and ReLU"
        norm = '\n        block.add_module(f"bn{i}", nn.BatchNorm2d(width))'
    if configuration.lrn_after:
        parameters += ", lrn: bool = False"
        lrn = f"\n    if lrn:\n        normalize = nn.LocalResponseNorm({LRN})"
        lrn += '\n        block.add_module("lrn", normalize)'
    return f'''\
def conv_block(in_channels: int, {parameters}) -> nn.Sequential:
    """{names}, once for each {of}."""
    block = nn.Sequential()
    for i, {each}:
{indent(remark_on_convolutions(configuration), " " * 8)}
        conv = nn.Conv2d(in_channels, width, {window})
        block.add_module(f"conv{{i}}", conv){norm}
        block.add_module(f"relu{{i}}", nn.ReLU(inplace=True))
        in_channels = width{lrn}
    return block'''
