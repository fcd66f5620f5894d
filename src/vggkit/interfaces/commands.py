"""The verbs of the command line: they translate options into calls and results into text.

Arguments before `/` are positional, the others options; tyro reads both, and the help, from here.
"""

import json as json_format
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from vggkit.errors import BadCheckpoint, BadConfiguration, BadInput
from vggkit.images.preprocessing import FitMode
from vggkit.images.sources import Columns
from vggkit.networks.configurations import Head, Scheme, configure, list_models
from vggkit.networks.conventions import find_convention
from vggkit.networks.dialects import Dialect
from vggkit.networks.styles.listings import Style, write_listing
from vggkit.reports.model_table import draw_models
from vggkit.reports.progress import ProgressLine
from vggkit.reports.tables import draw_summary
from vggkit.reports.weight_texts import describe_identification
from vggkit.tasks.inspection import summarize
from vggkit.tasks.training.recipe import Recipe


def models(*, json: bool = False) -> None:
    """The networks of the paper and their batch-norm variants: what they cost, and what published weights reach.

    Args:
        json: One JSON object in place of the table.
    """
    from vggkit.networks.publishing.published import list_published

    summaries = [summarize(configure(name)) for name in list_models()]
    if json:
        weights = {
            name: {record.tag: record.to_dict() for record in list_published(name)} for name in list_models()
        }
        _print_json({s.model: {**s.to_dict()["totals"], "weights": weights[s.model]} for s in summaries})
    else:
        console = Console(highlight=False)
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
        input: Pixels of the picture: 224, or height and width as 256x320.
        classes: Number of classes.
        channels: Channels of the picture.
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
        _print_json(found.to_dict())
    else:
        Console(highlight=False).print(draw_summary(found))
        if plot is not None:
            print(f"drawn: {plot}")


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
        style: One Sequential, conv blocks, or explicit layers; the same network, and the same logits.
        classes: Number of classes.
        channels: Channels of the pictures.
        head: fc (the paper's), dense (the same as convolutions) or pool.
        until: Cut after this layer: relu3_4 and a pool head on it, or fc6 and fc7, which keep the head up to there.
        dropout: Chance in [0, 1).
    """
    configuration = configure(
        model, num_classes=classes, in_channels=channels, head=head, until=until, dropout=dropout
    )
    print(write_listing(configuration, style), end="")


def identify(files: tuple[Path, ...], /, *, json: bool = False) -> int:
    """What files of weights really hold, by their shapes and not by their names.

    Args:
        files: .pth, .safetensors, .npz, .h5, .keras and others.
        json: A JSON object a file and line.
    """
    from vggkit.networks.recognition.identification import identify as look

    if not files:
        raise BadInput("identify needs a file: vggkit identify FILE…")
    refused = 0
    for file in files:
        try:
            found = look(file)
        except BadCheckpoint as problem:
            refused += 1
            print(f"vggkit: error: {problem}", file=sys.stderr)
            continue
        if json:
            print(json_format.dumps(found.to_dict(), ensure_ascii=False))
        else:
            print(describe_identification(found))
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
        json: One JSON object in place of the text.
    """
    from vggkit.networks.conversion import convert as turn

    found = turn(
        source,
        target,
        to=to,
        input_convention=find_convention(input_convention),
        keep_input=keep_input,
        allow_partial=allow_partial,
    )
    if json:
        _print_json(found.to_dict())
    else:
        print(found)


def check(
    data: str,
    /,
    *,
    model: Path | None = None,
    html: Path | None = None,
    fix: Path | None = None,
    image_size: int | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Look at a collection of pictures before an hour is spent on it: what it holds, and what is wrong.

    Unreadable files, copies (across parts: leakage; across classes: contradictions), missing, small and
    uneven classes; with --model also labels that are likely wrong and pictures unlike all others.
    Exits with 1 where figures would lie, with 0 else.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, or a name such as cifar10.
        model: A Classifier's file, or a run's folder, that knows such pictures.
        html: Also write a page with the pictures, one file that needs no network.
        fix: Also write a cleaned table of path, label and split; pictures are left as they are.
        image_size: Pixels that the network is to see. Without it: the Classifier's, or 224.
        columns: What a table's columns are called.
        device: auto, cpu, cuda or mps; for --model.
        json: One JSON object in place of the table.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import open_pictures
    from vggkit.workflows.doctor import check as look

    classifier = None
    if model is not None:
        from vggkit.networks.classifier import load

        classifier = load(model)
    with ProgressLine(quiet=quiet) as line:
        pictures = open_pictures(data, columns=columns)
        found = look(pictures, classifier, image_pixels=image_size, device=device, on_progress=line.show)
        if html is not None:
            from vggkit.reports.diagnosis_page import write_diagnosis_page

            line.show("drawing the page", 0, None)
            write_diagnosis_page(found, html)
    if json:
        _print_json(found.to_dict())
    else:
        from vggkit.reports.diagnosis_table import draw_diagnosis

        Console(highlight=False).print(draw_diagnosis(found))
    if html is not None:
        print(f"page: {html}", file=sys.stderr)
    if fix is not None:
        from vggkit.tasks.diagnosis.cleaning import write_clean_table

        left_out = write_clean_table(pictures, found, fix)
        said = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"
        print(f"table: {fix}; left out: {said}", file=sys.stderr)
    return 1 if any(finding.severity == "error" for finding in found.findings) else 0


def train(
    data: str = "digits",
    /,
    *,
    model: str = "vgg11",
    out: Path | None = None,
    weights: Path | None = None,
    head: Head | None = None,
    until: str | None = None,
    image_size: int | None = None,
    fit_mode: FitMode | None = None,
    reduced_decoding: bool = False,
    channels: int = 3,
    dropout: float | None = None,
    initialization: Scheme = "kaiming",
    input_convention: str | None = None,
    allow_partial: bool = False,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    despite_findings: bool = False,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a Classifier on labelled pictures.

    The folder holds a subfolder for each class, or train/ and val/ (valid/, validation/, test/) that do;
    without parts, a share of each class is held out. digits are 1,797 real handwritten digits.

    Args:
        data: A folder, a table, tar shards, Parquet, hf://datasets/owner/name, or a name such as digits or cifar10.
        model: A name that `vggkit models` lists.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        weights: Start from imagenet, the published weights, or from a file of a VGG's weights, such as .pth.
        head: fc (the paper's), dense or pool. Without it: the model's, and pool below 128 pixels.
        until: Cut after this layer: relu3_4 and a pool head on it, or fc6 and fc7, which keep the head up to there.
        image_size: Pixels at which pictures are fed. Without it: 224, or smaller pictures' own size.
        fit_mode: crop (the middle), pad (the whole picture on the mean colour) or stretch; of predictions too.
        reduced_decoding: Decode large JPEGs at a smaller scale: faster, and slightly other pixels.
        channels: 3, or 1 for grey.
        dropout: Chance in [0, 1).
        initialization: How random weights are drawn.
        input_convention: What the weights are fed, where unknown: imagenet, caffe, caffe-rgb or caffe-unit.
        allow_partial: Take what fits of the weights; the rest stays random, and every key is reported.
        recipe: How to learn.
        columns: What a table's columns are called.
        despite_findings: Train even where figures would lie, such as a class missing from validation.
        device: auto, cpu, cuda or mps.
        json: One JSON object with the result on standard output.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import open_pictures
    from vggkit.workflows.runs import suit_classifier
    from vggkit.workflows.runs import train as run_training

    pictures = open_pictures(data, columns=columns)
    if str(weights) == "imagenet":
        _fetch_weights(configure(model, head=head, dropout=dropout, until=until).model, quiet=quiet)
    classifier = suit_classifier(
        pictures,
        model,
        weights=weights,
        image_pixels=image_size,
        fit_mode=fit_mode,
        reduced_decoding=reduced_decoding,
        in_channels=channels,
        head=head,
        dropout=dropout,
        until=until,
        initialization=initialization,
        input_convention=input_convention,
        allow_partial=allow_partial,
        seed=recipe.seed,
    )
    run = run_training(
        classifier, pictures, recipe, out=out, device=device, despite_findings=despite_findings, quiet=quiet
    )
    if json:
        _print_json(
            {
                "directory": str(run.directory),
                "best_epoch": run.best_epoch,
                **{name: getattr(run.evaluation, name) for name in ("top1", "top1_interval", "top5", "loss", "n")},
                "data": run.evaluation.data,
            }
        )
        return
    print(_describe(run.evaluation))
    print(f"{run.directory}: best.safetensors, learning_curve.png, confusion_matrix.png, metrics.csv, config.yaml")
    print(f"next: vggkit predict {run.directory}/best.safetensors PICTURE…")


def evaluate(
    model: Path,
    data: str = "digits",
    /,
    *,
    split: str | None = None,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Measure a Classifier on labelled pictures.

    Args:
        model: A Classifier's file, or a run's folder.
        data: As for train.
        split: train, val, test or all. Without it: test, else val, else everything that was not trained on.
        columns: What a table's columns are called.
        batch_size: Pictures that pass through the network together.
        device: auto, cpu, cuda or mps.
        json: One JSON object in place of the text.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import open_pictures
    from vggkit.networks.classifier import load
    from vggkit.tasks.evaluation import evaluate as measure

    classifier = load(model)
    with ProgressLine(quiet=quiet) as line:
        found = measure(
            classifier,
            open_pictures(data, columns=columns),
            split=split,
            batch_size=batch_size,
            device=device,
            on_progress=lambda done, total: line.show("measuring", done, total),
        )
        for problem in found.unreadable:
            line.say(f"left out: {problem}")
        for note in found.notes:
            line.say(f"note: {note}")
    if json:
        _print_json(found.to_dict())
    else:
        print(_describe(found))


def predict(
    model: Path,
    pictures: tuple[str, ...],
    /,
    *,
    top: int = 5,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Say what pictures show, the most probable classes first.

    Args:
        model: A Classifier's file, or a run's folder.
        pictures: Files, folders (every picture below), lists (.txt), tables, archives, or - for standard input.
        top: How many classes to name.
        columns: What a table's columns are called.
        batch_size: Pictures that pass through the network together.
        device: auto, cpu, cuda or mps.
        json: A JSON object a picture and line: path, labels, probabilities; problem where it cannot be read.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import is_streamed, list_pictures
    from vggkit.networks.classifier import load
    from vggkit.tasks.prediction import iterate_predictions

    if not pictures:
        raise BadInput("predict needs a picture: vggkit predict MODEL PICTURE…")
    classifier = load(model)
    # With the number of all, the time left is known.
    listed = pictures if any(map(is_streamed, pictures)) else list_pictures(pictures, columns=columns)
    answered = False
    with ProgressLine(quiet=quiet) as line:
        answers = iterate_predictions(
            classifier,
            listed,
            top=top,
            batch_size=batch_size,
            device=device,
            on_progress=lambda done, total: line.show("predicting", done, total),
        )
        for answer in answers:
            answered = answered or not answer.problem
            if json:
                print(json_format.dumps(answer.to_dict(), ensure_ascii=False), flush=True)
            elif not answer.problem:
                said = ", ".join(
                    f"{label} {100 * chance:.1f} %"
                    for label, chance in zip(answer.labels, answer.probabilities, strict=True)
                )
                print(f"{answer.path}: {said}")
            if answer.problem:
                line.say(f"vggkit: error: {answer.problem}")
    return 0 if answered else 2


def demo(*, out: Path = Path("runs/demo"), device: str = "auto", seed: int = 0, quiet: bool = False) -> None:
    """Train a VGG11 with batch norm on real handwritten digits, measure it on others, and ask it about some.

    Args:
        out: Folder for what it makes; one that an earlier demo made is replaced.
        device: auto, cpu, cuda or mps.
        seed: Every random draw depends on it.
        quiet: No progress on standard error.
    """
    from vggkit.workflows.demonstration import demonstrate

    found = demonstrate(out, device=device, seed=seed, quiet=quiet)
    print(_describe(found.run.evaluation))
    for picture, answer in zip(found.pictures, found.predictions, strict=True):
        print(f"{answer.path}: {answer.labels[0]} {100 * answer.probabilities[0]:.1f} % (is {picture.label})")
    print(f"look at: {found.sheet}")
    for name in ("learning_curve.png", "confusion_matrix.png"):
        print(f"         {found.run.directory / name}")
    best = found.run.directory / "best.safetensors"
    print(f"next:    vggkit predict {best} {found.predictions[0].path}")
    print(f"         vggkit evaluate {best} digits")
    print("         vggkit train YOUR_PICTURES/ --model vgg11_bn")


def _fetch_weights(model: str, *, quiet: bool) -> None:
    """Half a gigabyte before anything else, where it can be seen to come."""
    from vggkit.networks.publishing.pretrained import fetch

    with ProgressLine(quiet=quiet) as line:
        found = fetch(
            model,
            on_progress=lambda done, total: line.show("fetching MB", done // 10**6, max(total, done) // 10**6),
        )
        line.say(f"weights: {found.source} ({found.published.licence}; {found.published.terms})")


def _describe(evaluation: Any) -> str:
    low, high = evaluation.top1_interval
    top5 = f", top-5 {evaluation.top5:.4f}" if len(evaluation.labels) > 5 else ""
    return (
        f"top-1 {evaluation.top1:.4f} (95 % interval {low:.4f} to {high:.4f}){top5}, "
        f"loss {evaluation.loss:.4f}, n = {evaluation.n} ({evaluation.data})"
    )


def _read_size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?", text.strip().lower())
    if found is None:
        raise BadConfiguration(f"--input is a side such as 224, or height and width such as 256x320; got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _print_json(value: object) -> None:
    print(json_format.dumps(value, ensure_ascii=False, indent=2))
