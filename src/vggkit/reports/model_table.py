"""The table of the paper's networks, and of the weights that were published for them."""

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE
from rich.table import Table

from vggkit.models.configuration import PAPER_LETTERS, Configuration, find_configuration
from vggkit.models.summary import Summary
from vggkit.reports.terminal import stack_lines
from vggkit.weights.bundled import BUNDLED
from vggkit.weights.published import PublishedWeights, list_published

LICENCE_WIDTH: Final = 94
"""Characters from which there is room for a column of licences."""


def draw_models(summaries: Sequence[Summary], *, width: int = 80) -> Table:
    """One row for each network: its letter in the paper, its depth, its costs at 224 pixels, and the accuracy of
    its published weights.

    Args:
        summaries: The networks.
        width: Characters of a line; 80 are enough, and from 94 on there is a column for the licence.
    """
    published = {summary.model: _find_classifying(summary.model) for summary in summaries}
    known = [record for record in published.values() if record is not None]
    caption = ["blocks: 3×3 convolutions of each (+ 1×1); costs at 224×224 and 1000 classes"]
    if known:
        licences = ", ".join(dict.fromkeys(record.licence for record in known))
        caption += [
            "top-1, top-5: % on ImageNet of torchvision's weights, as it publishes them;",
            f"{licences}; `vggkit train --weights imagenet` starts from them",
        ]
    caption += [f"with vggkit comes {name}: {about}" for name, about in BUNDLED.items()]
    table = Table(
        box=SIMPLE,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,  # 80 characters hold all but the licence's column
        caption=stack_lines("", *caption),
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("paper", no_wrap=True)
    for name in ("layers", "parameters", stack_lines("multiply-", "adds"), "top-1", "top-5"):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    table.add_column("blocks", no_wrap=True)
    if width >= LICENCE_WIDTH:
        table.add_column("licence", no_wrap=True)
    for summary in summaries:
        configuration, record = find_configuration(summary.model), published[summary.model]
        depth = sum(map(len, configuration.blocks)) + len(configuration.fully_connected)
        cells = [
            summary.model,
            PAPER_LETTERS.get(summary.model, ""),
            str(depth),
            f"{summary.totals.parameters:,}",
            f"{summary.totals.multiply_adds / 1e9:.3f} G",
            _percent(record.top1 if record else None),
            _percent(record.top5 if record else None),
            " ".join(_describe_block(configuration, block) for block in range(1, 6)),
        ]
        table.add_row(*cells, *([record.licence if record else ""] if width >= LICENCE_WIDTH else []))
    return table


def _find_classifying(model: str) -> PublishedWeights | None:
    """The weights that a network classifies with."""
    return next((record for record in list_published(model) if record.top1 is not None), None)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _describe_block(configuration: Configuration, block: int) -> str:
    """The number of 3×3 convolutions, and other layers beside them."""
    kernels = (
        configuration.kernels[block - 1] if configuration.kernels else (3,) * len(configuration.blocks[block - 1])
    )
    small = kernels.count(1)
    text = str(len(kernels) - small) + (f"+{small}" if small else "")
    return text + ("+LRN" if any(name.startswith(f"relu{block}_") for name in configuration.lrn_after) else "")
