"""The first way of writing a VGG: all layers of the trunk in one Sequential. Its keys are torchvision's."""

from vggkit.networks.configurations import Configuration
from vggkit.networks.styles.layout import STEP, lay_comment
from vggkit.networks.styles.listing_heads import lay_classifier, lay_forward
from vggkit.networks.styles.listing_trunks import (
    lay_convolution_remarks,
    lay_layer,
    lay_pool_remarks,
    walk_blocks,
)


def write_sequential(configuration: Configuration) -> tuple[list[str], list[str]]:
    """Lines inside `__init__`, and lines of `forward`."""
    lines = [*lay_convolution_remarks(configuration, depth=2), *lay_pool_remarks(configuration, depth=2)]
    lines.append(f"{STEP * 2}self.features = nn.Sequential(")
    for block in walk_blocks(configuration):
        lines += lay_comment(block.heading, depth=3)
        for layer in (*block.layers, *([block.pool] if block.pool else [])):
            lines += lay_layer(layer, configuration, end=",", depth=3)
    lines.append(f"{STEP * 2})")
    return [*lines, *lay_classifier(configuration)], lay_forward(configuration)
