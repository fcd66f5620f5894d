"""Which engine computes: the fastest that is installed, for the device."""

import importlib.util
from typing import Literal

import torch

from vggkit.engines.pytorch import Output, Precision, PyTorchEngine
from vggkit.engines.stream import Engine
from vggkit.hardware import computes_bf16
from vggkit.networks.vgg import VGG


def choose_engine(
    network: VGG,
    device: torch.device,
    *,
    output: Output = "logits",
    precision: Literal["fp32", "bf16", "auto"] = "fp32",
) -> tuple[Engine, str]:
    """An engine for the network as it is now, and what was chosen and why, for people.

    Args:
        network: The VGG; PyTorch in fp32 moves it to the device, and its weights must stay as they are
            while an engine is used.
        device: CUDA and MPS are PyTorch's; on a CPU it is OpenVINO, where that is installed.
        output: What is given of each picture.
        precision: auto: bf16 where the device multiplies it by itself.
    """
    fast = computes_bf16(device)
    chosen: Precision = ("bf16" if fast else "fp32") if precision == "auto" else precision
    kind = {"fp32": "float32", "bf16": "bfloat16"}[chosen]
    why = {
        ("auto", True): f", which this {_name(device)} multiplies by itself",
        ("auto", False): f", for this {_name(device)} has no fast bfloat16",
    }.get((precision, fast), "")
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        from vggkit.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(network, output=output, precision=chosen), f"OpenVINO in {kind}{why}"
    hint = '; pip install "vggkit[fast]" makes it faster' if device.type == "cpu" else ""
    engine = PyTorchEngine(network, device, output=output, precision=chosen)
    return engine, f"PyTorch in {kind}{why}{hint}"


def _name(device: torch.device) -> str:
    return "processor" if device.type == "cpu" else "GPU"
