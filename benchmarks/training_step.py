"""One whole training step of VGG11 at 224 pixels, batch 16: vggkit's beside torchvision's eager fp32.

Forward, backward, clipping (ours alone), step. Each figure is a process of its own, peers and ours in turn, since
what vggkit asks of the C library's memory would help the peer too. With --accuracy the same network is trained in
fp32 and bf16 on real photos, over some seeds. Writes training_step.md beside itself. For a measurement of four
minutes: --runs 3 --steps 3 --seeds 0, which keeps the accuracies of the page that is there.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, SIDE = 16, 224
PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "imagenette"
KINDS = {
    "torchvision, eager fp32": ("torchvision", "fp32", "fc"),
    "torchvision, channels_last": ("torchvision", "channels_last", "fc"),
    "torchvision, channels_last, bf16 autocast, fused SGD": ("torchvision", "autocast", "fc"),
    "vggkit, fp32": ("vggkit", "fp32", "fc"),
    "vggkit, amp": ("vggkit", "amp", "fc"),
    "vggkit, bf16": ("vggkit", "bf16", "fc"),
    "vggkit, bf16, pool head": ("vggkit", "bf16", "pool"),
}


def measure(library: str, way: str, head: str, steps: int) -> dict:
    """Seconds of each step after the first, and the process's peak memory."""
    import torch

    from vggkit.hardware import find_peak_memory

    torch.manual_seed(0)
    images, classes = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 1000, (BATCH,))
    step = (
        _torchvision_step(way, images, classes)
        if library == "torchvision"
        else _vggkit_step(way, head, images, classes)
    )
    seconds = []
    for number in range(steps + 1):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "peak": find_peak_memory()}


def _torchvision_step(way, images, classes):
    import torch
    from torchvision import models

    network = models.vgg11()
    if way != "fp32":
        network = network.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=way == "autocast"
    )

    def step(number):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = torch.nn.functional.cross_entropy(network(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _vggkit_step(way, head, images, classes):
    import torch

    import vggkit as vk
    from vggkit.hardware import keep_freed_memory
    from vggkit.training.train_state import TrainState

    keep_freed_memory()
    recipe = vk.Recipe(precision=way, trainable="all", learning_rate=0.01, weight_decay=5e-4)
    train_state = TrainState(vk.VGG("vgg11", head=head), recipe, device=torch.device("cpu"))
    train_state.start_epoch(1)

    def step(number):
        train_state.compute(images, classes, draw=number).item()
        train_state.step(0.01, number=number)

    return step


def compare_steps(runs: int, steps: int) -> list[str]:
    found = {name: [] for name in KINDS}
    peaks = {}
    for number in range(runs):
        for name, kind in KINDS.items():
            command = [sys.executable, __file__, "--measure", *kind, "--steps", str(steps)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            found[name].append(statistics.median(told["seconds"]))
            peaks[name] = told["peak"]
            print(number, name, f"{BATCH / found[name][-1]:.2f}", file=sys.stderr)
    base = found["torchvision, eager fp32"]
    rows = []
    for name, seconds in found.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(base, seconds, strict=True))
        rows.append(
            f"| {name} | {BATCH / statistics.median(seconds):.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) | {peaks[name] / 1e9:.1f} |"
        )
    return rows


def compare_accuracy(seeds: int, epochs: int) -> list[str]:
    rows = []
    for precision in ("fp32", "bf16"):
        hits, shares, seconds = 0, [], []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable,
                    "-m",
                    "vggkit",
                    "train",
                    str(PHOTOS),
                    "--model",
                    "vgg11_bn",
                    "--image-size",
                    "64",
                ]
                command += [
                    "--epochs",
                    str(epochs),
                    "--precision",
                    precision,
                    "--seed",
                    str(seed),
                    "--json",
                    "--quiet",
                ]
                started = time.perf_counter()
                told = subprocess.run(
                    [*command, "--out", f"{folder}/run"], check=True, stdout=subprocess.PIPE, text=True
                ).stdout
                seconds.append(time.perf_counter() - started)
            found = json.loads(told)
            shares.append(found["top1"])
            hits += round(found["top1"] * found["n"])
            print(precision, seed, shares[-1], f"{seconds[-1]:.0f} s", file=sys.stderr)
        from vggkit.evaluation.evaluation import proportion_interval

        low, high = proportion_interval(hits, found["n"] * seeds)
        listed = ", ".join(f"{share:.3f}" for share in shares)
        rows.append(
            f"| {precision} | {statistics.mean(shares):.3f} ({low:.3f} to {high:.3f}) | {listed} | "
            f"{statistics.median(seconds):.0f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of each process, after one that warms up")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12, help="of the trainings that are compared")
    parser.add_argument("--keep", action="store_true", help="the steps of the table that is there")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, options.steps)))
        return

    import torch

    from vggkit.hardware import describe_machine

    table = Path(__file__).with_suffix(".md")
    if options.keep:
        lines = table.read_text(encoding="utf-8").split("\n")
        steps = [line for line in lines if line.startswith(("| torchvision", "| vggkit"))]
    else:
        steps = compare_steps(options.runs, options.steps)
    accuracy = compare_accuracy(options.seeds, options.epochs) if PHOTOS.is_dir() and options.seeds else []
    kept = []
    if not accuracy and table.is_file():  # with the sentence above it
        text = table.read_text(encoding="utf-8")
        start, end = text.find("Training runs in both precisions"), text.rfind("\n\n")
        kept = [text[start:end], ""] if 0 <= start < end else []
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# A training step compared with torchvision",
            "",
            f"VGG11, {SIDE} pixels, batch {BATCH}, 1000 classes, SGD with momentum: images per second, and",
            f"the ratio to torchvision's eager fp32 step, medians of {options.runs} processes of {options.steps}",
            "steps (minimum to maximum); peak memory of the process in GB.",
            "",
            "| | images/s | times eager fp32 | GB |",
            "|---|---|---|---|",
            *steps,
            "",
            *(
                [
                    "Training runs in both precisions, on real photos: vgg11_bn at 64 pixels from random weights",
                    "on imagenette, 2,000 photos for training and 300 held out by folder,",
                    f"{options.epochs} epochs, the best one selected by the held-out photos; top-1 with Wilson's",
                    "95 % interval over all seeds.",
                    "",
                    "| precision | top-1 | by seed | seconds |",
                    "|---|---|---|---|",
                    *accuracy,
                    "",
                ]
                if accuracy
                else kept
            ),
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    table.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
