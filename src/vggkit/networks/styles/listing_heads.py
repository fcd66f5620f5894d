"""The head of a listing: its fully connected layers, and how the map becomes what they read."""

from vggkit.networks.configurations import Configuration, FullyConnected
from vggkit.networks.styles.layout import STEP, lay_call, lay_comment
from vggkit.networks.styles.listing_trunks import write_map_shape

SLIDE = '''\
def slide(layer: nn.Linear, maps: Tensor, window: int) -> Tensor:
    """Apply a fully connected layer to every window of the maps, as a convolution."""
    filters = layer.weight.view(layer.out_features, -1, window, window)
    return F.conv2d(maps, filters, layer.bias)
'''


def lay_linear(
    fc: FullyConnected, configuration: Configuration, *, start: str = "", end: str = "", depth: int
) -> list[str]:
    """The fully connected layer as a torch module: one matrix, or two factors."""
    reads = _write_head_features(configuration) if fc.index == 0 else str(fc.in_features)
    gives = "num_classes" if fc == configuration.fully_connected[-1] else str(fc.out_features)
    if fc.rank is None:
        return lay_call(f"{start}nn.Linear", (reads, gives), end=end, depth=depth)
    return [
        f"{STEP * depth}{start}nn.Sequential(",
        *lay_call("nn.Linear", (reads, fc.rank, "bias=False"), end=",", depth=depth + 1),
        *lay_call("nn.Linear", (fc.rank, gives), end=",", depth=depth + 1),
        f"{STEP * depth}){end}",
    ]


def _write_head_features(configuration: Configuration) -> str:
    """What the first layer reads, as the product a reader can follow."""
    channels, grid = configuration.trunk_channels, configuration.grid
    if configuration.head == "pool":
        return f"2 * {channels}" if configuration.statistics == "mean+std" else str(channels)
    return f"{channels} * {grid} * {grid}" if grid > 1 else str(channels)


def lay_head_remarks(configuration: Configuration, *, depth: int) -> list[str]:
    """What a learner asks about the head, said once above it."""
    channels, grid, numbers = configuration.trunk_channels, configuration.grid, f"{configuration.head_features:,}"
    if configuration.head == "pool":
        what = "the mean and standard deviation" if configuration.statistics == "mean+std" else "the mean"
        remarks = [f"The head reads {what} of {channels} channels: {numbers} numbers."]
    else:
        remarks = [f"The first layer reads a {grid}x{grid} map of {channels} channels: {numbers} numbers."]
    share = _count_head(configuration) / configuration.parameters
    if share > 0.5:
        remarks.append(f"{share:.0%} of all parameters are from here on.")
    if configuration.ranks:
        remarks.append("Two thin matrices in a row stand for a large one of low rank.")
    if configuration.hidden and configuration.dropout:
        remarks.append("Dropout works in training only, against learning pictures by heart.")
    return [line for remark in remarks for line in lay_comment(remark, depth=depth)]


def _count_head(configuration: Configuration) -> int:
    """Number of parameters in the head."""
    count = 0
    for fc in configuration.fully_connected:
        matrix = fc.in_features * fc.out_features
        factors = matrix if fc.rank is None else fc.rank * (fc.in_features + fc.out_features)
        count += factors + fc.out_features
    return count


def lay_classifier(configuration: Configuration) -> list[str]:
    """`self.classifier` as one Sequential: ReLU and dropout after each layer but the last."""
    layers = configuration.fully_connected
    lines = [*lay_head_remarks(configuration, depth=2), f"{STEP * 2}self.classifier = nn.Sequential("]
    for fc in layers:
        lines += lay_linear(fc, configuration, end=",", depth=3)
        if fc != layers[-1]:
            lines += [f"{STEP * 3}nn.ReLU(inplace=True),", f"{STEP * 3}nn.Dropout({configuration.dropout}),"]
    return [*lines, f"{STEP * 2})"]


def lay_forward(configuration: Configuration) -> list[str]:
    """`forward` of a network that has `features` and `classifier`."""
    body = [
        f"maps = self.features(images)  # {write_map_shape(configuration)}",
        *lay_reading(configuration, "maps"),
    ]
    match configuration.head:
        case "fc":
            body += [
                "logits: Tensor = self.classifier(torch.flatten(maps, 1))",
                "return logits",
            ]
        case "pool":
            body += [
                *lay_statistics(configuration, "maps"),
                "logits: Tensor = self.classifier(statistics)",
                "return logits",
            ]
        case "dense":
            body += _lay_sliding(configuration)
    signature = f"{STEP}def forward(self, images: Tensor) -> Tensor:"
    return [signature, *(STEP * 2 + line for line in body)]


def lay_reading(configuration: Configuration, maps: str) -> list[str]:
    """The map brought to the size that the fully connected layers read; nothing for a pool head. No margin."""
    grid = configuration.grid
    if configuration.head == "pool":
        return []
    if configuration.head == "fc":
        return [
            f"# The head reads {grid}x{grid} maps: one of another size is averaged to that.",
            f"if {maps}.shape[-2:] != ({grid}, {grid}):",
            f"{STEP}{maps} = F.adaptive_avg_pool2d({maps}, {grid})",
        ]
    if grid == 1:
        return []
    return [
        f"# The head slides over the map; a smaller map is first brought to {grid}x{grid}.",
        f"height, width = {maps}.shape[-2:]",
        f"if height < {grid} or width < {grid}:",
        f"{STEP}sides = (max(height, {grid}), max(width, {grid}))",
        f"{STEP}{maps} = F.adaptive_avg_pool2d({maps}, sides)",
    ]


def lay_statistics(configuration: Configuration, maps: str) -> list[str]:
    """`statistics` (N, numbers) of the channels of a map, with the dropout before the first layer. No margin."""
    dropout = []
    if configuration.dropout:
        dropout = [f"statistics = F.dropout(statistics, p={configuration.dropout}, training=self.training)"]
    if configuration.statistics == "mean":
        return [f"statistics = {maps}.mean((2, 3))", *dropout]
    return [
        f"mean = {maps}.mean((2, 3))",
        f"variance = {maps}.var((2, 3), correction=0)",
        "std = (variance + 1e-5).sqrt()  # the root of 0 has no gradient",
        "statistics = torch.cat([mean, std], dim=1)",
        *dropout,
    ]


def lay_averaging(maps: str) -> list[str]:
    """The end of a dense head. No margin."""
    return [
        "# Every place of the map has its own scores: (N, num_classes, rows, columns).",
        f"logits: Tensor = {maps}.mean((2, 3))",
        "return logits",
    ]


def _lay_sliding(configuration: Configuration) -> list[str]:
    """The classifier slid over `maps`, and the scores averaged. No margin."""
    low_rank = configuration.ranks is not None
    grid = configuration.grid
    return [
        f"window = {grid}",
        f"for layer in self.classifier{'.modules()' if low_rank else ''}:",
        f"{STEP}if isinstance(layer, nn.Linear):",
        f"{STEP * 2}maps = slide(layer, maps, window)",
        *([f"{STEP * 2}window = 1  # only the first layer reads a window"] if grid > 1 else []),
        f"{STEP}elif not isinstance(layer, nn.Sequential):" if low_rank else f"{STEP}else:",
        f"{STEP * 2}maps = layer(maps)",
        *lay_averaging("maps"),
    ]
