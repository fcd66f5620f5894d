"""An image of a search for a learning rate."""

from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

from vggkit.reports.plots import BLUE, INK, ORANGE, PALE_INK, draw_to, write_name

if TYPE_CHECKING:
    from vggkit.training.lr_finder import RateSearch


def plot_rate_search(search: "RateSearch", path: str | Path, *, title: str) -> None:
    """Loss over learning rate, each step's pale and the smoothed; the suggestion is marked, or said to be missing.

    Raises BadOutput and MissingExtra, see `draw_to`.
    """
    rates, smoothed, suggested = search.rates, search.smoothed, search.suggested
    with draw_to(path, width_inches=7.0, height_inches=3.8) as figure:
        figure.suptitle(write_name(title, longest=60), x=0.012, ha="left", fontsize=12, fontweight="bold")
        axes = figure.subplots()
        axes.set_title("loss (cross-entropy, nats), a step at each learning rate")
        axes.set_xlabel("learning rate")
        axes.set_xscale("log")
        axes.grid(axis="y", color="#eeeeee")
        axes.plot(rates, search.losses, color=BLUE, alpha=0.3, linewidth=1, label="of the step")
        axes.plot(rates, smoothed, color=BLUE, linewidth=2, label="smoothed")
        if smoothed:
            # What came before the loss blows up is to be seen.
            low = min(smoothed)
            before = search.losses[: smoothed.index(low) + 1]
            room = 0.08 * (max(before) - min(before)) or 0.1
            axes.set_ylim(min(before) - room, max(before) + room)
            axes.set_xlim(rates[0], rates[-1])
            axes.legend(frameon=False, loc="lower left")
        if suggested is None:
            axes.set_title("none to suggest", loc="right", color=PALE_INK, fontweight="normal")
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
