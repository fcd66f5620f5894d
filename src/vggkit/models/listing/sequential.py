"""The first way of writing a VGG: all layers of the trunk in one Sequential. Its keys are torchvision's.

It writes every configuration: cut trunks, other heads, factors of low rank.
"""

from typing import Final

from vggkit.models.configuration import Configuration
from vggkit.models.listing.parts import (
    remark_on_convolutions,
    remark_on_head,
    remark_on_sizes,
    split_blocks,
    write_class,
    write_classifier,
    write_fc_reading,
    write_layer,
    write_map_shape,
    write_sequence,
)

_SLIDE: Final = '''\
def slide(layer: nn.Linear, maps: Tensor, window: int) -> Tensor:
    """Apply a fully connected layer to every window of the maps, as a convolution."""
    filters = layer.weight.view(layer.out_features, -1, window, window)
    return F.conv2d(maps, filters, layer.bias)


'''
_DENSE: Final = """\
# The head slides over the map; a smaller map is first brought to {grid}x{grid}.
height, width = maps.shape[-2:]
if height < {grid} or width < {grid}:
    sides = (max(height, {grid}), max(width, {grid}))
    maps = F.adaptive_avg_pool2d(maps, sides)
window = {grid}
for layer in self.classifier.modules():
    if isinstance(layer, nn.Linear):
        maps = slide(layer, maps, window)
        window = 1  # only the first layer reads a window
    elif not isinstance(layer, nn.Sequential):
        maps = layer(maps)
# Every place of the map has its own scores: (N, num_classes, rows, columns).
logits: Tensor = maps.mean((2, 3))
return logits
"""
_MEAN_AND_STD: Final = """\
mean = maps.mean((2, 3))
variance = maps.var((2, 3), correction=0)
std = (variance + 1e-5).sqrt()  # the root of 0 has no gradient
statistics = torch.cat([mean, std], dim=1)
"""


def write_sequential(configuration: Configuration) -> str:
    """The definitions of a listing."""
    lines = []
    for block in split_blocks(configuration):
        lines += [block.heading, *(f"{write_layer(layer, configuration)}," for layer in block.layers)]
    init = [
        remark_on_convolutions(configuration),
        remark_on_sizes(configuration),
        write_sequence("self.features", "\n".join(lines)),
        remark_on_head(configuration),
        write_classifier(configuration),
    ]
    network = write_class(configuration, init="\n".join(filter(None, init)), forward=write_forward(configuration))
    return _SLIDE + network if configuration.head == "dense" else network


def write_forward(configuration: Configuration) -> str:
    """`forward` of a network that has `features` and `classifier`."""
    start = f"maps = self.features(images)  # {write_map_shape(configuration)}\n"
    match configuration.head:
        case "fc":
            end = "logits: Tensor = self.classifier(torch.flatten(maps, 1))\nreturn logits\n"
            return f"{start}{write_fc_reading(configuration, 'maps')}\n{end}"
        case "dense":
            return start + _DENSE.format(grid=configuration.grid)
        case "pool":
            mean = "statistics = maps.mean((2, 3))\n"
            taken = _MEAN_AND_STD if configuration.statistics == "mean+std" else mean
            p = configuration.dropout
            dropped = f"statistics = F.dropout(statistics, p={p}, training=self.training)\n" if p else ""
            return f"{start}{taken}{dropped}logits: Tensor = self.classifier(statistics)\nreturn logits\n"
