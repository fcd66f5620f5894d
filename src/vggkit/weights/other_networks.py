"""Known networks that are similar to a VGG and are none, by their shapes. No torch here."""

from collections.abc import Mapping, Sequence
from math import isqrt

from vggkit.weights.dialects import Shaped
from vggkit.weights.entries import Module, gather_modules, place_by_name


def name_other_network(entries: Mapping[str, Shaped]) -> str | None:
    """The name of a known network that is similar to a VGG; None for any other."""
    modules, _ = gather_modules(entries)
    kernels = [module.shapes["weight"] for module in modules if module.kind == "conv"]
    if kernels[:2] == [(3, 3, 1, 1), (64, 3, 3, 3)]:
        return (
            "AdaIN's normalised VGG, which is another network than VGG19: a 1×1 convolution takes the image in, "
            "the filters are rescaled, and the maps are padded by reflection"
        )
    return _name_tiny(modules)


def _name_tiny(modules: Sequence[Module]) -> str | None:
    """CNN Explainer's TinyVGG, common in courses: two blocks of two convolutions of one width, and one matrix."""
    kernels = [module.shapes["weight"] for module in modules if module.kind == "conv"]
    matrices = [module.shapes["weight"] for module in modules if module.kind == "linear"]
    width = kernels[0][0] if kernels else 0
    same = [(width, into, 3, 3) for into in (kernels[0][1], *(width,) * 3)] if kernels else []
    named = any(place_by_name(module.name, "index") for module in modules)
    if not kernels or kernels != same or len(matrices) != 1 or len(modules) != 5 or named:
        return None
    classes, reads = matrices[0]
    side = isqrt(reads // width)
    if not side or side * side * width != reads:
        return None
    return (
        f"TinyVGG, as CNN Explainer has it and courses teach it: four 3×3 convolutions of width {width} and one "
        f"matrix on {side}×{side} maps, for {classes} classes. Its maps come of images of {4 * side + 12} pixels "
        f"where the convolutions are unpadded, as published, which is another network than any VGG, and of "
        f"{4 * side} where they are padded; its keys do not say which"
    )
