"""Weights in files: read safely, compare with what a network expects, write whole.

Reading is `weight_files`', which never runs code.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vggkit.errors import BadCheckpoint, BadOutput
from vggkit.files import whole_file
from vggkit.models.configuration import Configuration
from vggkit.models.initialization import adapt_filters
from vggkit.weights.canonical import CanonicalWeights
from vggkit.weights.formats.detect import open_weights
from vggkit.weights.storage import Storage, pack_state


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of any file of weights that `open_weights` reads, by key, on the CPU.

    Raises BadCheckpoint, naming the file, for anything that is not a whole file of finite tensors.
    """
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.entries}


def write_weights(
    path: str | Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], *, storage: Storage = "fp32"
) -> None:
    """Write tensors as safetensors, whole or not at all, those that share memory each in full.

    Args:
        path: The file.
        weights: Tensors by key.
        metadata: Of the file's header.
        storage: How kernels and matrices are written; fp32: every tensor in the type that it has.

    Raises BadOutput, and BadInput for weights that the storage cannot hold.
    """
    if storage != "fp32":
        arrays = {key: value.detach().cpu() for key, value in weights.items()}
        arrays = {key: value.float() if value.is_floating_point() else value for key, value in arrays.items()}
        packed, listed = pack_state({key: value.numpy() for key, value in arrays.items()}, storage)
        weights = {key: torch.from_numpy(value.copy()) for key, value in packed.items()}
        metadata = {**metadata, **listed}
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        # channels_last weights are laid out otherwise in memory, and the format keeps no layout.
        plain[key] = value.detach().to("cpu").contiguous()
    places = Counter(value.untyped_storage().data_ptr() for value in plain.values())
    for key, value in plain.items():
        if places[value.untyped_storage().data_ptr()] > 1:
            plain[key] = value.clone()
    with whole_file(path) as beside:
        try:
            safetensors.torch.save_file(plain, beside, dict(metadata))
        except SafetensorError as problem:  # it wraps the system's errors, such as a full disk
            raise BadOutput(f"{path}: cannot be written ({problem})") from problem


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that `write_weights` wrote; raises BadCheckpoint."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, UnicodeError) as problem:
        raise BadCheckpoint(f"{path}: cannot be read ({problem})") from problem


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """The weights that a network starts from, and how each key was used."""

    tensors: Mapping[str, Tensor]
    """The tensors that were loaded, by canonical key."""
    random: tuple[str, ...]
    """Canonical keys that keep random values, as requested or because they were not found."""
    missing: tuple[str, ...]
    """Those of them that the source should have held; only with `allow_partial`."""
    ignored: tuple[str, ...]
    """The source's keys that were not used."""
    reinitialised: str | None
    """The part of the source's head that was initialised again, in words; None where it was loaded."""


def select_weights(
    configuration: Configuration,
    weights: CanonicalWeights,
    *,
    source: str,
    other_classes: str | None = None,
    allow_partial: bool = False,
    holds: str | None = None,
    head_fits: bool = True,
) -> LoadedWeights:
    """Those of `weights` (canonical keys) that this network starts from, and what could not be loaded.

    Strict but for what was requested: other classes reinitialise the last layer, a pool head or a cut
    reinitialises the head and leaves what follows unused, and first filters for three channels are
    adapted to `in_channels`.

    Args:
        configuration: The network.
        weights: Tensors by canonical key; only those that are taken are read.
        source: The place of the weights, for messages.
        other_classes: Why the last layer is reinitialised even where it fits, in words; None: it is not.
        allow_partial: Let missing and misshapen keys keep their random values, and ignore
            unexpected ones; some convolution must fit.
        holds: The identification of the source, for messages.
        head_fits: Whether its head reads what this network's head reads; one that does not is reinitialised,
            whatever its shape.

    Raises BadCheckpoint, naming missing, unexpected and misshapen keys.
    """
    expected = configuration.state_shapes()
    last = f"classifier.{configuration.fully_connected[-1].index}."
    reinitialised = "classifier." if configuration.head == "pool" else last
    loaded: dict[str, Tensor] = {}
    fresh, missing, misshapen = [], [], []
    classes, fitted = None, False
    for key, shape in expected.items():
        found = weights.find_shape(key)
        adapted: Tensor | None = None
        if key == "features.0.weight" and found is not None and len(found) == 4 and found[1] == 3:
            adapted = adapt_filters(weights[key], configuration.in_channels)
            found = tuple(adapted.shape)
        fits = found == shape and (head_fits or not key.startswith("classifier."))
        if fits and not (other_classes and key.startswith(last)):
            loaded[key] = adapted if adapted is not None else _read_taken(weights, key)
        elif key.startswith(reinitialised):
            fresh.append(key)
            fitted = fitted or (fits and key.startswith(last))
            if head_fits and found is not None and key == f"{last}weight" and found[1:] == shape[1:]:
                classes = found[0]
        elif found is None:
            if not key.endswith("num_batches_tracked"):  # files older than PyTorch 0.4.1 have none
                missing.append(key)
        else:
            misshapen.append(f"{key} {found} in place of {shape}")
    if fresh and any(key in loaded for key in _same_layer(fresh)):
        loaded = {key: value for key, value in loaded.items() if key not in _same_layer(fresh)}
    ignored = [key for key in weights if key not in loaded]
    # A cut leaves what follows it, together with the head there. With its own head nothing is left.
    behind = configuration.head == "pool" and bool(fresh)
    unexpected = [] if behind else [key for key in ignored if key not in expected]
    strange = missing or misshapen or unexpected
    if strange and not (allow_partial and any(value.dim() == 4 for value in loaded.values())):
        wrong = {"missing": missing, "misshapen": misshapen, "unexpected": unexpected}
        listed = "; ".join(f"{what}: {_shortened(keys)}" for what, keys in wrong.items() if keys)
        raise BadCheckpoint(
            f"{source}: does not contain the weights of {configuration.model}"
            f"{f' until {configuration.until}' if configuration.until else ''} ({listed})"
            f"{f'; it contains {holds}' if holds else ''}"
            f"{'' if allow_partial else '; cut with until= or load what fits with allow_partial=True'}"
        )
    random = tuple(key for key in expected if key not in loaded and not key.endswith("num_batches_tracked"))
    description = None
    if fresh:
        description = f"the head, new with {configuration.num_classes} classes"
        if classes is not None:
            description = f"the last layer: {classes} classes in the file, {configuration.num_classes} here"
        if fitted:
            description = f"the last layer: {other_classes}"
    return LoadedWeights(
        tensors=loaded,
        random=random,
        missing=(*missing, *(line.split(" ")[0] for line in misshapen)),
        ignored=tuple(ignored),
        reinitialised=description,
    )


def _read_taken(weights: CanonicalWeights, key: str) -> Tensor:
    """One tensor; raises BadCheckpoint for values that are not finite, with the way past a head without values."""
    try:
        return weights[key]
    except BadCheckpoint as problem:
        if not key.startswith("classifier."):
            raise
        hint = "of a file whose classifier has no values (torchvision's IMAGENET1K_FEATURES) take head='pool'"
        raise BadCheckpoint(f"{problem}; {hint}") from problem


def _same_layer(keys: Sequence[str]) -> set[str]:
    """A layer is reinitialised whole: its bias with its matrix."""
    layers = {key.rsplit(".", 1)[0] for key in keys}
    return {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}


def _shortened(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
