"""`vggkit train --trainable head` beside the torchvision script people copy: photos to a measured classifier.

The same photos, the same trunk (VGG-19 to relu3_4, Oxford's weights), the same split; whole processes, their
start included. The peer is the transfer-learning script as the tutorials have it: ImageFolder,
RandomResizedCrop and flip, a DataLoader with 2 workers, the frozen trunk in eager fp32, pooled features, a
linear layer by SGD at 0.001 with momentum 0.9, divided by 10 every 7 epochs, 25 epochs, validation after
each, the best epoch kept. It is given the right input convention, which such scripts have not. Python's compiled
modules are on disk, as after a first start. With fewer --epochs the peer's time for all 25 is that of its start and
25 times its median epoch, and the page says so. Writes frozen_trunk.md beside itself.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
PHOTOS = SHARED / "hymenoptera"
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
EPOCHS = 25
"""Of the tutorials' script."""
LAST_LAYER = 18  # of torchvision's features: relu3_4 is the 17th


def run_peer(epochs: int) -> None:
    """The torchvision script; prints one JSON line."""
    import torch
    from torch import nn
    from torchvision import datasets, models
    from torchvision.transforms import v2

    torch.manual_seed(0)
    mean = [123.68 / 255, 116.779 / 255, 103.939 / 255]
    normalise = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, [1 / 255] * 3)]
    views = {
        "train": v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *normalise]),
        "val": v2.Compose([v2.Resize(256), v2.CenterCrop(224), *normalise]),
    }
    loaders = {
        part: torch.utils.data.DataLoader(
            datasets.ImageFolder(str(PHOTOS / part), view), batch_size=16, shuffle=part == "train", num_workers=2
        )
        for part, view in views.items()
    }
    with torch.device("meta"):
        trunk = models.vgg19().features[:LAST_LAYER]
    state = torch.load(WEIGHTS, weights_only=True)
    state = {k.removeprefix("features."): v for k, v in state.items() if int(k.split(".")[1]) < LAST_LAYER}
    state["0.weight"] = state["0.weight"].flip(1)  # the file reads BGR
    trunk.load_state_dict(state, assign=True)
    trunk.requires_grad_(False).eval()
    head = nn.Linear(256, 2)
    network = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    best, seconds, seen = 0.0, [], 0
    for epoch in range(epochs):
        started = time.perf_counter()
        head.train()
        for images, classes in loaders["train"]:
            loss = nn.functional.cross_entropy(network(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        head.eval()
        right = seen = 0
        with torch.no_grad():
            for images, classes in loaders["val"]:
                right += int((network(images).argmax(1) == classes).sum())
                seen += len(classes)
        best = max(best, right / seen)
        seconds.append(time.perf_counter() - started)
        print(f"epoch {epoch + 1}: {right / seen:.4f}, {seconds[-1]:.1f} s", file=sys.stderr)
    print(json.dumps({"top1": best, "n": seen, "epoch_seconds": seconds}))


def set_up(cache: str) -> dict[str, str]:
    """The environment of all processes, with a folder of compiled modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": cache}


def time_peer(epochs: int, environment: dict[str, str]) -> dict:
    started = time.perf_counter()
    printed = subprocess.run(
        [sys.executable, __file__, "--peer", str(epochs)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ).stdout
    found = json.loads(printed)
    seconds = time.perf_counter() - started
    start = seconds - sum(found["epoch_seconds"])
    if epochs < EPOCHS:
        seconds = start + EPOCHS * statistics.median(found["epoch_seconds"])
    return {"seconds": seconds, **found}


def time_ours(home: str, environment: dict[str, str], *options: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vggkit", "train", str(PHOTOS), "--model", "vgg19", "--until", "relu3_4"]
        command += [
            "--head",
            "pool",
            "--weights",
            str(WEIGHTS),
            "--trainable",
            "head",
            "--json",
            "--quiet",
            *options,
        ]
        started = time.perf_counter()
        found = subprocess.run(
            [*command, "--out", f"{folder}/run"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "VGGKIT_HOME": home},
        )
        return {"seconds": time.perf_counter() - started, **json.loads(found.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the peer that are measured")
    parser.add_argument("--runs", type=int, default=5, help="of ours, with an empty cache and with a filled one")
    options = parser.parse_args()
    if options.peer:
        return run_peer(options.peer)

    import torch

    from vggkit.hardware import describe_machine

    empty, filled = [], []
    with tempfile.TemporaryDirectory() as cache:
        environment = set_up(cache)
        with tempfile.TemporaryDirectory() as home:
            time_ours(home, environment)  # compiles the modules to bytecode
        for number in range(options.runs):
            if number == options.runs // 2:
                peer = time_peer(options.epochs, environment)  # in the middle of ours
            with tempfile.TemporaryDirectory() as home:
                empty.append(time_ours(home, environment))
                filled.append(time_ours(home, environment))
                print(number, empty[-1], filled[-1], file=sys.stderr)
    rows = []
    for name, runs in (("empty", empty), ("filled", filled)):
        seconds = sorted(run["seconds"] for run in runs)
        middle = statistics.median(seconds)
        low, high = runs[0]["top1_interval"]
        rows.append(
            f"| vggkit, cache {name} | {middle:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f}) | "
            f"{len(runs)} | {runs[0]['top1']:.3f} ({low:.3f} to {high:.3f}) | **{peer['seconds'] / middle:.0f}** |"
        )
    epochs = sorted(peer["epoch_seconds"])
    measured = f", of which {len(epochs)} measured" if len(epochs) < EPOCHS else ""
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Training a classifier on a frozen trunk",
            "",
            "Times of whole processes, from the command to an evaluated classifier: the photos of hymenoptera",
            f"(244 for training, {peer['n']} held out, by folder), VGG-19 to relu3_4 with Oxford's ImageNet",
            "weights. The comparison is the torchvision script of common tutorials, see frozen_trunk.py. It",
            "selects its best epoch by the same held-out photos, which biases its accuracy upwards, while vggkit",
            "selects its regularisation on the training photos alone. Seconds are medians (minimum to maximum);",
            "accuracy has a 95 % bootstrap interval.",
            "",
            "| | seconds | n | top-1 | times as fast |",
            "|---|---|---|---|---|",
            f"| torchvision script, {EPOCHS} epochs{measured} | {peer['seconds']:.0f}, an epoch "
            f"{statistics.median(epochs):.1f} ({epochs[0]:.1f} to {epochs[-1]:.1f}) | 1 of {EPOCHS} epochs | "
            f"{peer['top1']:.3f} | 1 |",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
            f"Python {platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return None


if __name__ == "__main__":
    main()
