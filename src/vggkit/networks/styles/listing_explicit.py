"""The third way of writing a VGG: every layer has a name of its own, and `forward` says what happens to the map."""

from vggkit.networks.configurations import Configuration, FullyConnected, Layer
from vggkit.networks.styles.layout import STEP, lay_comment
from vggkit.networks.styles.listing_heads import (
    lay_averaging,
    lay_head_remarks,
    lay_linear,
    lay_reading,
    lay_statistics,
)
from vggkit.networks.styles.listing_trunks import (
    LRN,
    lay_convolution_remarks,
    lay_layer,
    lay_pool_remarks,
    walk_blocks,
)


def write_explicit(configuration: Configuration) -> tuple[list[str], list[str]]:
    """Lines inside `__init__`, and lines of `forward`."""
    lines = [*lay_convolution_remarks(configuration, depth=2), *lay_pool_remarks(configuration, depth=2)]
    for block in walk_blocks(configuration):
        lines += ["", *lay_comment(block.heading, depth=2)]
        for layer in block.layers:
            if layer.kind in ("conv", "bn"):
                lines += lay_layer(layer, configuration, start=f"self.{layer.name} = ", depth=2)
    lines += ["", *lay_head_remarks(configuration, depth=2)]
    for j, fc in enumerate(configuration.fully_connected, start=1):
        lines += lay_linear(fc, configuration, start=f"self.fc{j} = ", depth=2)
    return [*lines, ""], _lay_forward(configuration)


def _lay_forward(configuration: Configuration) -> list[str]:
    lines, reads = [], "images"
    for block in walk_blocks(configuration):
        lines.append(f"# Block {block.number}: {block.pixels}")
        for group in _group(block.layers):
            lines += _lay_group(group, reads)
            reads = "x"
        if block.pool:
            lines.append(f"x = F.{'max' if configuration.pooling == 'max' else 'avg'}_pool2d(x, kernel_size=2)")
        lines.append("")
    lines += [*lay_reading(configuration, "x"), *_lay_head(configuration)]
    signature = f"{STEP}def forward(self, images: Tensor) -> Tensor:"
    return [signature, *(line and STEP * 2 + line for line in lines)]


def _group(layers: tuple[Layer, ...]) -> list[list[Layer]]:
    """Each convolution with what follows it."""
    groups: list[list[Layer]] = []
    for layer in layers:
        if layer.kind == "conv":
            groups.append([])
        groups[-1].append(layer)
    return groups


def _lay_group(layers: list[Layer], reads: str) -> list[str]:
    """One line for a convolution, its batch norm and ReLU, from the inside out; one more for LRN."""
    value, lines = reads, []
    for layer in layers:
        match layer.kind:
            case "conv" | "bn":
                value = f"self.{layer.name}({value})"
            case "relu":
                value = f"F.relu({value})"
            case _:
                lines = [f"x = F.local_response_norm(x, {LRN})"]
    return [f"x = {value}", *lines]


def _lay_head(configuration: Configuration) -> list[str]:
    lines, reads = [], "x"
    if configuration.head == "pool":
        lines, reads = lay_statistics(configuration, "x"), "statistics"
    elif configuration.head == "fc":
        lines = [f"x = torch.flatten(x, 1)  # (N, {configuration.head_features})"]
    dense, layers = configuration.head == "dense", configuration.fully_connected
    for j, fc in enumerate(layers, start=1):
        if dense:
            *before, value = _slide(f"self.fc{j}", fc, configuration.grid if j == 1 else 1)
        else:
            before, value = [], f"self.fc{j}({reads})"
        lines += before
        if fc != layers[-1]:
            lines.append(f"x = F.relu({value})")
            if configuration.dropout:
                lines.append(f"x = F.dropout(x, p={configuration.dropout}, training=self.training)")
        elif dense:
            lines += [f"x = {value}", *lay_averaging("x")]
        else:
            lines += [f"logits: Tensor = {value}", "return logits"]
        reads = "x"
    return lines


def _slide(name: str, fc: FullyConnected, window: int) -> list[str]:
    """Statements for all factors but the last, and the value of the last; only the first has a window."""
    if fc.rank is None:
        return [f"slide({name}, x, window={window})"]
    return [f"x = slide({name}[0], x, window={window})", f"slide({name}[1], x, window=1)"]
