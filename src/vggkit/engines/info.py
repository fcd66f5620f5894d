"""The record of an engine, and the sentences that are made from it. No torch here."""

import importlib.util
from dataclasses import dataclass
from typing import Final, Literal

from vggkit.engines.outputs import Precision, WantedPrecision
from vggkit.hardware import computes_bf16, has_x86

EngineName = Literal["pytorch", "openvino", "onnx", "ncnn"]
WantedEngine = Literal["auto", "pytorch", "openvino", "onnx", "ncnn"]
"""auto: the fastest that is installed, for the device."""
_TITLES: Final[dict[EngineName, str]] = {
    "pytorch": "PyTorch",
    "openvino": "OpenVINO",
    "onnx": "ONNX Runtime",
    "ncnn": "ncnn",
}
_DTYPES: Final[dict[Precision, str]] = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Library, precision and device of an engine: engines with equal records give equal results.

    >>> EngineInfo(name="openvino", precision="fp32", device="cpu", version="2026.0").describe()
    'OpenVINO in float32'
    """

    name: EngineName
    """The library: `pytorch`, `openvino`, `onnx` or `ncnn`."""
    precision: Precision
    """The precision of the products, which may differ from the requested one: `fp32`, `bf16` or `int8`."""
    device: str
    """Where: `cpu`, `cuda`, `cuda:1`, `mps`."""
    version: str
    """The library's version."""
    weight_bits: int | None = None
    """In int8 the bits of a rounded weight: 8, or 7 where sums of products could saturate; else None."""

    def describe(self) -> str:
        """Such as `OpenVINO in float32`."""
        bits = " with 7-bit weights" if self.weight_bits == 7 else ""
        return f"{_TITLES[self.name]} in {_DTYPES[self.precision]}{bits}"


def explain_choice(info: EngineInfo, *, precision: WantedPrecision, engine: WantedEngine) -> str:
    """A sentence on the engine, and why it is not the requested one or why `auto` chose it.

    Args:
        info: The engine's record.
        precision: The precision that was requested.
        engine: The engine that was requested.
    """
    processor = "processor" if info.device.startswith("cpu") else "GPU"
    sentence = info.describe()
    if info.weight_bits == 7:
        sentence += ", because this processor is not known to have VNNI or AMX"
    elif precision != info.precision and info.precision == "bf16":
        sentence += f", which this {processor} multiplies natively"
    elif precision != info.precision and not computes_bf16(info.device.partition(":")[0]):
        sentence += f", because this {processor} has no fast bfloat16"
    if (info.name, engine, processor) == ("pytorch", "auto", "processor"):
        sentence += '; pip install "vggkit[fast]" makes it faster'
    elif (info.name, engine) == ("ncnn", "auto"):
        sentence += "; it is the fastest in float32 on x86 for images of this size"
    elif (
        (info.name, info.precision, engine) == ("openvino", "fp32", "auto")
        and precision != "bf16"
        and _lacks_ncnn()
    ):
        sentence += '; pip install "vggkit[ncnn]" makes it faster for images of 112 pixels and more'
    return sentence


def _lacks_ncnn() -> bool:
    return has_x86() and importlib.util.find_spec("ncnn") is None


def is_same_engine(recorded: object, info: EngineInfo) -> bool:
    """Whether a record that was read from a file, as `dataclasses.asdict` gave it, is of this engine.

    Files written by version 0.1 hold a sentence without device and version; it is compared with the sentence
    that this engine would have been given then.
    """
    if isinstance(recorded, str):
        bits = " with weights of 7 bits" if info.weight_bits == 7 else ""
        return recorded == f"{_TITLES[info.name]} in {_DTYPES[info.precision]}{bits}"
    return recorded == {name: getattr(info, name) for name in EngineInfo.__slots__}
