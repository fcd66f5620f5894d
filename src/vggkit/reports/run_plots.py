"""Plots of a training and an evaluation as PNG, PDF or SVG files, by the file name ending."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vggkit.evaluation.evaluation import Evaluation, FigureName, proportion_interval
from vggkit.images.dataset import ImageSample
from vggkit.inference.predict import Prediction
from vggkit.reports.plots import BLUE, INK, ORANGE, PALE_INK, PlotEnding, draw_to, name_plots, write_name

if TYPE_CHECKING:
    from vggkit.training.checkpoint import Epoch
    from vggkit.training.logistic_regression import HeadSolution

LONGEST_TITLE: Final = 80
"""Characters of a plot's title."""


def plot_history(history: "Sequence[Epoch]", path: str | Path, *, best_epoch: int, title: str) -> None:
    """Plot the losses and the validation accuracy by epoch.

    Args:
        history: The epochs.
        path: A .png, .pdf or .svg file.
        best_epoch: The best epoch, whose weights were saved; it is marked.
        title: The title of the figure.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    epochs = [record.epoch for record in history]
    with draw_to(path, width_inches=9.0, height_inches=3.6) as figure:
        figure.suptitle(
            write_name(title, longest=LONGEST_TITLE), x=0.012, ha="left", fontsize=12, fontweight="bold"
        )
        left, right = figure.subplots(1, 2)
        marker = "o" if len(epochs) < 40 else ""
        for values, colour, name in (
            ([record.train_loss for record in history], BLUE, "training"),
            ([record.val_loss for record in history], ORANGE, "validation"),
        ):
            hollow = "none" if name == "training" else "full"
            left.plot(epochs, values, color=colour, marker=marker, markersize=5, fillstyle=hollow, label=name)
        left.set_title("Cross-entropy loss")
        left.set_ylabel("loss (nats)")
        left.set_ylim(0, 1.08 * max(max(record.train_loss, record.val_loss) for record in history) or 1)
        left.legend(frameon=False, loc="upper right")
        accuracy = [100 * record.val_figure for record in history]
        right.plot(epochs, accuracy, color=ORANGE, marker=marker, markersize=4)
        several = history[-1].val_map is not None
        right.set_title("Validation mAP" if several else "Validation accuracy")
        right.set_ylabel("mean average precision (%)" if several else "top-1 accuracy (%)")
        best = accuracy[epochs.index(best_epoch)]
        right.plot([best_epoch], [best], marker="o", markersize=9, fillstyle="none", color=INK)
        when = f"after epoch {best_epoch}" if best_epoch else "before the first step"
        right.text(0.98, 0.05, f"best: {best:.1f} % {when}", transform=right.transAxes, ha="right")
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.set_xticks([*([0] if epochs[0] == 0 else []), *_whole_ticks(epochs[-1])])
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            axes.grid(axis="y", color="#eeeeee")


def plot_strengths(solution: "HeadSolution", path: str | Path, *, title: str) -> None:
    """Plot the cross-validated loss and accuracy of a linear probe by the strength of its L2 penalty.

    Args:
        solution: The linear probe; its chosen strength is marked.
        path: A .png, .pdf or .svg file.
        title: The title of the figure.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    strengths = [trial.strength for trial in solution.tried]
    chosen = next((trial for trial in solution.tried if trial.strength == solution.strength), None)
    with draw_to(path, width_inches=9.0, height_inches=3.6) as figure:
        figure.suptitle(
            f"{write_name(title, longest=LONGEST_TITLE)}: linear probe",
            x=0.012,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        panels = (
            ("Cross-validated loss", "cross-entropy (nats)", "loss", 1.0),
            (
                "Cross-validated accuracy",
                "top-1 accuracy (%)" if solution.task == "single-label" else "right labels and absences (%)",
                "top1",
                100.0,
            ),
        )
        for axes, (name, label, field, unit) in zip(figure.subplots(1, 2), panels, strict=True):
            values = [unit * getattr(trial, field) for trial in solution.tried]
            errors = [unit * getattr(trial, f"{field}_error") for trial in solution.tried]
            axes.set_title(name)
            axes.set_xlabel("strength of the L2 penalty")
            axes.set_ylabel(label)
            axes.grid(axis="y", color="#eeeeee")
            if chosen is None:
                axes.set_axis_off()
                axes.text(0.5, 0.5, "too few images for cross-validation", transform=axes.transAxes, ha="center")
                continue
            axes.set_xscale("log")
            low = [value - error for value, error in zip(values, errors, strict=True)]
            high = [value + error for value, error in zip(values, errors, strict=True)]
            axes.fill_between(strengths, low, high, color=ORANGE, alpha=0.15, linewidth=0, label="± standard error")
            axes.plot(strengths, values, color=ORANGE, marker="o", markersize=4)
            at = unit * getattr(chosen, field)
            axes.plot([chosen.strength], [at], marker="o", markersize=9, fillstyle="none", color=INK)
            axes.text(0.98, 0.05, f"{at:.4g} at {chosen.strength:g}, chosen", transform=axes.transAxes, ha="right")


def plot_confusion(evaluation: Evaluation, path: str | Path) -> None:
    """Plot the confusion matrix, each row shaded by its proportions.

    Counts are written for up to 20 classes, class names for up to 60.

    Args:
        evaluation: The evaluation.
        path: A .png, .pdf or .svg file.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    counts = np.asarray(evaluation.confusion)
    classes = len(counts)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    names = [write_name(label) for label in evaluation.labels] if classes <= 60 else []
    side = min(14.0, max(4.2, 2.2 + 0.42 * classes)) + 0.1 * max(0, max(map(len, names), default=0) - 10)
    low, high = evaluation.top1_interval
    with draw_to(path, width_inches=side + 0.6, height_inches=side + 0.3) as figure:
        figure.suptitle(
            f"Top-1 accuracy {100 * evaluation.top1:.1f} % (95 % CI {100 * low:.1f} to {100 * high:.1f})",
            x=0.012,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(
            f"{write_name(evaluation.source)}, n = {evaluation.n}", fontsize=8, fontweight="normal", color=PALE_INK
        )
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.tick_params(length=0)
        if classes <= 60:
            small = 9 if classes <= 25 else 6
            long_names = max(map(len, names)) > 3
            axes.set_xticks(
                range(classes),
                names,
                rotation=45 if long_names else 0,
                ha="right" if long_names else "center",
                fontsize=small,
            )
            axes.set_yticks(range(classes), names, fontsize=small)
        for row, column in zip(*np.nonzero(counts), strict=True) if classes <= 20 else ():
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)


def plot_reliability(evaluation: Evaluation, path: str | Path) -> None:
    """Plot the reliability diagram: accuracy by confidence with Wilson's 95 % intervals, and the size of the bins.

    Args:
        evaluation: The evaluation.
        path: A .png, .pdf or .svg file.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    found = evaluation.calibration
    bins = [each for each in found.bins if each.accuracy is not None]
    hits = [(round((each.accuracy or 0) * each.n), each.n) for each in bins]
    shares = [100 * count / n for count, n in hits]
    ends = [[100 * end for end in proportion_interval(count, n)] for count, n in hits]
    errors = [[max(0.0, s - low) for s, (low, _) in zip(shares, ends, strict=True)]]
    errors += [[max(0.0, high - s) for s, (_, high) in zip(shares, ends, strict=True)]]
    places, width = [50 * (each.low + each.high) for each in bins], 92 / len(found.bins)
    with draw_to(path, width_inches=4.4, height_inches=5.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        upper.set_title(
            f"Expected calibration error {100 * found.ece:.1f} %{_describe_interval(evaluation, 'ece')}"
        )
        upper.bar(places, shares, width=width, color=BLUE, alpha=0.75, yerr=errors, ecolor=INK)
        upper.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=":", label="perfect calibration")
        upper.legend(frameon=False, loc="upper left")
        several = evaluation.task == "multi-label"
        upper.set_ylabel("images that have the class (%)" if several else "accuracy (%)")
        upper.set_ylim(0, 100)
        lower.bar(places, [each.n for each in bins], width=width, color=ORANGE)
        lower.set_ylabel("predictions")
        lower.set_xlabel("probability of a class (%)" if several else "confidence (%)")
        lower.set_xlim(0, 100)


def plot_classes(evaluation: Evaluation, path: str | Path) -> None:
    """Plot the F1 of each class with its 95 % interval, highest first; of more than 60 classes the lowest 60.

    Args:
        evaluation: The evaluation.
        path: A .png, .pdf or .svg file.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    known = sorted((each for each in evaluation.classes if each.support), key=lambda each: -each.f1)[-60:]
    with draw_to(path, width_inches=6.0, height_inches=1.2 + 0.24 * len(known)) as figure:
        axes = figure.subplots()
        interval = _describe_interval(evaluation, "macro_f1")
        title = f"F1 of each class; macro F1 {100 * evaluation.macro_f1:.1f} %{interval}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=10, fontweight="bold")
        for place, each in enumerate(known):
            ends = [100 * end for end in each.f1_interval or (each.f1, each.f1)]
            axes.plot(ends, [place, place], color=BLUE, linewidth=3, alpha=0.4)
            axes.plot([100 * each.f1], [place], color=BLUE, marker="o", markersize=5)
        axes.set_yticks(range(len(known)), [f"{write_name(each.label)} ({each.support})" for each in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]), right=101)
        axes.set_xlabel("F1 (%) with 95 % bootstrap CI; number of images in parentheses")
        axes.grid(axis="x", color="#eeeeee")


def _describe_interval(evaluation: Evaluation, name: FigureName) -> str:
    interval = evaluation.intervals.get(name)
    ends = "" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"
    return f"{ends}, n = {evaluation.n}"


def write_plots(evaluation: Evaluation, folder: Path, ending: PlotEnding) -> list[Path]:
    """Write the reliability diagram, the F1 of the classes and, for one label an image, the confusion matrix.

    Args:
        evaluation: The evaluation.
        folder: Where the files are written.
        ending: The file format: png, pdf or svg.

    Returns the files' paths. Raises BadOutput where one cannot be written, MissingExtra without matplotlib.
    """
    drawn = dict(zip(name_plots(folder, ending), (plot_reliability, plot_classes, plot_confusion), strict=True))
    if evaluation.task == "multi-label":
        drawn = {path: draw for path, draw in drawn.items() if draw is not plot_confusion}
    for path, draw in drawn.items():
        draw(evaluation, path)
    return list(drawn)


def plot_predictions(images: Sequence[ImageSample], predictions: Sequence[Prediction], path: str | Path) -> None:
    """Plot a grid of images with the predicted class and its probability; errors are orange, with the true class.

    Args:
        images: The images, with their labels where known.
        predictions: A prediction for each image.
        path: A .png, .pdf or .svg file.

    Raises BadImage, BadOutput, and MissingExtra without matplotlib.
    """
    columns = 5 if len(images) % 5 == 0 else min(6, len(images))
    rows = math.ceil(len(images) / columns)
    with draw_to(path, width_inches=1.6 * columns, height_inches=1.85 * rows + 0.2) as figure:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for axes, image, prediction in zip(grid.flat, images, predictions, strict=False):
            axes.imshow(image.decode(), interpolation="bicubic")
            label, probability = str(prediction.label), 100 * prediction.probabilities[0]
            wrong = image.label is not None and image.label != label
            title = f"{write_name(label)}  {probability:.1f} %"
            if wrong and image.label is not None:
                title += f"\ntrue: {write_name(image.label)}"
            axes.set_title(title, loc="center", color=ORANGE if wrong else INK, fontweight="normal")


def _whole_ticks(last: int) -> list[int]:
    step = max(1, math.ceil(last / 10))
    return list(range(step if step > 1 else 1, last + 1, step))
