"""Selects the engine: the fastest that is installed for the device; torch is imported only to compute."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, get_args

from vggkit.engines.info import EngineName, WantedEngine
from vggkit.engines.model_weights import Weights, find_weights
from vggkit.engines.outputs import Output, Precision, Ranges, WantedPrecision, check_precision
from vggkit.engines.stream import NamedEngine
from vggkit.errors import BadConfiguration, UnknownName
from vggkit.hardware import choose_device, computes_bf16, find_processor_features, has_accelerator, has_x86

if TYPE_CHECKING:
    import torch

    from vggkit.models.vgg import VGG
    from vggkit.weights.model import Model

NEEDED: Final[dict[EngineName, tuple[str, ...]]] = {
    "pytorch": ("torch",),
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime"),
    "ncnn": ("ncnn",),
}
"""The packages that each engine computes with."""

USUAL_PIXELS: Final = 224
"""Sides of the images where they are not known."""
LEAST_PIXELS: Final = 112
"""Sides from which on ncnn's float32 is at least as fast as OpenVINO's, with AVX2 and with AVX-512. At 64 pixels it
is 0.6 to 0.8 times as fast (VGG11 on a Zen 5, batches), at 32 a fifth."""
LEAST_PIXELS_FOR_BATCHES: Final = 192
"""The same of OpenVINO's bfloat16: at 160 pixels ncnn is 0.95 times as fast, at 224 1.1 times (VGG11, VGG16)."""


def choose_engine(
    model: "VGG | Model | Weights",
    device: "torch.device | str" = "auto",
    *,
    output: Output | Sequence[Output] = "logits",
    precision: WantedPrecision = "auto",
    activation_ranges: Ranges | None = None,
    engine: WantedEngine = "auto",
    as_read: bool = False,
) -> NamedEngine:
    """An engine for a network as it is now; its `info` records which one it is.

    Args:
        model: A VGG or a Model, whose weights must stay as they are while the engine is used; or a ModelFile, for
            which torch is imported only where PyTorch computes.
        device: A torch device or its name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        output: The output for each image, or several names: `engines.outputs`.
        precision: auto: bf16 where the device multiplies it natively. bf16: OpenVINO computes in float32 on a
            processor without it, and its `info` says fp32. int8 is computed by OpenVINO on the processor only.
        activation_ranges: For int8, the result of `measure_ranges`; None: those stored in the model.
        engine: auto: PyTorch on CUDA and MPS; on a CPU the first of these that is installed and computes in that
            precision: ncnn (on x86, for images of 112 pixels and more), OpenVINO, ONNX Runtime and PyTorch.
        as_read: In int8, compute several outputs in one pass, rounded as the layers that read them read them.

    Raises UnknownName, BadConfiguration for an engine without that precision or device, MissingExtra, BadInput and
    BadCheckpoint.
    """
    weights = find_weights(model)
    place, name, chosen = resolve_choice(
        device, precision=precision, engine=engine, pixels=weights.pixels or USUAL_PIXELS
    )
    if name in ("onnx", "ncnn") and chosen != "fp32":
        title = "ncnn" if name == "ncnn" else "ONNX Runtime"
        raise BadConfiguration(f"{title} computes in float32 on processors; take precision fp32, or OpenVINO")
    if name == "pytorch" and chosen == "int8":
        raise BadConfiguration(
            "int8 is computed by OpenVINO on processors; take engine openvino and device cpu, or bf16"
        )
    if chosen == "int8" and activation_ranges is None:
        activation_ranges = weights.activation_ranges
    check_precision(chosen, activation_ranges)
    match name:
        case "openvino":
            from vggkit.engines.openvino import OpenVINOEngine

            return OpenVINOEngine(
                weights, output=output, precision=chosen, activation_ranges=activation_ranges, as_read=as_read
            )
        case "onnx":
            from vggkit.engines.onnx import ONNXEngine

            return ONNXEngine(weights, output=output)
        case "ncnn":
            from vggkit.engines.ncnn import NCNNEngine

            return NCNNEngine(weights, output=output)
        case "pytorch":
            from vggkit.engines.pytorch import PyTorchEngine

            return PyTorchEngine(
                weights.load_network(),
                choose_device(place) if isinstance(place, str) else place,
                output=output,
                precision="bf16" if chosen == "bf16" else "fp32",
                activation=weights.activation,
            )


