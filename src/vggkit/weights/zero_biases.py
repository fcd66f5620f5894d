"""Biases that a file leaves out as its convolutions have none (`bias=False`): zeros in a network that has them.

That is how convolutions in front of batch normalisation are often written. No torch here.
"""

from collections.abc import Collection

from vggkit.models.configuration import Configuration


def list_zero_biases(configuration: Configuration, located: Collection[str]) -> tuple[str, ...]:
    """Canonical keys of these biases; none where any convolution has one, as the others are missing then.

    Args:
        configuration: The network.
        located: Canonical keys that the file has a tensor for.
    """
    places = [f"features.{layer.index}" for layer in configuration.trunk if layer.kind == "conv"]
    if any(f"{place}.bias" in located for place in places):
        return ()
    return tuple(f"{place}.bias" for place in places if f"{place}.weight" in located)
