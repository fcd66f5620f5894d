"""Ask, and see it all."""

import json as json_format
from pathlib import Path

from vggkit.errors import BadInput
from vggkit.images.sources import Columns
from vggkit.interfaces.commands.printing import describe_evaluation
from vggkit.reports.progress import ProgressLine


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
        json: A JSON object a picture and line: path, labels, probabilities; unknown where the best is not sure
            enough, problem where it cannot be read.
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
                print(f"{answer.path}: {f'unknown ({said})' if answer.unknown else said}")
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
    print(describe_evaluation(found.run.evaluation))
    for picture, answer in zip(found.pictures, found.predictions, strict=True):
        print(f"{answer.path}: {answer.labels[0]} {100 * answer.probabilities[0]:.1f} % (is {picture.label})")
    print(f"look at: {found.sheet}")
    for name in ("learning_curve.png", "confusion_matrix.png"):
        print(f"         {found.run.directory / name}")
    best = found.run.directory / "best.safetensors"
    print(f"next:    vggkit predict {best} {found.predictions[0].path}")
    print(f"         vggkit evaluate {best} digits")
    print("         vggkit train YOUR_PICTURES/ --model vgg11_bn")
