"""Our VGG beside torchvision's, the same weights, eager: the checks and the skipped pooling cost nothing.

Both run in turn in one process; the table gives medians and the median of the ratios pair by pair.
Writes forward.md beside itself.
"""

import argparse
import datetime
import platform
import statistics
import time
from pathlib import Path

import torch
import torchvision

import vggkit as vk
from vggkit.hardware import describe_machine


def time_once(network: torch.nn.Module, images: torch.Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        network(images)
    return time.perf_counter() - started


def compare(model: str, batch: int, pairs: int) -> str:
    ours = vk.VGG(model).eval()
    with torch.device("meta"):
        theirs = getattr(torchvision.models, model)().eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    images = torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    times = [(time_once(theirs, images), time_once(ours, images)) for _ in range(pairs)]
    speeds = [batch / statistics.median(column) for column in zip(*times, strict=True)]
    ratios = sorted(their / our for their, our in times)
    ratio = statistics.median(ratios)
    return (
        f"| {model} | {batch} | {speeds[0]:.1f} | {speeds[1]:.1f} | "
        f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {pairs} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    rows = [compare(model, batch, pairs) for model in ("vgg11", "vgg16_bn") for batch in (1, 8)]
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Forward pass beside torchvision",
            "",
            "Eager, fp32, 224×224, the same weights, logits equal bit for bit; images per second, and the ratio to",
            "torchvision's speed, medians of pairs run in turn (minimum to maximum).",
            "",
            "| model | batch | torchvision | vggkit | ratio | n |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
            f"torchvision {torchvision.__version__}, Python {platform.python_version()}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