def resolve_choice(
    device: "torch.device | str" = "auto",
    *,
    precision: WantedPrecision = "auto",
    engine: WantedEngine = "auto",
    pixels: int = USUAL_PIXELS,
) -> tuple["torch.device | str", EngineName, Precision]:
    """Resolve `auto` for images of so many pixels a side: (device, engine, precision).

    Raises UnknownName, BadInput and BadConfiguration.
    """
    if engine not in get_args(WantedEngine):
        raise UnknownName.of("engine", engine, get_args(WantedEngine))
    place = _resolve_device(device, engine)
    chosen: Precision = "fp32"
    if precision != "auto":
        chosen = precision
    elif engine not in ("onnx", "ncnn") and computes_bf16(place):
        chosen = "bf16"
    name = _resolve_engine(place, chosen, pixels) if engine == "auto" else engine
    if name == "openvino" and chosen == "bf16" and not computes_bf16(place):
        chosen = "fp32"  # OpenVINO computes in float32 there
    return place, name, chosen


def resolve_for_batches(
    device: "torch.device | str", *, precision: WantedPrecision, engine: WantedEngine, pixels: int
) -> tuple["torch.device | str", EngineName, Precision]:
    """The same for batches of images: bf16 becomes float32 where ncnn is faster in it.

    A processor with bfloat16 in vectors multiplies it twice as fast as float32; in large maps Winograd's algorithm
    saves more than half of the products. With matrix units (AMX) it is not so.
    """
    place, name, chosen = resolve_choice(device, precision=precision, engine=engine, pixels=pixels)
    if (engine, name, chosen) == ("auto", "openvino", "bf16") and pixels >= LEAST_PIXELS_FOR_BATCHES:
        has_matrix_units = "amx_bf16" in find_processor_features()
        if not has_matrix_units and _resolve_engine(place, "fp32", pixels) == "ncnn":
            return place, "ncnn", "fp32"
    return place, name, chosen


def _resolve_device(device: "torch.device | str", engine: str) -> "torch.device | str":
    """The device; its name alone where torch is not needed."""
    kind = _find_kind(device)
    if engine in ("openvino", "onnx", "ncnn"):
        if kind not in ("auto", "cpu"):
            raise BadConfiguration(
                f"engine {engine} computes on the processor, and the device is {device}; "
                "take device cpu, or engine pytorch"
            )
        return "cpu" if kind == "auto" else device
    if kind == "auto":
        return choose_device("auto") if has_accelerator() else "cpu"
    return choose_device(device) if isinstance(device, str) and kind != "cpu" else device


def _resolve_engine(place: "torch.device | str", precision: Precision, pixels: int) -> EngineName:
    """The fastest for the device that is installed."""
    if precision == "int8" and _find_kind(place) == "cpu":
        return "openvino"  # no other does
    order: tuple[EngineName, ...] = ("openvino",)
    if precision == "fp32":  # on other processors than x86 ncnn was not measured
        order = ("ncnn", "openvino", "onnx") if has_x86() and pixels >= LEAST_PIXELS else ("openvino", "onnx")
    found = (name for name in order if all(map(importlib.util.find_spec, NEEDED[name])))
    return next(found, "pytorch") if _find_kind(place) == "cpu" else "pytorch"


def _find_kind(device: "torch.device | str") -> str:
    """`auto`, `cpu`, `cuda`, `mps`."""
    return device.partition(":")[0] if isinstance(device, str) else device.type
