"""Engines of vggkit on a processor with AVX2 alone, or on one that is kept from using more: VGG11 at 224 pixels.

Float32 and int8 beside torchvision's eager float32, in one process and in turn, on idle processors and beside a
process that computes without end; then memory and the time from start to the first prediction, each in a process of
its own. On a processor with AVX-512 libraries are limited: oneDNN, which computes convolutions for PyTorch and
OpenVINO, by ONEDNN_MAX_CPU_ISA, ATen and MKL by variables of theirs. ncnn has no such variable; the flags that it
chooses its code by are set to zero in its memory, which is a stand-in for measurements and nothing else. `--full`
measures without limits. Writes engines_avx2.md, or engines_full.md, beside itself.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SIDE, BATCHES, PAUSE = 224, (1, 8), 0.05
AVX2_AND_BEFORE = struct.pack("<6i", 1 << 5, 1 << 29, 0, 0, 1 << 12, 1)
"""What ncnn stores of AVX2, F16C, XOP, FMA4, FMA and AVX; AVX-512 and its extensions lie before it."""
AVX512 = range(-8, -4)
BUSY = "while True: pass"
START = """
import sys, time
started = time.perf_counter()
import json, numpy
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.{name} import {kind}
from vggkit.hardware import find_peak_memory
engine = {kind}(ModelFile(sys.argv[1]))
images = numpy.random.default_rng(0).normal(size=(8, 3, 224, 224)).astype(numpy.float32)
engine.run(images[:1])
first = time.perf_counter() - started
alone = find_peak_memory()
for _ in range(3):
    engine.run(images)
print(json.dumps([first, alone, find_peak_memory()]))
"""
STARTS = {"vggkit, OpenVINO fp32": ("openvino", "OpenVINOEngine"), "vggkit, ncnn fp32": ("ncnn", "NCNNEngine")}


def limit_ncnn() -> None:
    """Make ncnn choose its code for AVX2; nets that are loaded afterwards use it."""
    from vggkit.engines.ncnn import import_ncnn

    import_ncnn().cpu_support_x86_avx2()  # it looks at the processor now
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    own = next(number for number, line in enumerate(lines) if "ncnn.cpython" in line)
    for line in lines[own : own + 16]:  # the library's own, and the memory after it without a name
        first, last, kind = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
        if not kind.startswith("rw"):
            continue
        place = ctypes.string_at(int(first, 16), int(last, 16) - int(first, 16)).find(AVX2_AND_BEFORE)
        if place >= 0:
            for number in AVX512:
                ctypes.c_int.from_address(int(first, 16) + place + 4 * number).value = 0
            return
    raise SystemExit("where ncnn stores the processor's flags is not known for this version and system")


def build_runners(path: Path) -> dict:
    """What takes a batch, by its name; torchvision first."""
    import numpy as np
    import torch
    import torchvision

    from vggkit.engines.activation_ranges import measure_ranges
    from vggkit.engines.model_weights import ModelFile
    from vggkit.engines.ncnn import NCNNEngine
    from vggkit.engines.openvino import OpenVINOEngine

    model = ModelFile(path)
    network = torchvision.models.vgg11().eval().requires_grad_(False)
    network.load_state_dict(model.load_network().state_dict())

    def run_eagerly(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    ranges = measure_ranges(model, [draw(8)])
    rounded = OpenVINOEngine(model, precision="int8", activation_ranges=ranges)
    return {
        "torchvision, eager fp32": run_eagerly,
        "vggkit, OpenVINO fp32": OpenVINOEngine(model).run,
        "vggkit, ncnn fp32": NCNNEngine(model).run,
        f"vggkit, OpenVINO int8, {rounded.info.weight_bits}-bit weights": rounded.run,
    }


def draw(count: int):
    import numpy as np

    return np.random.default_rng(count).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def compare(runners: dict) -> list[str]:
    """The largest difference from torchvision's logits, as a share of their spread."""
    import numpy as np

    (_, exact), *others = runners.items()
    expected, found = {n: exact(draw(n)) for n in BATCHES}, []
    for name, run in others:
        errors = [float(np.abs(run(draw(n)) - expected[n]).max() / expected[n].std()) for n in BATCHES]
        assert max(errors) < (0.5 if "int8" in name else 1e-4), f"{name}: {errors}"
        found.append(f"{name} {max(errors):.1e}")
    return found


