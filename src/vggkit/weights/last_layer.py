"""The last layer of given weights under other labels: its rows are classes, which are matched by name.

Shape letters: K classes, F features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vggkit.images.class_names import describe_lookalikes, find_lookalikes, find_rows, shorten_names
from vggkit.models.configuration import Configuration


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """The rows of the weights' last layer that these labels take."""

    rows: tuple[int, ...] | None
    """(K,) the row of each label; None: the weights are of other classes, and the layer is reinitialised."""
    reason: str
    """Why, in a sentence."""


def match_last_layer(
    labels: Sequence[str],
    known: Sequence[str] | None,
    *,
    configuration: Configuration,
    holds: Sequence[Configuration],
) -> LastLayer:
    """Compare the labels of a network with the classes of the weights that it starts from.

    Args:
        labels: The network's, in the order of its logits.
        known: The classes of the weights, in the order of theirs; None where they state none.
        configuration: The network.
        holds: The networks that the weights may be of; empty: unknown.
    """
    if holds and _place_last(configuration) not in map(_place_last, holds):
        return LastLayer(rows=None, reason="the weights' layer at this place is not their last one")
    if known is None:
        assumed = f"their last layer is assumed to be for {shorten_names(labels)}, in this order"
        reason = f"the weights state no classes; {assumed}"
        return LastLayer(rows=tuple(range(len(labels))), reason=reason)
    rows = find_rows(labels, known)
    if rows is None:
        reason = f"the weights are of other classes ({shorten_names(known)}) than {shorten_names(labels)}"
        return LastLayer(rows=None, reason=reason)
    reason = "the last layer is loaded, as the classes are the same"
    if list(rows) != sorted(rows):
        reason = "the last layer is loaded, its rows in the order of these labels"
    if alike := find_lookalikes(known, labels):
        reason += f"; names that differ in case or spaces only are treated as equal ({describe_lookalikes(alike)})"
    return LastLayer(rows=rows, reason=reason)


def order_rows(
    tensors: Mapping[str, Tensor], configuration: Configuration, rows: Sequence[int]
) -> dict[str, Tensor]:
    """The tensors with the rows (K, F) of the last layer, and its bias (K,), in this order."""
    last = configuration.fully_connected[-1]
    place = f"classifier.{last.index}" if last.rank is None else f"classifier.{last.index}.1"
    ours = {f"{place}.weight", f"{place}.bias"}
    order = torch.tensor(rows)
    return {key: value[order] if key in ours else value for key, value in tensors.items()}


def _place_last(configuration: Configuration) -> tuple[bool, int]:
    """The paper's head and the dense one hold the same layers."""
    return configuration.head == "pool", configuration.fully_connected[-1].index
