"""The verbs of the command line: they translate options into calls and results into text.

Arguments before `/` are positional, the others options; tyro reads both, and the help, from here.
"""

import json as json_format
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from vggkit.errors import BadConfiguration, BadInput
from vggkit.networks.configurations import Head, Scheme, configure, list_models
from vggkit.networks.styles.listings import Style, write_listing
from vggkit.reports.model_table import draw_models
from vggkit.reports.progress import ProgressLine
from vggkit.reports.tables import draw_summary
from vggkit.tasks.inspection import summarize
from vggkit.tasks.training.recipe import Recipe


def models(*, json: bool = False) -> None:
    """The networks of the paper and their batch-norm variants.

    Args:
        json: One JSON object in place of the table.
    """
    summaries = [summarize(configure(name)) for name in list_models()]
    if json:
        _print_json({summary.model: summary.to_dict()["totals"] for summary in summaries})
    else:
        Console(highlight=False).print(draw_models(summaries))


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
        until: Cut the trunk after this layer, such as relu3_4, and put a pool head on it.
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
        until: Cut the trunk after this layer, such as relu3_4, and put a pool head on it.
        dropout: Chance in [0, 1).
    """
    configuration = configure(
        model, num_classes=classes, in_channels=channels, head=head, until=until, dropout=dropout
    )
    print(write_listing(configuration, style), end="")


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
    channels: int = 3,
    dropout: float | None = None,
    initialization: Scheme = "kaiming",
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Train a Classifier on a folder of pictures.

    The folder holds a subfolder for each class, or train/ and val/ (valid/, validation/, test/) that do;
    without parts, a share of each class is held out. digits are 1,797 real handwritten digits.

    Args:
        data: A folder with a subfolder for each class, or with train/ and val/ holding them; or digits.
        model: A name that `vggkit models` lists.
        out: The run's folder, new or empty. Without it: the next free runs/<model>-<n>.
        weights: Start from this .safetensors or .pth file with torchvision's keys.
        head: fc (the paper's), dense or pool. Without it: the model's, and pool below 128 pixels.
        until: Cut the trunk after this layer, such as relu3_4, and put a pool head on it.
        image_size: Pixels at which pictures are fed. Without it: 224, or smaller pictures' own size.
        channels: 3, or 1 for grey.
        dropout: Chance in [0, 1).
        initialization: How random weights are drawn.
        recipe: How to learn.
        device: auto, cpu, cuda or mps.
        json: One JSON object with the result on standard output.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import open_pictures
    from vggkit.workflows.runs import suit_classifier
    from vggkit.workflows.runs import train as run_training

    pictures = open_pictures(data)
    classifier = suit_classifier(
        pictures,
        model,
        weights=weights,
        image_pixels=image_size,
        in_channels=channels,
        head=head,
        dropout=dropout,
        until=until,
        initialization=initialization,
    )
    run = run_training(classifier, pictures, recipe, out=out, device=device, quiet=quiet)
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
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Measure a Classifier on labelled pictures.

    Args:
        model: A Classifier's file, or a run's folder.
        data: A folder as for train, or digits.
        split: train, val, test or all. Without it: test, else val, else everything that was not trained on.
        batch_size: Pictures that pass through the network together.
        device: auto, cpu, cuda or mps.
        json: One JSON object in place of the text.
        quiet: No progress on standard error.
    """
    from vggkit.networks.classifier import load
    from vggkit.tasks.evaluation import evaluate as measure

    classifier = load(model)
    with ProgressLine(quiet=quiet) as line:
        found = measure(
            classifier,
            data,
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
    batch_size: int = 32,
    device: str = "auto",
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Say what pictures show, the most probable classes first.

    Args:
        model: A Classifier's file, or a run's folder.
        pictures: Files, or folders with every picture below them.
        top: How many classes to name.
        batch_size: Pictures that pass through the network together.
        device: auto, cpu, cuda or mps.
        json: A JSON object a picture and line: path, labels, probabilities; problem where it cannot be read.
        quiet: No progress on standard error.
    """
    from vggkit.images.sources import list_pictures
    from vggkit.networks.classifier import load
    from vggkit.tasks.prediction import iterate_predictions

    if not pictures:
        raise BadInput("predict needs a picture: vggkit predict MODEL PICTURE…")
    classifier = load(model)
    listed = list_pictures(pictures)
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
    """Train a VGG11 on real handwritten digits, measure it on digits it has not seen, and ask it about some.

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
