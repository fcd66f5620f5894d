"""The peers of vggkit's engines in `engines.py`: torchvision's VGG11, run on a CPU by other libraries.

Each function converts torchvision's network to a callable of a batch (N, 3, 224, 224) that gives rows (N, 1000), on
all processors, as the library's documentation advises and without further tuning. NNCF is not
a dependency of vggkit: `pip install nncf`; torch inductor needs a C++ compiler. A missing library raises
Absent.
"""

import copy
import functools
import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vggkit.hardware import count_threads

if TYPE_CHECKING:
    import torch

SIDE = 224
CALIBRATING = 32
"""Random images that NNCF measures ranges on."""
TOGETHER = 8
"""Images of one OpenVINO request at most, as in vggkit."""
NCNN_MAGIC = 7767517

Run = Callable[[np.ndarray], np.ndarray]


class Absent(Exception):
    """What a peer needs and this machine lacks."""


def draw(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise Absent(f"pip install {' '.join(missing)}")


def run_eagerly(network: "torch.nn.Module", folder: Path) -> Run:
    import torch

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    return run


def run_channels_last(network: "torch.nn.Module", folder: Path) -> Run:
    import torch

    turned = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return turned(torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)).numpy()

    return run


def run_inductor(network: "torch.nn.Module", folder: Path, *, narrow: bool = False) -> Run:
    """Compiled for each size of batch when it comes first; the layouts are inductor's choice."""
    import torch
    import torch._dynamo
    import torch._inductor.config

    # For the whole process: among `options` of torch.compile, freezing is passed over without a word.
    torch._inductor.config.freezing = True
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # it would go on eagerly
    compiled = torch.compile(copy.deepcopy(network).bfloat16() if narrow else network, dynamic=False)
    dtype = torch.bfloat16 if narrow else torch.float32

    def run(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return compiled(torch.from_numpy(batch).to(dtype)).float().numpy()

    try:
        run(draw(1))
    except torch._dynamo.exc.BackendCompilerFailed as problem:
        reason = str(problem).strip().partition("\n")[0]
        raise Absent(f"cannot compile; install g++ and Python's headers ({reason})") from problem
    return run


def run_onnx_runtime(network: "torch.nn.Module", folder: Path) -> Run:
    require("onnx", "onnxruntime", "onnxscript")
    import onnxruntime
    import torch

    path = folder / "peer.onnx"
    batch = {0: torch.export.Dim("batch")}
    given = (torch.from_numpy(draw(2)),)
    torch.onnx.export(network, given, path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def run_nncf(network: "torch.nn.Module", folder: Path) -> Run:
    """OpenVINO's model of the network, quantised by NNCF on random images."""
    require("openvino", "nncf")
    sys.modules.setdefault("openvino_telemetry", None)  # neither reports to its makers
    import nncf
    import openvino
    import torch

    with warnings.catch_warnings(action="ignore"):  # it traces, which torch calls deprecated
        shape = openvino.PartialShape([-1, 3, SIDE, SIDE])
        model = openvino.convert_model(network, example_input=torch.from_numpy(draw(1)), input=shape)
    images = nncf.Dataset([image[None] for image in draw(CALIBRATING)])
    model = nncf.quantize(model, images, subset_size=CALIBRATING)

    @functools.cache
    def compile_for(hint: str) -> "openvino.AsyncInferQueue":
        compiled = openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": hint})
        return openvino.AsyncInferQueue(compiled)

    def run(batch: np.ndarray) -> np.ndarray:
        queue = compile_for("LATENCY" if len(batch) == 1 else "THROUGHPUT")
        found: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, first: found.update({first: request.get_output_tensor(0).data.copy()}))
        each = min(TOGETHER, math.ceil(len(batch) / len(queue)))
        for first in range(0, len(batch), each):
            queue.start_async({0: batch[first : first + each]}, first, share_inputs=True)
        queue.wait_all()
        return np.concatenate([found[first] for first in sorted(found)])

    return run


def run_ncnn(network: "torch.nn.Module", folder: Path, *, narrow: bool = False) -> Run:
    """Ncnn knows no batches: images one after another, each on all processors."""
    require("ncnn")
    import ncnn

    last = write_ncnn(network, folder)
    net = ncnn.Net()
    net.opt.num_threads = count_threads()
    net.opt.use_winograd_convolution = True
    # Otherwise matrices are kept in float16, whatever else is asked for.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = narrow
    failed = net.load_param(str(folder / "peer.param")) or net.load_model(str(folder / "peer.bin"))
    assert not failed, "ncnn does not read what was written for it"

    def run_one(image: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("images", ncnn.Mat(image))
        failed, row = extractor.extract(last)
        assert not failed, "ncnn gives nothing"
        return np.array(row)

    return lambda batch: np.stack([run_one(image) for image in batch])


def write_ncnn(network: "torch.nn.Module", folder: Path) -> str:
    """The network as ncnn reads it, peer.param and peer.bin, its ReLUs in the layers before; what the last gives.

    Adaptive pooling and dropout are left out: they change nothing at this size.
    """
    from torch import nn

    modules = [*network.features, nn.Flatten(), *network.classifier]
    lines, name = ["Input images 0 1 images"], "images"
    with open(folder / "peer.bin", "wb") as file:
        for place, (module, after) in enumerate(zip(modules, [*modules[1:], None], strict=True)):
            relu = int(isinstance(after, nn.ReLU))
            match module:
                case nn.Conv2d():
                    settings = f"0={module.out_channels} 1=3 4=1 5=1 6={module.weight.numel()} 9={relu}"
                    kind = "Convolution"
                case nn.Linear():
                    settings = f"0={module.out_features} 1=1 2={module.weight.numel()} 9={relu}"
                    kind = "InnerProduct"
                case nn.MaxPool2d():
                    kind, settings = "Pooling", "0=0 1=2 2=2 5=1"
                case nn.Flatten():
                    kind, settings = "Flatten", ""
                case _:
                    continue
            if isinstance(module, nn.Conv2d | nn.Linear):
                file.write(bytes(4))  # float32 follows
                for values in (module.weight, module.bias):
                    file.write(np.ascontiguousarray(values.detach().numpy(), "<f4").data)
            lines.append(f"{kind} {place} 1 1 {name} {place} {settings}".rstrip())
            name = str(place)
    head = f"{NCNN_MAGIC}\n{len(lines)} {len(lines)}\n"  # layers, and what they give: one each
    (folder / "peer.param").write_text(head + "\n".join(lines) + "\n", encoding="ascii")
    return name


class Peer(NamedTuple):
    """How a peer is made, and how far it may be from torchvision, as a share of the outputs' spread."""

    make: Callable[["torch.nn.Module", Path], Run]
    bound: float


FP32, BF16, INT8 = 1e-3, 0.1, 0.5
PEERS = {
    "torchvision, eager fp32": Peer(run_eagerly, FP32),
    "torchvision, channels_last fp32": Peer(run_channels_last, FP32),
    "torch inductor, frozen fp32": Peer(run_inductor, FP32),
    "torch inductor, frozen bf16": Peer(functools.partial(run_inductor, narrow=True), BF16),
    "ONNX Runtime fp32, exported": Peer(run_onnx_runtime, FP32),
    "ncnn fp32": Peer(run_ncnn, FP32),
    "ncnn bf16": Peer(functools.partial(run_ncnn, narrow=True), BF16),
    "OpenVINO int8, by NNCF": Peer(run_nncf, INT8),
}
