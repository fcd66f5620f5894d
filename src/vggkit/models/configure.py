"""Configurations from names and options: `configure`, and the widths of `--blocks`. No torch here."""

import re
from dataclasses import replace
from typing import Any

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import Configuration, Head, find_configuration, last_pool, layer_names


def configure(
    model: str | Configuration = "vgg11",
    *,
    blocks: tuple[tuple[int, ...], ...] | str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    head: Head | None = None,
    dropout: float | None = None,
    until: str | None = None,
) -> Configuration:
    """A model's configuration with the given changes; None keeps the model's value.

    Args:
        model: A name of `list_models()`, or a Configuration to change.
        blocks: Output channels of each convolution, block by block, in place of the model's: a tuple for each
            block, or text as `parse_blocks` reads it. All kernels are 3×3; batch normalisation, local response
            normalisation and head stay the model's.
        num_classes: Classes.
        in_channels: Channels of the images.
        head: `fc`, `dense` or `pool`. Changing to `pool` drops the hidden layers and the dropout.
        dropout: Chance in [0, 1).
        until: Last layer of the trunk. A cut trunk gets the pool head; where the cut falls before
            the last pool its maps are large, and the head reads mean and standard deviation. `fc6` and
            `fc7` (after their ReLU) keep the paper's head up to there, with a new last layer on it.

    Raises UnknownName and BadConfiguration.

    >>> configure("vgg11", num_classes=10).parameters
    128807306
    >>> configure("vgg11_bn", blocks="64,64/128,128/256,256", num_classes=10).model
    'custom'
    """
    start = find_configuration(model) if isinstance(model, str) else model
    if not isinstance(start, Configuration):
        raise BadConfiguration(f"a model is a name or a Configuration, got {type(model).__name__}")
    if blocks is not None:
        start = replace(start, blocks=parse_blocks(blocks) if isinstance(blocks, str) else blocks, kernels=None)
    changes: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "dropout": dropout}
    changes = {name: value for name, value in changes.items() if value is not None}
    depth = _fc_depth(until, start)
    if depth is not None:
        if head == "pool":
            raise BadConfiguration(f"until={until!r} keeps the fully connected layers, and head='pool' has none")
        changes |= {"hidden": start.hidden[:depth], "ranks": start.ranks and (*start.ranks[:depth], None)}
    elif until is not None:
        changes["until"] = until
        whole = until == last_pool(start)
        if head not in (None, "pool") and not whole:
            raise BadConfiguration(f"a trunk cut at {until!r} takes head='pool', got head={head!r}")
        head = head or "pool"
        changes["statistics"] = "mean" if whole else "mean+std"
    if head is not None and head != start.head:
        changes["head"] = head
        if head == "pool":
            changes = {"hidden": (), "ranks": None, "dropout": 0.0} | changes
        elif start.head == "pool":
            raise BadConfiguration(
                f"head={head!r} cannot be put in place of a pool head, whose fully connected layers "
                f"are of other widths; start from a model's name, such as {start.model!r}"
            )
    return replace(start, **changes)


def parse_blocks(text: str) -> tuple[tuple[int, ...], ...]:
    """The widths of a network's convolutions from text: commas between convolutions, slashes between blocks.

    Args:
        text: Output channels, such as `64,64/128,128/256,256` for three blocks of two convolutions each.

    Raises BadConfiguration where the text is anything else.

    >>> parse_blocks("64/128/256,256")
    ((64,), (128,), (256, 256))
    """
    if not re.fullmatch(r"\s*[1-9]\d{0,5}(\s*[,/]\s*[1-9]\d{0,5})*\s*", text, flags=re.ASCII):
        raise BadConfiguration(
            "blocks are the output channels of each convolution, whole numbers from 1 to 999999, with commas "
            "between the convolutions of a block and slashes between blocks, such as 64,64/128,128/256,256; "
            f"got {text!r}"
        )
    return tuple(tuple(int(width) for width in block.split(",")) for block in text.split("/"))


def _fc_depth(until: str | None, configuration: Configuration) -> int | None:
    """The number of hidden layers up to and with `until`; None where it names no layer of the head."""
    if not isinstance(until, str) or configuration.head == "pool":
        return None
    found = re.fullmatch(r"(?:fc|relu)(\d+)", until)
    if found is None:
        return None
    depth = int(found[1]) - 5
    if not 1 <= depth <= len(configuration.hidden):
        raise UnknownName.of("layer to cut after", until, layer_names(configuration))
    return depth


def demand_configuration(given: object, verb: str) -> Configuration:
    """The Configuration of what was given to a function: a Configuration, a name, a VGG or a Classifier.

    Raises UnknownName with the nearest name, and BadConfiguration for what is none of these.
    """
    if isinstance(given, str):
        return find_configuration(given)
    found = getattr(given, "configuration", given)
    if isinstance(found, Configuration):
        return found
    raise BadConfiguration(
        f"{verb} takes a Configuration, a name such as 'vgg11' or a network, got {type(given).__name__}"
    )
