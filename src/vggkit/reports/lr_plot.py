"""The plot of a learning rate range test."""

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.reports.plots import BLUE, INK, ORANGE, PALE_INK, draw_to, write_name

if TYPE_CHECKING:
    from vggkit.training.lr_finder import RateSearch


def plot_rate_search(search: "RateSearch", path: str | Path, *, title: str) -> None:
    """Plot the loss by learning rate, per step and smoothed, with the suggested learning rate marked.

    Args:
        search: The result of the range test.
        path: A .png, .pdf or .svg file.
        title: The title of the figure.

    Raises BadOutput where the file cannot be written, MissingExtra without matplotlib.
    """
    rates, smoothed, suggested = search.rates, search.smoothed, search.suggested
    with draw_to(path, width_inches=7.0, height_inches=3.8) as figure:
        figure.suptitle(write_name(title, longest=60), x=0.012, ha="left", fontsize=12, fontweight="bold")
        axes = figure.subplots()
        axes.set_title("Learning rate range test")
        axes.set_ylabel("cross-entropy loss (nats)")
        axes.set_xlabel("learning rate")
        axes.set_xscale("log")
        axes.grid(axis="y", color="#eeeeee")
        axes.plot(rates, search.losses, color=BLUE, alpha=0.3, linewidth=1, label="per step")
        axes.plot(rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
        if smoothed:
            # The axis shows the losses before they diverge.
            low = min(smoothed)
            before = search.losses[: smoothed.index(low) + 1]
            room = 0.08 * (max(before) - min(before)) or 0.1
            axes.set_ylim(min(before) - room, max(before) + room)
            axes.set_xlim(rates[0], rates[-1])
            axes.legend(frameon=False, loc="lower left")
        if suggested is None:
            axes.set_title("no suggestion", loc="right", color=PALE_INK, fontweight="normal")
            return
        height = smoothed[bisect_left(rates, suggested)]
        axes.axvline(suggested, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([suggested], [height], marker="o", markersize=8, color=ORANGE, zorder=4)
        axes.set_title(f"suggested: {suggested:g}", loc="right", color=ORANGE)
        axes.annotate(
            f"{suggested:g}",
            (suggested, height),
            xytext=(9, 7),
            textcoords="offset points",
            color=INK,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
