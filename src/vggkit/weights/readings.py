"""Every network that a file's tensors may be of, the likeliest first. No torch here."""

from collections.abc import Sequence
from dataclasses import replace

from vggkit.models.configuration import Configuration
from vggkit.models.statements import Statements
from vggkit.weights.card import Card
from vggkit.weights.layer_matches import Sheet
from vggkit.weights.layer_matching import Recognition, recognize


def list_networks(
    sheets: Sequence[Sheet], card: Card | None, statements: Statements, hint: str | None
) -> list[tuple[Sheet, Recognition]]:
    """The networks that the file may hold, the likeliest first, each with its modules in their places."""
    stated = card.configuration if card is not None else statements.configuration
    if not sheets:
        return []
    if stated is not None:
        sheet = choose_sheet(sheets, stated)
        assert sheet is not None
        if card is not None or _fits(sheet, stated):
            return [(sheet, Recognition(stated, stated.num_classes))]
    found: list[tuple[Sheet, Recognition]] = []
    for sheet in sheets:
        recognitions = recognize(sheet, hint=hint)
        for each in recognitions:
            said = ", ".join(part for part in (each.said if len(recognitions) > 1 else "", sheet.said) if part)
            known = any(each.configuration == other.configuration for _, other in found)
            if not known:
                found.append((sheet, replace(each, said=said)))
    if len(found) == 1:
        found = [(sheet, replace(each, said="")) for sheet, each in found]
    if stated is not None:
        # Another head was put on a network that said what its trunk is.
        found = [
            (sheet, replace(each, configuration=replace(each.configuration, pooling=stated.pooling)))
            for sheet, each in found
        ]
        found.sort(key=lambda pair: pair[1].configuration.trunk != stated.trunk)
    return found


def choose_sheet(sheets: Sequence[Sheet], configuration: Configuration) -> Sheet | None:
    """The one that has a place for most of the network's tensors; the first of equals."""
    expected = configuration.state_shapes()

    def count(sheet: Sheet) -> int:
        return sum(source.shape == expected.get(key) for key, source in sheet.locate(configuration).items())

    return max(sheets, key=count, default=None)


def _fits(sheet: Sheet, configuration: Configuration) -> bool:
    """Whether the file holds every tensor of that network, and no other."""
    located, expected = sheet.locate(configuration), configuration.state_shapes()
    wrong = [
        key
        for key, shape in expected.items()
        if (located[key].shape != shape if key in located else not key.endswith("num_batches_tracked"))
    ]
    used = {key for source in located.values() for key in source.keys}
    return not wrong and used >= set(sheet.keys)
