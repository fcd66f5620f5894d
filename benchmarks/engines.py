"""Engines compared with other libraries, VGG11 at 224 pixels on a CPU: throughput and time from process start.

Throughput in one process, each in turn, the same weights and images; a first round, not measured, compares all
outputs with torchvision's eager fp32. `engine_peers.py` has the peers. Libraries that are not installed are skipped
with a message; all of them take `pip install ncnn nncf`, a C++ compiler for torch inductor, and 14 GB of memory.
Each start is a process of its own, in a random order, with the model's file in the page cache; "compiled, read" is
OpenVINO's own compiled model, exported before. Writes engines.md beside itself.
"""

import argparse
import datetime
import gc
import importlib.metadata
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from engine_peers import BF16, CALIBRATING, FP32, INT8, PEERS, SIDE, Absent, Run, draw

BATCHES = (1, 8, 32)
PAUSE = 0.1
PASSES = 9  # of a single image in a turn, fewer of several
"""Seconds before each measurement: threads of the one before have stopped waiting actively."""
PACKAGES = ("torchvision", "openvino", "onnxruntime", "onnx", "onnxscript", "ncnn", "nncf")
TORCHVISION = """
import sys, torch, torchvision
from PIL import Image
network = torchvision.models.vgg11()
network.load_state_dict(torch.load(sys.argv[1] + "/model.pth", weights_only=True))
prepare = torchvision.models.VGG11_Weights.DEFAULT.transforms()
with torch.inference_mode():
    print(int(network.eval()(prepare(Image.open(sys.argv[1] + "/image.png"))[None]).argmax()))
"""
VGGKIT = """
import sys
from vggkit.engines.select import choose_engine
from vggkit.engines.model_weights import ModelFile
from vggkit.images.dataset import ImageSample
model = ModelFile(sys.argv[1] + "/model.safetensors")
engine = choose_engine(model, "cpu", engine="{engine}", precision="{precision}")
image = model.card.preprocessing(ImageSample(sys.argv[1] + "/image.png").decode())
print(int(engine.run(image[None]).argmax()))
"""
COMPILED = """
import sys, numpy
from vggkit.engines.openvino import import_openvino
from vggkit.images.dataset import ImageSample
from vggkit.weights.classifier_file import read_card
openvino = import_openvino()
card = read_card(sys.argv[1] + "/model.safetensors")
blob = openvino.Tensor(numpy.memmap(sys.argv[1] + "/bf16.blob", numpy.uint8, "r"))
options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
model = openvino.Core().import_model(blob, "CPU", options)
image = card.preprocessing(ImageSample(sys.argv[1] + "/image.png").decode())
print(int(model(image[None])[0].argmax()))
"""
STARTS = {
    "torchvision, eager fp32": TORCHVISION,
    "vggkit, OpenVINO fp32": VGGKIT.format(engine="openvino", precision="fp32"),
    "vggkit, OpenVINO bf16": VGGKIT.format(engine="openvino", precision="bf16"),
    "OpenVINO bf16, compiled, read": COMPILED,
    "vggkit, ONNX Runtime fp32": VGGKIT.format(engine="onnx", precision="fp32"),
    "vggkit, ncnn fp32": VGGKIT.format(engine="ncnn", precision="fp32"),
}


def build_runners(folder: Path) -> dict[str, tuple[Run, float]]:
    """What takes a batch, and how far it may be from torchvision, by its name; torchvision first."""
    import torch
    import torchvision

    from vggkit.engines.activation_ranges import measure_ranges
    from vggkit.engines.model_weights import ModelFile
    from vggkit.engines.ncnn import NCNNEngine
    from vggkit.engines.onnx import ONNXEngine
    from vggkit.engines.openvino import OpenVINOEngine
    from vggkit.engines.pytorch import PyTorchEngine

    network = torchvision.models.vgg11().eval().requires_grad_(False)
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    runners = {}
    for name, peer in PEERS.items():
        try:
            runners[name] = peer.make(network, folder), peer.bound
        except Absent as lack:
            print(f"skipped: {name}: {lack}", flush=True)
    model = ModelFile(folder / "model.safetensors")
    activation_ranges = measure_ranges(model, [draw(8)])
    cpu = torch.device("cpu")
    runners |= {
        "vggkit, PyTorch fp32": (PyTorchEngine(model.load_network(), cpu).run, FP32),
        "vggkit, ONNX Runtime fp32": (ONNXEngine(model).run, FP32),
        "vggkit, ncnn fp32": (NCNNEngine(model).run, FP32),
        "vggkit, OpenVINO fp32": (OpenVINOEngine(model).run, FP32),
        "vggkit, OpenVINO bf16": (OpenVINOEngine(model, precision="bf16").run, BF16),
        "vggkit, OpenVINO int8": (
            OpenVINOEngine(model, precision="int8", activation_ranges=activation_ranges).run,
            INT8,
        ),
    }
    gc.collect()
    return runners


