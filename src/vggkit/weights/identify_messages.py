"""Sentences on an identified file of weights: its network, why it is no VGG, and how to load it. No torch here."""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from vggkit.images.preprocessing import CROP_PIXELS
from vggkit.models.configuration import PAPER_LETTERS, Configuration
from vggkit.models.configure import configure
from vggkit.weights.candidate_networks import Candidate
from vggkit.weights.dialects import Shaped
from vggkit.weights.entries import Module, gather_modules
from vggkit.weights.formats.weight_file import IN_MEMORY
from vggkit.weights.layer_positions import LayerPositions


def describe_shapes(entries: Mapping[str, Shaped], positions: LayerPositions | None) -> str:
    """The reason why the shapes are not a VGG's."""
    modules, _ = gather_modules(entries)
    kernels = [module for module in modules if module.kind == "conv"]
    matrices = sum(module.kind == "linear" for module in modules)
    if not kernels:
        return f"{len(entries)} tensors without a single convolution ({matrices} matrices)"
    last = positions.channels_last if positions else False
    sides = sorted({_side(module, last=last) for module in kernels}, reverse=True)
    first = _side(kernels[0], last=last)
    counted = f"{len(kernels)} convolution{'s' * (len(kernels) > 1)} of side {', '.join(map(str, sides))}"
    if first != 3:
        return f"{counted}, the first {first}×{first} where a VGG's is 3×3, and {matrices} matrices"
    if sides != [3]:
        return f"{counted} and {matrices} matrices; a VGG has 3×3 ones, each reading the output of the one before"
    return f"{counted} and {matrices} matrices, which do not form the sequence of a VGG of the paper"


def _side(module: Module, *, last: bool) -> int:
    shape = module.shapes["weight"]
    return shape[0] if last else shape[2]


_LONE_BIAS: Final = re.compile(r".*bias(es)?")


def write_verdict(
    candidate: Candidate,
    positions: LayerPositions | None,
    *,
    path: Path,
    head: str | None,
    missing: Collection[str],
    misshapen: Collection[str],
    unexpected: Collection[str],
    void: bool = False,
) -> str:
    """One sentence: `VGG16 (configuration D), not VGG11: 13 convolutions (2+2+3+3+3), fc head, 10 classes`.

    Args:
        candidate: The network.
        positions: The file's modules in their places; None where its keys name all of them.
        path: The file; where its name claims another VGG, the sentence adds that; it changes nothing else.
        head: fc, dense or pool; None where the file has none.
        missing: Keys that the file lacks.
        misshapen: Keys of another shape.
        unexpected: Keys that are none of the network's.
        void: The head's values are NaN, as in torchvision's IMAGENET1K_FEATURES.
    """
    configuration = candidate.configuration
    places = [layer.name.removeprefix("conv") for layer in configuration.trunk if layer.kind == "conv"]
    blocks = [place.split("_")[0] for place in places]
    depths = [str(blocks.count(block)) for block in dict.fromkeys(blocks)]
    name = f"{_describe_model(configuration)}{_describe_contrast(configuration, path)}"
    parts = [f"{name}: {_count(len(places), 'convolution')} ({'+'.join(depths)})"]
    if configuration.batch_norm:
        parts.append("batch norm")
    if configuration.until:
        parts.append(f"cut at {configuration.until}")
    listed = positions.layers if positions else None
    if listed is not None and configuration.head != "pool" and listed < len(configuration.trunk):
        parts.append(f"without {configuration.trunk[-1].name} in its features, which is assumed to follow them")
    if candidate.similar_models:
        parts.append(f"which {', '.join(candidate.similar_models)} begin with too")
    parts.append(f"{head} head without values (NaN)" if void else _describe_head(candidate, head))
    if positions and positions.merged:
        parts.append(f"{positions.merged}, read as one layer")
    if candidate.description:
        parts.append(f"read as {candidate.description}, which its tensors do not determine")
    if configuration.in_channels != 3:
        parts.append(_count(configuration.in_channels, "input channel"))
    if missing:
        parts.append(f"{_count(len(missing), 'tensor')} missing")
    if misshapen:
        parts.append(f"{len(misshapen)} of another shape")
    if unexpected:
        lone_biases = all(map(_LONE_BIAS.fullmatch, unexpected))
        bias = ("bias without its kernel", "biases without their kernels")
        parts.append(_count(len(unexpected), *(bias if lone_biases else ("unexpected tensor",))))
    return ", ".join(parts)


