"""Training VGG11 at 224 pixels on two processes: bytes and seconds a step of each way to exchange gradients.

Starts two processes with torchrun on this machine, and one alone. A step is forward, backward, exchange and SGD
with momentum in float32; bytes are those of the tensors that a process hands to collectives, counted in one step.
With --model only the figures on paper are computed, which need no measurement: they are written into
docs/scaling.md.
Writes scaling.md beside itself.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vggkit.models.configuration import find_configuration

SIDE = 224
WAYS = {
    "exact, data parallel": {},
    "bf16": {"gradient_compression": "bf16"},
    "powersgd, rank 4": {"gradient_compression": "powersgd"},
    "exact, split head": {"split_head": True},
    "bf16, split head": {"gradient_compression": "bf16", "split_head": True},
}
VGG11 = find_configuration("vgg11")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- computed by benchmarks/scaling.py --model -->", "<!-- end of the computed part -->"


# Bytes, on paper.


def count_bytes(way: str, *, processes: int, images: int, size: int = 4) -> int:
    """Bytes of the tensors that a process hands to collectives in a step.

    Args:
        way: A key of WAYS.
        processes: Their number.
        images: In each process.
        size: Bytes of a weight's gradient and of an activation: 4 in float32, 2 with precision bf16.
    """
    shapes = VGG11.state_shapes()
    options = WAYS[way]
    exchanged = dict(shapes)
    activations = 0
    if options.get("split_head"):
        last = max(VGG11.fully_connected, key=lambda layer: layer.index)
        for key in shapes:
            if key.startswith("classifier.") and key != f"classifier.{last.index}.bias":
                del exchanged[key]
        first, *others = sorted(VGG11.fully_connected, key=lambda layer: layer.index)
        # What the first layer reads, and what the others give: the first gives each process its part of what the
        # next one reads. Each is gathered once and summed once, forward and backward, for all processes' images.
        widths = [first.in_features, *(layer.out_features for layer in others)]
        activations = 2 * size * processes * images * sum(widths)
    match options.get("gradient_compression"):
        case "bf16":
            gradients = 2 * sum(map(math.prod, exchanged.values()))
        case "powersgd":
            gradients = size * sum(map(_count_thin, exchanged.values()))
        case _:
            gradients = size * sum(map(math.prod, exchanged.values()))
    return gradients + activations


def _count_thin(shape: tuple[int, ...], rank: int = 4) -> int:
    """Numbers that PowerSGD sends of a gradient: two thin matrices where these are less than half of it."""
    whole, rows = math.prod(shape), shape[0]
    thin = (rows + whole // rows) * min(rank, rows, whole // rows)
    return thin if len(shape) > 1 and 2 * thin < whole else whole


def count_sent(way: str, *, processes: int, images: int, size: int = 4) -> float:
    """Bytes that a process sends in a step, in a ring: sums of gradients go around twice, activations once."""
    share = (processes - 1) / processes
    whole = count_bytes(way, processes=processes, images=images, size=size)
    gradients = count_bytes(way, processes=processes, images=0, size=size)
    return share * (2 * gradients + (whole - gradients))


# Time, on paper.

RATE = 8_000
"""Images a second of one GPU, VGG11 training in bf16: an assumption, the floor that is asked of an H100."""
IMAGES = 64
"""Images a GPU and step."""
SIZES, LINKS = (8, 64, 512), (100, 400)


def predict(way: str, *, processes: int, gigabits: float, split: int | None = None) -> tuple[float, float, float]:
    """Bytes a GPU sends in a step, and the share of `RATE` without and with complete overlap.

    Args:
        way: A key of WAYS.
        processes: GPUs.
        gigabits: A second that each GPU sends.
        split: GPUs that divide a head, where not all do: their groups exchange the gradients of the parts.
    """
    sent = count_sent(way, processes=split or processes, images=IMAGES, size=2)
    if split is not None:
        groups = processes // split
        convolutions = count_bytes(way, processes=1, images=0, size=2)
        head = count_bytes("exact, data parallel", processes=1, images=0, size=2) - convolutions
        activations = count_sent(way, processes=split, images=IMAGES, size=2) - count_sent(
            way, processes=split, images=0, size=2
        )
        sent = 2 * (processes - 1) / processes * convolutions + activations
        sent += 2 * (groups - 1) / groups * head / split
    seconds, step = sent / (gigabits * 1e9 / 8), IMAGES / RATE
    return sent, step / (step + seconds), step / max(step, seconds)


def describe_model() -> str:
    """The tables of the page."""
    lines = [
        "Bytes of the tensors that a process hands to collectives in a step in float32, two processes of 2 images:",
        "",
        "| way | MB | times fewer |",
        "|---|---|---|",
    ]
    whole = count_bytes("exact, data parallel", processes=2, images=2)
    for way in WAYS:
        found = count_bytes(way, processes=2, images=2)
        lines.append(f"| {way} | {found / 1e6:.1f} | {whole / found:.1f} |")
    lines += [
        "",
        f"Predicted for {IMAGES} images a GPU and step in precision bf16, {RATE:,} images/s a GPU without any",
        "exchange: MB that each GPU sends in a step, and the share of that speed that remains, without and with",
        "complete overlap of exchange and computation.",
        "",
        "| GPUs | Gb/s | way | MB sent | no overlap | full overlap |",
        "|---|---|---|---|---|---|",
    ]
    for processes in SIZES:
        ways = [(way, way, None) for way in ("exact, data parallel", "powersgd, rank 4", "exact, split head")]
        if processes > SIZES[0]:
            ways.append(("exact, split head within 8 GPUs", "exact, split head", SIZES[0]))
        for gigabits in LINKS:
            for name, way, split in ways:
                sent, without, overlapped = predict(way, processes=processes, gigabits=gigabits, split=split)
                lines.append(
                    f"| {processes} | {gigabits} | {name} | {sent / 1e6:,.0f} | {without:.0%} | {overlapped:.0%} |"
                )
    return "\n".join(lines)


def write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{describe_model()}\n\n{END}{after}", encoding="utf-8")


# Measured.


def work(images: int, steps: int) -> None:
    """One of the processes: bytes and seconds of each way, which the first one prints."""
    import torch

    from vggkit.models.vgg import VGG
    from vggkit.training.distributed import gradients
    from vggkit.training.distributed.joining import join_processes
    from vggkit.training.distributed.traffic import count_traffic
    from vggkit.training.recipe import Recipe
    from vggkit.training.train_state import TrainState

    gradients.EXACT_STEPS = 2  # PowerSGD begins with the third step
    found = {}
    with join_processes("cpu") as group:
        for way, options in WAYS.items() if group.size > 1 else [("one process", {})]:
            torch.manual_seed(0)
            recipe = Recipe(
                trainable="all",
                precision="fp32",
                learning_rate=0.01,
                weight_decay=5e-4,
                batch_size=images * group.size,
                **options,
            )
            state = TrainState(VGG(VGG11), recipe, device=torch.device("cpu"), group=group)
            state.start_epoch(1)
            batch, classes = torch.randn(images, 3, SIDE, SIDE), torch.randint(1000, (images,))
            seconds = []
            for number in range(steps + 3):
                with count_traffic() as traffic:
                    started = time.perf_counter()
                    state.compute(batch, classes, draw=number)
                    state.step(0.001, number=number)
                    seconds.append(time.perf_counter() - started)
            found[way] = {"seconds": seconds[3:], "bytes": traffic.bytes}
            if group.size > 1:
                expected = count_bytes(way, processes=group.size, images=images)
                assert abs(traffic.bytes - expected) < 200, (way, traffic.bytes_by_operation, expected)
            del state
        if group.is_first:
            print(json.dumps(found))


def start(processes: int, images: int, steps: int, threads: int) -> dict:
    command = [sys.executable, __file__, "--work", "--images", str(images), "--steps", str(steps)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, *command[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2, help="in each process")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--model", action="store_true", help="only the figures on paper, into docs/scaling.md")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.images, given.steps)
        return
    write_page()
    if given.model:
        return
    import torch

    from vggkit.hardware import name_processor

    both = start(2, given.images, given.steps, threads=1)
    alone = {
        f"one process, {threads} thread{'s' if threads > 1 else ''}": start(
            1, given.images * count, given.steps, threads
        )["one process"]
        for threads, count in ((1, 1), (2, 2))
    }
    lines = [
        "# Training on two processes",
        "",
        f"VGG11, {SIDE} pixels, {given.images} images a process and step, SGD with momentum, float32, gloo on",
        f"loopback: medians of {given.steps} steps (minimum to maximum). Bytes are those handed to",
        "collectives in a step, which this script asserts to be what docs/scaling.md computes with. One process of",
        f"2 threads has {2 * given.images} images a step.",
        "",
        "| way | MB a step | times fewer | seconds a step | images/s |",
        "|---|---|---|---|---|",
    ]
    whole = both["exact, data parallel"]["bytes"]
    for name, result in {**alone, **both}.items():
        seconds = result["seconds"]
        middle = statistics.median(seconds)
        count = given.images * (1 if name == "one process, 1 thread" else 2)
        fewer = f"{whole / result['bytes']:.1f}" if result["bytes"] else ""
        lines.append(
            f"| {name} | {result['bytes'] / 1e6:.1f} | {fewer} | {middle:.2f} ({min(seconds):.2f} to "
            f"{max(seconds):.2f}) | {count / middle:.2f} |"
        )
    lines += [
        "",
        "Two processes share two processors, with their memory and caches, and loopback costs processor time in",
        "place of a wire's: the seconds show what an exchange costs in computation, not what a network would",
        "take, and say nothing of GPUs. What carries over to other machines are the bytes.",
        "",
        f"{name_processor()}; {platform.system()} {platform.machine()}; torch {torch.__version__}, Python "
        f"{platform.python_version()}; {datetime.date.today().isoformat()}.",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
