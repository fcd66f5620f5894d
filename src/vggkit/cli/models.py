"""Know what you have: networks and files of weights."""

import re
from pathlib import Path

from vggkit.cli.printing import print_json, print_json_line
from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput, describe_problem
from vggkit.models.configuration import Head, configure, list_models
from vggkit.models.listing.listing import Style, write_listing
from vggkit.models.summary import summarize
from vggkit.reports.model_table import draw_models
from vggkit.reports.tables import draw_summary
from vggkit.reports.terminal import open_terminal, print_line
from vggkit.reports.weight_texts import describe_identification
from vggkit.weights.dialects import Dialect
from vggkit.weights.input_conventions import find_convention


def models(*, json: bool = False) -> None:
    """The networks of the paper and their batch-norm variants: what they cost, and what published weights reach.

    Args:
        json: One JSON object in place of the table.
    """
    from vggkit.weights.published import list_published

    summaries = [summarize(configure(name)) for name in list_models()]
    if json:
        weights = {
            name: {record.tag: record.to_dict() for record in list_published(name)} for name in list_models()
        }
        print_json({s.model: {**s.to_dict()["totals"], "weights": weights[s.model]} for s in summaries})
    else:
        console = open_terminal()
        console.print(draw_models(summaries, width=console.width))


def summary(
    model: str = "vgg11",
    /,
    *,
    input: str = "224",  # noqa: A002
    classes: int = 1000,
    channels: int = 3,
    head: Head | None = None,
    until: str | None = None,
    json: bool = False,
    plot: Path | None = None,
) -> None:
    """A network layer by layer: output shape, parameters, multiply-adds, memory, receptive field.

    Args:
        model: A name that `vggkit models` lists.
        input: Pixels of the image: 224, or height and width as 256x320.
        classes: Number of classes.
        channels: Channels of the image.
        head: fc (the paper's), dense (the same as convolutions) or pool.
        until: Cut after this layer: relu3_4 and a pool head on it, or fc6 and fc7, which keep the head up to there.
        json: One JSON object in place of the table.
        plot: Also draw it, to this .png, .pdf or .svg.
    """
    found = summarize(
        configure(model, num_classes=classes, in_channels=channels, head=head, until=until),
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
    classes: int = 1000,
    channels: int = 3,
    head: Head | None = None,
    until: str | None = None,
    dropout: float | None = None,
) -> None:
    """A network as a standalone, commented listing that needs torch and nothing else.

    Args:
        model: A name that `vggkit models` lists.
        style: One Sequential, conv blocks, or explicit layers, with the same logits. The last two take no --head
            and no --until.
        classes: Number of classes.
        channels: Channels of the images.
        head: fc (the paper's), dense (the same as convolutions) or pool.
        until: Cut after this layer: relu3_4 and a pool head on it, or fc6 and fc7, which keep the head up to there.
        dropout: Chance in [0, 1).
    """
    configuration = configure(
        model, num_classes=classes, in_channels=channels, head=head, until=until, dropout=dropout
    )
    for line in write_listing(configuration, style).splitlines():
        print_line(line)


def identify(files: tuple[Path, ...], /, *, json: bool = False) -> int:
    """What files of weights really hold, by their shapes and not by their names.

    Args:
        files: .pth, .safetensors, .npz, .h5, .keras and others.
        json: A JSON object a file and line.
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
                print_line(line)
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
    """Write weights in another dialect, checked to give the same logits.

    Args:
        source: Any file that identify reads.
        target: The file to write: .safetensors or .pth; for Keras .h5, .weights.h5 or .npz; for Caffe .npz.
        to: The dialect.
        input_convention: What the source is fed, where it does not tell: imagenet, caffe, caffe-rgb, caffe-unit.
        keep_input: Leave the first filters and the input convention as they are.
        allow_partial: Convert what is there of a file without a head.
        reading: Which network the source is taken for, of those that identify lists where it may be several.
        json: One JSON object in place of the text.
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


def _read_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if found is None:
        raise BadConfiguration(f"--input is a side such as 224, or height and width such as 256x320; got {text!r}")
    return int(found[1]), int(found[2] or found[1])
