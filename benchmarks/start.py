"""CPU seconds from the start of a command to its end, or to its first result: what each verb imports decides it.

Each command runs in a new process, several times in turn; the table gives medians of user and system time. A shared
machine lengthens wall-clock time, and hardly these. Writes start.md beside itself.
"""

import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vggkit as vk
from vggkit.hardware import describe_machine

LINES = {
    "help": "--help",
    "help of a verb": "predict --help",
    "an unknown verb": "perdict",
    "a model that is not there": "predict missing.safetensors photo.jpg",
    "the same, evaluate": "evaluate missing.safetensors digits",
    "data that is not there": "evaluate small.safetensors missing",
    "the same, train": "train missing",
    "the same, check": "check missing",
    "models": "models",
    "summary": "summary vgg16",
    "code": "code vgg16",
    "identify, .safetensors": "identify small.safetensors",
    "identify, .pth": "identify small.pth",
    "predict, one image": "predict small.safetensors photo.jpg --quiet",
}


def measure(line: str, folder: Path) -> float:
    """CPU seconds of one process; for errors, too."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "vggkit", *line.split()],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classifier = vk.Classifier.create("vgg11", labels=["a", "b"], until="relu3_2", seed=0)
        classifier.save(folder / "small.safetensors")
        torch.save(classifier.network.state_dict(), folder / "small.pth")
        noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "photo.jpg")
        for line in LINES.values():  # compiles the modules to bytecode
            measure(line, folder)
        for _ in range(rounds):
            for command, line in LINES.items():
                seconds[command].append(measure(line, folder))
    machine = describe_machine(torch.device("cpu"))
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "openvino", "tyro"))
    text = "\n".join(
        [
            "# CPU seconds of each command's start",
            "",
            f"Medians of {rounds} processes run in turn (minimum to maximum), user and system time; one thread.",
            "",
            "| command | line | CPU seconds |",
            "|---|---|---|",
            *(
                f"| {command} | `vggkit {line}` | {statistics.median(seconds[command]):.2f} "
                f"({min(seconds[command]):.2f} to {max(seconds[command]):.2f}) |"
                for command, line in LINES.items()
            ),
            "",
            f"{machine['device']}; {machine['system']}; {packages}, Python {platform.python_version()}; "
            f"{datetime.date.today():%Y-%m-%d}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
