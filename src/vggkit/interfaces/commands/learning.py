"""Learn from your pictures."""

import sys
from pathlib import Path

from rich.console import Console

from vggkit.images.preprocessing import FitMode
from vggkit.images.sources import Columns
from vggkit.interfaces.commands.printing import describe_evaluation, print_json
from vggkit.networks.configurations import Head, Scheme, configure
from vggkit.reports.progress import ProgressLine, only_our_errors
from vggkit.tasks.training.recipe import Recipe


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
    from vggkit.workflows.doctor import guard_outputs

    classifier = None
    if model is not None:
        from vggkit.networks.classifier import load

        classifier = load(model)
    with only_our_errors(), ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
        pictures = open_pictures(data, columns=columns)
        guard_outputs(pictures, table=fix, page=html)
        found = look(pictures, classifier, image_pixels=image_size, device=device, on_progress=line.show)
        if html is not None:
            from vggkit.reports.diagnosis_page import write_diagnosis_page

            line.show("drawing the page", 0, None)
            write_diagnosis_page(found, html)
    if json:
        print_json(found.to_dict())
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
    from vggkit.workflows.runs import train as run_training
    from vggkit.workflows.suiting import suit_classifier

    with ProgressLine(quiet=quiet) as line:
        line.show(f"opening {data}", 0, None)
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
        print_json(
            {
                "directory": str(run.directory),
                "best_epoch": run.best_epoch,
                **{name: getattr(run.evaluation, name) for name in ("top1", "top1_interval", "top5", "loss", "n")},
                "data": run.evaluation.data,
            }
        )
        return
    print(describe_evaluation(run.evaluation))
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
        line.show(f"opening {data}", 0, None)
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
        print_json(found.to_dict())
    else:
        print(describe_evaluation(found))


def _fetch_weights(model: str, *, quiet: bool) -> None:
    """Half a gigabyte before anything else, where it can be seen to come."""
    from vggkit.networks.publishing.pretrained import fetch

    with ProgressLine(quiet=quiet) as line:
        found = fetch(
            model,
            on_progress=lambda done, total: line.show("fetching MB", done // 10**6, max(total, done) // 10**6),
        )
        line.say(f"weights: {found.source} ({found.published.licence}; {found.published.terms})")