def _describe_head(candidate: Candidate, head: str | None) -> str:
    configuration = candidate.configuration
    if head is None:
        return "no head"
    if candidate.num_classes is None:
        return f"{head} head without its last layer"
    reads = f" on {configuration.statistics.replace('+', ' and ')}" if head == "pool" else ""
    low = ", low-rank" if configuration.ranks else ""
    return f"{head} head{reads}{low}, {_count(candidate.num_classes, 'class', 'classes')}"


def _describe_model(configuration: Configuration) -> str:
    """`VGG16 (configuration D)`, `VGG16-BN (configuration D with batch norm)`, `a custom VGG`."""
    model = configuration.model
    if model == "custom":
        return "a custom VGG"
    letter = PAPER_LETTERS[model.removesuffix("_bn")]
    with_norm = " with batch norm" if model.endswith("_bn") else ""
    name = model.replace("vgg", "VGG").replace("_bn", "-BN").replace("_lrn", "-LRN").replace("_c", "")
    return f"{name} (configuration {letter}{with_norm})"


def _describe_contrast(configuration: Configuration, path: Path) -> str:
    """`, not VGG11` where the file's name claims it; the name decides nothing else."""
    claimed = re.search(r"vgg[-_ ]?(11|13|16|19)(?!\d)", path.name.lower())
    if claimed is None or configuration.model.startswith(f"vgg{claimed[1]}"):
        return ""
    return f", not VGG{claimed[1]}"


def write_load_line(
    candidate: Candidate,
    *,
    path: Path,
    is_classifier: bool,
    missing: Collection[str],
    others: Collection[str],
    reading: int | None = None,
    labelled: bool = False,
    void: bool = False,
) -> str | None:
    """The Python code that loads the file as a Classifier, with `import vggkit as vk`; None where none would.

    Args:
        candidate: The network.
        path: The file.
        is_classifier: It carries a card.
        missing: Canonical keys that it lacks.
        others: Its keys that are of another shape, or none of the network's.
        reading: Which of the file's readings this network is, where there are several; it is part of the sentence.
        labelled: The file keeps the names of the classes, which are taken.
        void: The head's values are NaN, and the line makes a new one.
    """
    configuration = candidate.configuration
    quoted = "state_dict" if path == IN_MEMORY else json.dumps(str(path), ensure_ascii=False)
    if is_classifier:
        return None if missing or others else f"clf = vk.load({quoted})"
    if configuration.in_channels not in (1, 3, 4):
        return None
    if void and configuration.head == "pool":
        return None
    classes = None if void else candidate.num_classes
    labels = f"[str(k) for k in range({classes})]" if classes else '["ant", "bee"]'
    options = [*([] if labelled else [f"labels={labels}"]), f"weights={quoted}"]
    which = f"vk.identify({quoted}).configuration"
    if reading is not None:
        which = f"vk.identify({quoted}).readings[{reading}].configuration"
    if configuration.model != "custom":
        channels, until = configuration.in_channels, configuration.until
        plain = configure(
            configuration.model, num_classes=configuration.num_classes, in_channels=channels, until=until
        )
        if (plain == configuration or classes is None) and (reading is None or until is not None):
            which = f'"{configuration.model}"'
            options += [f"in_channels={channels}"] if channels != 3 else []
            options += [f'until="{until}"'] if until else []
    options += ['head="pool"'] if void else []
    smallest = configuration.minimum_side
    if smallest > CROP_PIXELS:
        options.append(f"preprocessing=vk.Preprocessing(resize_pixels={smallest}, crop_pixels={smallest})")
    # A missing pool head is initialised, and layers behind a cut are ignored.
    pooled = configuration.head == "pool"
    lacking = [key for key in missing if not (pooled and key.startswith("classifier."))]
    renewed = pooled and len(lacking) < len(missing)
    if lacking or (others and not renewed):
        options.append("allow_partial=True")
    return f"clf = vk.Classifier.create({which}, {', '.join(options)})"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