def compare(runners: dict[str, tuple[Run, float]]) -> None:
    """Each gives what torchvision gives; what compiles for a size of batch has done it then."""
    for count in BATCHES:
        batch = draw(count)
        expected = next(iter(runners.values()))[0](batch)
        for name, (run, bound) in runners.items():
            found = run(batch)
            assert found.shape == expected.shape, f"{name}: {found.shape} of {count} images"
            error = float(np.abs(found - expected).max() / expected.std())
            assert error <= bound, f"{name}: {error:.2g} of the outputs' spread from torchvision at batch {count}"


def time_passes(run, batch: np.ndarray) -> float:
    """Seconds of a pass, the median of a few; one before them brings the weights back to the caches."""
    run(batch)
    passes = []
    for _ in range(max(1, PASSES // len(batch))):
        started = time.perf_counter()
        run(batch)
        passes.append(time.perf_counter() - started)
    return statistics.median(passes)


def measure_throughput(folder: Path, rounds: int) -> list[str]:
    runners = build_runners(folder)
    compare(runners)
    seconds: dict = {}
    for _ in range(rounds):
        for name, (run, _) in runners.items():
            for count in BATCHES:
                batch = draw(count)
                time.sleep(PAUSE)
                seconds.setdefault((name, count), []).append(time_passes(run, batch))
    peer = next(iter(runners))
    rows = []
    for name in runners:
        cells = []
        for count in BATCHES:
            ratios = sorted(p / o for p, o in zip(seconds[peer, count], seconds[name, count], strict=True))
            speed = count / statistics.median(seconds[name, count])
            cells.append(f"{speed:.1f}, {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def measure_starts(folder: Path, rounds: int) -> list[str]:
    seconds: dict = {name: [] for name in STARTS}
    predictions = set()
    for _ in range(rounds):
        for name in random.sample(list(STARTS), len(STARTS)):
            started = time.perf_counter()
            line = [sys.executable, "-c", STARTS[name], str(folder)]
            done = subprocess.run(line, capture_output=True, text=True, check=True)
            seconds[name].append(time.perf_counter() - started)
            predictions.add(done.stdout)
    assert len(predictions) == 1, predictions
    peer = statistics.median(next(iter(seconds.values())))
    return [
        f"| {name} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) | "
        f"{peer / statistics.median(found):.1f} |"
        for name, found in seconds.items()
    ]


def prepare(folder: Path) -> None:
    import torch
    from PIL import Image

    import vggkit as vk
    from vggkit.engines.openvino import OpenVINOEngine

    classifier = vk.Classifier.create("vgg11", labels=[f"class {n}" for n in range(1000)], seed=0)
    classifier.save(folder / "model.safetensors")
    torch.save(classifier.network.state_dict(), folder / "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    engine = OpenVINOEngine(classifier.network, precision="bf16")
    blob = engine._compile((SIDE, SIDE), "LATENCY", False)._model.export_model()
    (folder / "bf16.blob").write_bytes(blob.getbuffer())


def find_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main() -> None:
    from vggkit.hardware import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        starts = measure_starts(folder, rounds)
        speeds = measure_throughput(folder, rounds)
    import torch

    machine = describe_machine(torch.device("cpu"))
    versions = ", ".join(f"{name} {find_version(name)}" for name in PACKAGES)
    text = "\n".join(
        [
            "# Engines compared with other libraries",
            "",
            f"VGG11 at {SIDE} pixels, medians of {rounds} rounds in turn, warm. Each cell gives images per second,",
            "and the ratio to torchvision's eager speed (minimum to maximum). ncnn processes the images of a batch",
            f"one by one; NNCF was calibrated on {CALIBRATING} random images. All outputs were first compared with",
            "torchvision's.",
            "",
            f"| | {' | '.join(f'batch {count}' for count in BATCHES)} |",
            f"|---|{'---|' * len(BATCHES)}",
            *speeds,
            "",
            "Seconds from process start to the first prediction, with 531 MB of weights (minimum to maximum), and",
            "the speed relative to torchvision:",
            "",
            "| | seconds | ratio |",
            "|---|---|---|",
            *starts,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, {versions}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
