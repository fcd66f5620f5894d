"""The verbs about networks and weights files: models, summary, code, identify, convert."""

import re
from pathlib import Path
from typing import Any

from vggkit.cli.printing import print_json, print_json_line
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput, describe_problem
from vggkit.models.configuration import Head, list_models
from vggkit.models.configure import configure
from vggkit.models.listing.listing import Style, write_listing
from vggkit.models.summary import summarize
from vggkit.reports.model_table import draw_models
from vggkit.reports.tables import draw_summary
from vggkit.reports.terminal import open_terminal, print_line
from vggkit.weights.bundled import BUNDLED, find_bundled
from vggkit.weights.classifier_file import read_card
from vggkit.weights.dialects import Dialect
from vggkit.weights.identification import FACT_COLUMNS, describe_identification
from vggkit.weights.input_conventions import find_convention


def models(*, json: bool = False) -> None:
    """List the networks of the paper and their variants with batch normalisation, and what comes with vggkit.

    For each: parameters, multiply-adds, the size of its weights, and the ImageNet accuracy of the published ones.

    Args:
        json: Print a JSON object in place of the table.
    """
    from vggkit.weights.published import list_published

    summaries = [summarize(configure(name)) for name in list_models()]
    if json:
        weights = {
            name: {record.tag: record.to_dict() for record in list_published(name)} for name in list_models()
        }
        networks = {s.model: {**s.to_dict()["totals"], "weights": weights[s.model]} for s in summaries}
        print_json(networks | {name: _describe_bundled(name) for name in BUNDLED})
    else:
        console = open_terminal()
        console.print(draw_models(summaries, width=console.width))


def summary(
    model: str = "vgg11",
    /,
    *,
    input: str = "224",  # noqa: A002
    blocks: str | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    head: Head | None = None,
    until: str | None = None,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """Describe a network layer by layer: output shape, parameters, multiply-adds, memory, receptive field.

    Args:
        model: A name that `vggkit models` lists.
        input: Height and width of the image in pixels: one number such as 224, or two such as 256x320.
        blocks: Widths such as 64,64/128,128/256,256 in place of the model's: output channels of each convolution,
            with commas between the convolutions of a block and slashes between blocks.
        num_classes: Number of classes.
        in_channels: Channels of the image.
        head: fc: the paper's fully connected layers; dense: the same layers as convolutions over an image of any
            size; pool: global average pooling and one linear layer. Without it: the model's.
        until: Cut the network after this layer, such as relu3_4 (which gets the pool head), fc6 or fc7.
        json: Print a JSON object in place of the table.
        plot: Also draw the network as a figure in this file (.png, .pdf or .svg).
    """
    found = summarize(
        configure(model, blocks=blocks, num_classes=num_classes, in_channels=in_channels, head=head, until=until),
        input=_read_size(input),
    )
    if plot is not None:
        from vggkit.reports.plots import plot_summary

        plot_summary(found, plot)
    if json:
        print_json(found.to_dict())
    else:
        open_terminal().print(draw_summary(found))
        if plot is not None:
            print_line(f"drawn: {plot}")


def code(
    model: str = "vgg11",
    /,
    *,
    style: Style = "sequential",
    blocks: str | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    head: Head | None = None,
    until: str | None = None,
    dropout: float | None = None,
) -> None:
    """Print a network as standalone, commented PyTorch code that imports nothing but torch.

    Args:
        model: A name that `vggkit models` lists.
        style: sequential: one nn.Sequential, with torchvision's keys; blocks: a module for each block; explicit:
            every layer by its name. The three compute the same; blocks and explicit have no --head and no --until.
        blocks: Widths such as 64,64/128,128/256,256 in place of the model's: output channels of each convolution,
            with commas between the convolutions of a block and slashes between blocks.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        head: fc: the paper's fully connected layers; dense: the same layers as convolutions over an image of any
            size; pool: global average pooling and one linear layer. Without it: the model's.
        until: Cut the network after this layer, such as relu3_4 (which gets the pool head), fc6 or fc7.
        dropout: Probability in [0, 1) of dropout. Without it: the model's, 0.5 in the paper.
    """
    configuration = configure(
        model,
        blocks=blocks,
        num_classes=num_classes,
        in_channels=in_channels,
        head=head,
        until=until,
        dropout=dropout,
    )
    for line in write_listing(configuration, style).splitlines():
        print_line(line)


def identify(files: tuple[Path, ...], /, *, json: bool = False) -> int:
    """Report what weights files contain: the network, its head and classes, the library whose layout they have.

    The tensors' names and shapes are read, never the files' names, and no code in a file is run. Exits with 2 where
    a file cannot be read.

    Args:
        files: Weights files: .pth, .pt, .ckpt, .safetensors, .npz, .npy, .h5, .keras.
        json: Print a JSON object for each file, one per line.
    """
    from vggkit.weights.identify import identify as look

    if not files:
        raise BadInput("identify needs a file: vggkit identify FILE…")
    refused = 0
    for file in files:
        try:
            found = look(file)
        except BadCheckpoint as problem:
            refused += 1
            print_line(f"vggkit: error: {describe_problem(problem)}", to_stderr=True)
            continue
        if json:
            print_json_line(found.to_dict())
        else:
            for line in describe_identification(found).splitlines():
                row = line.startswith("  ")
                print_line(line, indent=FACT_COLUMNS if row else 2, whole=line.startswith("  load "))
    return 2 if refused else 0


def convert(
    source: Path,
    target: Path,
    /,
    *,
    to: Dialect,
    input_convention: str | None = None,
    keep_input: bool = False,
    allow_partial: bool = False,
    reading: int = 0,
    json: bool = False,
) -> None:
    """Convert weights to the layout of another library, and check that both give the same logits.

    Args:
        source: A weights file of any kind that `vggkit identify` knows.
        target: The file to write: .safetensors or .pth; for Keras .h5, .weights.h5 or .npz; for Caffe .npz.
        to: The layout to write.
        input_convention: How the source's input is normalised, where the file does not state it: imagenet (RGB in
            [0, 1], ImageNet's mean and standard deviation), caffe (BGR in [0, 255], mean subtracted), caffe-rgb or
            caffe-unit.
        keep_input: Keep the source's input convention instead of folding it into the first convolution.
        allow_partial: Convert a file without the classification head.
        reading: Number of the network to convert, where identify lists several that the file may contain.
        json: Print a JSON object in place of the text.
    """
    from vggkit.weights.convert import convert as turn

    found = turn(
        source,
        target,
        to=to,
        input_convention=find_convention(input_convention),
        keep_input=keep_input,
        allow_partial=allow_partial,
        reading=reading,
    )
    if json:
        print_json(found.to_dict())
    else:
        print_line(str(found))


def _describe_bundled(name: str) -> dict[str, Any]:
    """The costs and the accuracy of a classifier that comes with vggkit."""
    card = read_card(find_bundled(name))
    side = card.preprocessing.crop_pixels
    totals = summarize(card.configuration, input=(side, side)).to_dict()["totals"]
    about = {"about": BUNDLED[name], "licence": card.provenance["licence"], **card.provenance["metrics"]}
    return {**totals, "weights": {"bundled": about}}


def _read_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if found is None:
        raise BadConfiguration(f"--input is a side such as 224, or height and width such as 256x320; got {text!r}")
    return int(found[1]), int(found[2] or found[1])