def measure(runners: dict, rounds: int) -> list[str]:
    """A row a runner: images per second, and the ratio to torchvision's in the same round."""
    seconds: dict = {(name, count): [] for name in runners for count in BATCHES}
    for number in range(rounds + 1):
        for name, run in runners.items():
            for count in BATCHES:
                batch = draw(count)
                time.sleep(PAUSE)
                passes = []
                for _ in range(3 if count == 1 else 1):
                    started = time.perf_counter()
                    run(batch)
                    passes.append(time.perf_counter() - started)
                if number:  # the first round is not measured
                    seconds[name, count].append(statistics.median(passes))
    peer, rows = next(iter(runners)), []
    for name in runners:
        cells = []
        for count in BATCHES:
            ratios = sorted(p / o for p, o in zip(seconds[peer, count], seconds[name, count], strict=True))
            speed = count / statistics.median(seconds[name, count])
            cells.append(f"{speed:.1f}, {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def measure_starts(path: Path, rounds: int) -> list[str]:
    """Seconds to the first prediction, and peak memory after one image and after eight; no limit but oneDNN's."""
    rows = []
    for name, (module, kind) in STARTS.items():
        code, found = START.format(name=module, kind=kind), []
        for _ in range(rounds):
            done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=True)
            found.append(json.loads(done.stdout))
        first, alone, together = zip(*found, strict=True)
        rows.append(
            f"| {name} | {statistics.median(first):.2f} ({min(first):.2f} to {max(first):.2f}) "
            f"| {statistics.median(alone) / 1e6:,.0f} | {statistics.median(together) / 1e6:,.0f} |"
        )
    return rows


def write(heading: str, rows: list[str]) -> list[str]:
    return [heading, "", f"| | {' | '.join(f'batch {n}' for n in BATCHES)} |", "|---|---|---|", *rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    if not arguments.full:
        os.environ.update(LIMITS)
        limit_ncnn()
    import torch

    import vggkit as vk
    from vggkit.hardware import describe_machine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        vk.Classifier.create("vgg11", labels=[f"class {n}" for n in range(1000)], seed=0).save(path)
        starts = measure_starts(path, max(1, arguments.rounds // 2))
        runners = build_runners(path)
        errors = compare(runners)
        idle = measure(runners, arguments.rounds)
        with subprocess.Popen([sys.executable, "-c", BUSY]) as other:
            try:
                beside = measure(runners, arguments.rounds)
            finally:
                other.kill()
    machine = describe_machine(torch.device("cpu"))
    packages = ("torchvision", "openvino", "ncnn")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    text = "\n".join(
        [
            f"# Engines {'with all of the processor' if arguments.full else 'with AVX2'}",
            "",
            f"VGG11 at {SIDE} pixels, medians of {arguments.rounds} rounds in turn, warm. Each cell gives images",
            "per second, and the ratio to torchvision's eager speed in the same round (minimum to maximum).",
            f"Largest differences from torchvision's logits, as a share of their spread: {'; '.join(errors)}.",
            *([] if arguments.full else ["All libraries were kept from using more than AVX2 and FMA."]),
            "",
            *write("## On idle processors", idle),
            *write("## Beside a process that computes without end on one of them", beside),
            "## Start and memory",
            "",
            "Each in a process of its own: seconds from the first import to the first prediction, and the peak in",
            "MB after one image and after eight, the mapped file of 531 MB included.",
            *([] if arguments.full else ["Here ncnn was not limited."]),
            "",
            "| | seconds | one image | eight |",
            "|---|---|---|---|",
            *starts,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, {versions}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    name = "engines_full.md" if arguments.full else "engines_avx2.md"
    Path(__file__).with_name(name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
