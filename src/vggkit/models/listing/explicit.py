"""The third way of writing a VGG: every layer has its own name, and `forward` lists every operation."""

from vggkit.models.configuration import Configuration
from vggkit.models.listing.parts import (
    LRN,
    Block,
    remark_on_convolutions,
    remark_on_head,
    remark_on_sizes,
    split_blocks,
    write_class,
    write_fc_reading,
    write_layer,
    write_linear,
)


def write_explicit(configuration: Configuration) -> str:
    """The definitions of a listing; the trunk is one of the table."""
    blocks = split_blocks(configuration)
    init = [f"{remark_on_convolutions(configuration)}\n{remark_on_sizes(configuration)}"]
    for block in blocks:
        weighted = [layer for layer in block.layers if layer.kind in ("conv", "bn")]
        lines = [f"self.{layer.name} = {write_layer(layer, configuration)}" for layer in weighted]
        init.append("\n".join([block.heading, *lines]))
    head = [
        f"self.fc{j} = {write_linear(fc, configuration)}" for j, fc in enumerate(configuration.fully_connected, 1)
    ]
    init.append("\n".join([remark_on_head(configuration), *head]))
    forward = [*map(_write_block, blocks), _write_head(configuration)]
    forward[0] = forward[0].replace("(x)", "(images)", 1)
    return write_class(configuration, init="\n\n".join(init) + "\n", forward="\n\n".join(forward))


def _write_block(block: Block) -> str:
    """A line for a convolution with its batch norm and ReLU, from the inside out; one for LRN and for the pool."""
    lines = [f"# Block {block.number}: {block.pixels}"]
    for layer in block.layers:
        match layer.kind:
            case "conv":
                value = f"self.{layer.name}(x)"
            case "bn":
                value = f"self.{layer.name}({value})"
            case "relu":
                lines.append(f"x = F.relu({value})")
            case "lrn":
                lines.append(f"x = F.local_response_norm(x, {LRN})")
            case "pool":
                lines.append("x = F.max_pool2d(x, kernel_size=2)")
    return "\n".join(lines)


def _write_head(configuration: Configuration) -> str:
    lines = [
        write_fc_reading(configuration, "x"),
        f"x = torch.flatten(x, 1)  # (N, {configuration.head_features})",
    ]
    for j, _ in enumerate(configuration.hidden, start=1):
        lines.append(f"x = F.relu(self.fc{j}(x))")
        if configuration.dropout:
            lines.append(f"x = F.dropout(x, p={configuration.dropout}, training=self.training)")
    lines.append(f"logits: Tensor = self.fc{len(configuration.hidden) + 1}(x)\nreturn logits\n")
    return "\n".join(lines)
