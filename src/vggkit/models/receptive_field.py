"""The receptive field: pixels of an image that a value inside the network depends on. No torch here."""

from dataclasses import dataclass

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models.configuration import Configuration


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """The squares of the image that the values of a layer's map depend on."""

    first: int
    """Left (and top) pixel of the square of the first column (and row); negative: in the padding."""
    stride: int
    """Pixels between the squares of two neighbours on the map."""
    side: int
    """Side of the square in pixels."""

    def locate(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of the square of a place on the map, the last two exclusive.

        It may reach beyond the image, into the padding.
        """
        top, left = self.first + row * self.stride, self.first + column * self.stride
        return top, left, top + self.side, left + self.side

    def list_inside(self, pixels: int, places: int) -> slice:
        """The places of a map's side whose squares lie within an image of so many pixels; all where none does."""
        inside = [
            place
            for place in range(places)
            if self.first + place * self.stride >= 0 and self.first + place * self.stride + self.side <= pixels
        ]
        return slice(inside[0], inside[-1] + 1) if inside else slice(0, places)


def find_receptive_field(configuration: Configuration, layer: str) -> ReceptiveField:
    """The receptive field of a layer of the trunk, by its kernels and pools.

    Raises UnknownName, and BadConfiguration for a layer of the head, which sees the whole image.

    >>> from vggkit.models.configure import configure
    >>> find_receptive_field(configure("vgg16"), "relu3_3")
    ReceptiveField(first=-18, stride=4, side=40)
    """
    names = [each.name for each in configuration.trunk]
    if layer not in names:
        if layer in [name for fc in configuration.fully_connected for name in (fc.name, fc.relu)]:
            raise BadConfiguration(
                f"{layer} is a layer of the head, which sees the whole image; name one of the trunk"
            )
        raise UnknownName.of("layer of this network's trunk", layer, names)
    first, stride, side = 0, 1, 1
    for each in configuration.trunk[: names.index(layer) + 1]:
        side += (each.kernel - 1) * stride
        if each.kind == "pool":
            stride *= 2
        else:
            first -= each.kernel // 2 * stride  # padding keeps the map's size
    return ReceptiveField(first, stride, side)
