"""The table of the paper's networks."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from vggkit.networks.configurations import PAPER_LETTERS, Configuration, find_configuration
from vggkit.tasks.inspection import Summary


def draw_models(summaries: Sequence[Summary]) -> Table:
    """One row a network: its letter in the paper, its depth and what it costs at 224 pixels."""
    table = Table(
        box=SIMPLE,
        pad_edge=False,
        caption="blocks: 3×3 convolutions of each (+ 1×1); at 224×224 and 1000 classes",
        caption_justify="left",
    )
    table.add_column("model")
    table.add_column("paper")
    for name in ("layers", "parameters", "multiply-adds"):
        table.add_column(name, justify="right")
    table.add_column("blocks")
    for summary in summaries:
        configuration = find_configuration(summary.model)
        depth = sum(map(len, configuration.blocks)) + len(configuration.fully_connected)
        table.add_row(
            summary.model,
            PAPER_LETTERS.get(summary.model, ""),
            str(depth),
            f"{summary.totals.parameters:,}",
            f"{summary.totals.multiply_adds / 1e9:.3f} G",
            " ".join(_describe_block(configuration, block) for block in range(1, 6)),
        )
    return table


def _describe_block(configuration: Configuration, block: int) -> str:
    """How many 3×3 convolutions, and what stands beside them."""
    kernels = (
        configuration.kernels[block - 1] if configuration.kernels else (3,) * len(configuration.blocks[block - 1])
    )
    small = kernels.count(1)
    text = str(len(kernels) - small) + (f"+{small}" if small else "")
    return text + ("+LRN" if any(name.startswith(f"relu{block}_") for name in configuration.lrn_after) else "")
