"""The networks that can be exported as weights of a library: those that it builds with the same results."""

from vggkit.errors import BadConfiguration
from vggkit.exporting.formats import FormatName
from vggkit.models.configuration import Configuration
from vggkit.weights.card import Card
from vggkit.weights.model_card import is_torchvisions


def demand_form(card: Card, to: FormatName) -> None:
    """Raise BadConfiguration if the library has no such network, or if its results would differ."""
    c, side = card.configuration, card.preprocessing.crop_pixels
    problem = None
    match to:
        case "torchvision":
            problem = None if is_torchvisions(c) else _describe(c)
        case "timm":
            if not is_torchvisions(c):
                problem = _describe(c)
            elif side != c.minimum_side * c.grid:
                # It slides fc1 over larger maps, and does not average smaller ones.
                problem = (
                    f"images of {side} pixels: its VGG gives the same results only at {c.minimum_side * c.grid}"
                )
        case "keras":
            problem = _find_problem_in_keras(c, side)
    if problem is not None:
        raise BadConfiguration(
            f"{to} has no form for {problem}; export to .onnx, .pt2 or .xml, or write the weights alone with "
            "vggkit convert"
        )


def _find_problem_in_keras(c: Configuration, side: int) -> str | None:
    needed = c.minimum_side * c.grid
    if c.lrn_after:
        return f"local response normalisation (after {', '.join(c.lrn_after)}), for which Keras has no layer"
    if c.batch_norm or c.head != "fc" or c.ranks is not None or c.pooling != "max" or c.until is not None:
        return f"{_describe(c)}; Keras' VGG has max pooling, no batch norm, and FC layers on the whole map"
    if c.in_channels != 3:
        return f"images of {c.in_channels} channels"
    if not needed <= side < needed + c.minimum_side:
        return f"images of {side} pixels, whose map would have to be averaged to {c.grid}×{c.grid}; {needed} fit"
    return None


def _describe(c: Configuration) -> str:
    """The network's differences from the library's."""
    found = [
        "local response normalisation" if c.lrn_after else "",
        "average pooling" if c.pooling == "average" else "",
        f"a {c.head} head" if c.head != "fc" else "",
        "low-rank layers" if c.ranks is not None else "",
        f"a trunk cut after {c.until}" if c.until else "",
        f"{c.in_channels} channels" if c.in_channels != 3 else "",
        "batch norm" if c.batch_norm and c.model == "custom" else "",
    ]
    return " and ".join(filter(None, found)) or f"this network ({c.model})"
