"""Weights in files: read safely, compare with what a network expects, write whole.

Reading never runs code: safetensors, or torch's own files with `weights_only=True`.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vggkit.errors import BadCheckpoint, BadOutput
from vggkit.networks.configurations import Configuration
from vggkit.networks.initialization import adapt_filters
from vggkit.writing import whole_file

WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
"""Entries under which training scripts keep the weights."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file or of a `.pth` state dict, by key, on the CPU.

    Raises BadCheckpoint, naming the file, for anything that is not a whole file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BadCheckpoint(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError, MemoryError, ValueError) as problem:
            raise BadCheckpoint(f"{path}: is not a whole safetensors file ({problem})") from problem
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise BadCheckpoint(
            f"{path}: is not a plain state dict; loading it would run code from the file, so it was refused. "
            "Save model.state_dict() where it was made"
        ) from problem
    except Exception as problem:  # a broken archive shows itself in many ways
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise BadCheckpoint(f"{path}: cannot be read as PyTorch weights ({reason})") from problem
    return _find_tensors(content, path)


def _find_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """The mapping of keys to tensors, itself or under a training script's wrapper."""
    if isinstance(content, Mapping):
        inside = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
        tensors = {str(key): value for key, value in inside.items() if isinstance(value, Tensor)}
        if tensors:
            return tensors
    raise BadCheckpoint(f"{path}: holds no tensors by key, but {type(content).__name__}; expected a state dict")


def write_weights(path: str | Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all; raises BadOutput."""
    # channels_last weights are laid out otherwise in memory, and the format keeps no layout.
    plain = {key: value.detach().to("cpu").contiguous() for key, value in weights.items()}
    with whole_file(path) as beside:
        try:
            safetensors.torch.save_file(plain, beside, dict(metadata))
        except SafetensorError as problem:  # it wraps the system's errors, such as a full disk
            raise BadOutput(f"{path}: cannot be written ({problem})") from problem


def take_weights(
    configuration: Configuration,
    weights: Mapping[str, Tensor],
    *,
    source: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Those of `weights` (torchvision's keys) that this network starts from, and what could not be taken.

    Strict but for what was asked for: another number of classes renews the last layer, a pool
    head or a cut renews the head and leaves what lies behind unused, and first filters for three
    channels are adapted to `in_channels`.

    Returns the tensors by key, and the keys that keep their random values. Raises BadCheckpoint,
    naming missing, unexpected and misshapen keys.
    """
    expected = configuration.state_shapes()
    last = f"classifier.{configuration.fully_connected[-1].index}."
    renewed = "classifier." if configuration.head == "pool" else last
    taken: dict[str, Tensor] = {}
    fresh, missing, misshapen = [], [], []
    for key, shape in expected.items():
        value = weights.get(key)
        if value is not None and key == "features.0.weight" and value.dim() == 4 and value.shape[1] == 3:
            value = adapt_filters(value, configuration.in_channels)
        if value is not None and tuple(value.shape) == shape:
            taken[key] = value
        elif key.startswith(renewed):
            fresh.append(key)
        elif value is None:
            if not key.endswith("num_batches_tracked"):  # files older than PyTorch 0.4.1 have none
                missing.append(key)
        else:
            misshapen.append(f"{key} {tuple(value.shape)} in place of {shape}")
    if fresh and any(key in taken for key in _same_layer(fresh)):
        taken = {key: value for key, value in taken.items() if key not in _same_layer(fresh)}
    cut = configuration.head == "pool"
    unexpected = [] if cut else [key for key in weights if key not in expected]
    if missing or misshapen or unexpected:
        found = {"missing": missing, "misshapen": misshapen, "unexpected": unexpected}
        listed = "; ".join(f"{what}: {_shortened(keys)}" for what, keys in found.items() if keys)
        raise BadCheckpoint(
            f"{source}: does not hold the weights of {configuration.model}"
            f"{f' until {configuration.until}' if configuration.until else ''} ({listed})"
        )
    return taken, [key for key in expected if key not in taken and not key.endswith("num_batches_tracked")]


def _same_layer(keys: Sequence[str]) -> set[str]:
    """A layer is renewed whole: its bias with its matrix."""
    layers = {key.rsplit(".", 1)[0] for key in keys}
    return {f"{layer}.{name}" for layer in layers for name in ("weight", "bias")}


def _shortened(keys: Sequence[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
