"""LPIPS as a loss beside the package `lpips`: a step forward and backward to the image, its time and its memory.

VGG16 with the same random weights in both, and the package's own linear weights; 4 images of 256×256 pixels, on 2
threads. The variants take turns in one process for the times, whose median is taken; for its memory each has a
process of its own. Writes perceptual_loss.md beside itself.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import lpips
import torch
from torch import Tensor, nn
from torchvision.models import vgg

import vggkit as vk
from vggkit.hardware import describe_machine

LINEAR = Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth"
OPTIONS = {"fp32": {}, "fp32, winograd": {"convolution": "winograd"}, "bf16": {"precision": "bf16"}}
CACHED = ", cached reference"
VARIANTS = ["lpips", *OPTIONS, *(f"{name}{CACHED}" for name in OPTIONS)]
PROCESSES = 3
"""In which memory is measured, one after the other: by chance the allocator keeps up to a tenth more."""

Loss = Callable[[Tensor], Tensor]


def make_peer(trunk: vk.VGG) -> nn.Module:
    """The package's loss, on torchvision's own layers with the trunk's weights."""
    holder = nn.Module()
    holder.features = vgg.make_layers(vgg.cfgs["D"])
    holder.features.load_state_dict(trunk.features.state_dict(), strict=False)
    lpips.pretrained_networks.tv.vgg16 = lambda **_: holder
    peer = lpips.LPIPS(net="vgg", pretrained=False, verbose=False).eval()
    peer.load_state_dict(torch.load(LINEAR, map_location="cpu", weights_only=True), strict=False)
    return peer


def make_images(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] that are smooth with some noise, and others near them."""
    torch.manual_seed(1)
    coarse = nn.functional.interpolate(torch.rand(count, 3, 16, 16), (side, side), mode="bicubic")
    target = (coarse * 2 - 1 + 0.1 * torch.randn(count, 3, side, side)).clamp(-1, 1)
    return (target + 0.1 * torch.randn_like(target)).clamp(-1, 1), target


def make_loss(name: str, trunk: vk.VGG, target: Tensor) -> Loss:
    if name == "lpips":
        peer = make_peer(trunk)
        return lambda images: peer(images, target).mean()
    options = OPTIONS[name.removesuffix(CACHED)]
    loss = vk.PerceptualLoss("lpips", trunk=trunk, calibration=LINEAR, **options)
    reference = loss.reference(target) if name.endswith(CACHED) else target
    return lambda images: loss(images, reference)


def step(loss: Loss, images: Tensor) -> tuple[float, Tensor, Tensor]:
    """Seconds, the loss, and its gradient."""
    given = images.clone().requires_grad_(True)
    started = time.perf_counter()
    value = loss(given)
    value.backward()
    return time.perf_counter() - started, value.detach(), given.grad


def read_memory(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def measure_memory(name: str, count: int, side: int) -> int:
    """Bytes that the loss and two steps of it take at their peak, in this process."""
    trunk = make_trunk()
    images, target = make_images(count, side)
    before = read_memory("VmRSS")
    loss = make_loss(name, trunk, target)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    for _ in range(2):
        step(loss, images)
    return read_memory("VmHWM") - before


def make_trunk() -> vk.VGG:
    torch.manual_seed(0)
    return vk.VGG("vgg16", until="relu5_3", head="pool", num_classes=1).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--memory", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.memory:
        print(json.dumps(measure_memory(options.memory, options.images, options.side)))
        return
    sizes = [f"--images={options.images}", f"--side={options.side}"]
    memory = {
        name: statistics.median(
            json.loads(subprocess.check_output([sys.executable, __file__, *sizes, "--memory", name], text=True))
            for _ in range(PROCESSES)
        )
        for name in VARIANTS
    }
    trunk = make_trunk()
    images, target = make_images(options.images, options.side)
    losses = {name: make_loss(name, trunk, target) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    found = {}
    for number in range(options.runs + 1):
        for name, loss in losses.items():
            taken, *found[name] = step(loss, images)
            if number:  # the first is for warming up
                seconds[name].append(taken)
    value, gradient = found["lpips"]
    rows = []
    for name in VARIANTS:
        ratios = sorted(one / other for one, other in zip(seconds["lpips"], seconds[name], strict=True))
        differing = abs(float(found[name][0] - value)) / float(value)
        away = float((found[name][1] - gradient).norm() / gradient.norm())
        length = abs(float(found[name][1].norm() / gradient.norm()) - 1)
        cells = [
            name if name == "lpips" else f"vggkit, {name}",
            f"{statistics.median(seconds[name]):.2f}",
            f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            f"{memory[name] / 1e6:.0f}",
            f"{memory[name] / memory['lpips']:.2f}",
            *(f"{each:.0e}" for each in (differing, away, length)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# LPIPS as a loss",
            "",
            f"VGG16, {options.images} images of {options.side}×{options.side} pixels, forward and backward to the",
            f"images, threads: {torch.get_num_threads()}; variants in turn, medians of {options.runs}. Times as",
            "fast: the median of the ratios of each turn (least to most). Memory: the peak of the loss and two",
            f"steps, above what was there before, the median of {PROCESSES} processes. The last columns: how far",
            "distance and gradient are from those of lpips, relative to them, and by how much the gradient's",
            "length differs. Random weights and noisy images have many values in pools that are nearly equal,",
            "and are hard on the gradient.",
            "",
            "| | seconds | times as fast | MB | of lpips | distance | gradient | its length |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, lpips {version('lpips')}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
