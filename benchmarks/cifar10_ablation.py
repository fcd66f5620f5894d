"""What each ingredient of the preset small-images is worth on CIFAR-10: the recipe without it, in short trainings.

The network of the preset learns from 20,000 of the images that cifar10.py learns from, in 120 steps of 500 images,
and is measured on 4,000 others of these, never on the 5,000 test images. Every variant differs from the recipe in
one thing. Each line of the results is one training; `--table` prints the table of cifar10_ablation.md from them.

    python benchmarks/cifar10_ablation.py --variant "the recipe" --seed 0
    python benchmarks/cifar10_ablation.py --table
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from cifar10 import DATA, divide

import vggkit as vk
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import keep_freed_memory

RESULTS = Path(__file__).resolve().parents[1] / "build" / "cifar10_ablation.jsonl"
EPOCHS = 3
SMALLER = {"batch_size": 500, "learning_rate": 0.018}
"""Half of the preset's images a step, so that there are 120 steps; the rate goes with the square root."""
RECIPE = "the recipe"
VARIANTS: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "first convolution learnt, not whitening": {"whitening": False},
    "random start in place of Dirac's": {"initialization": "kaiming"},
    "SGD in place of Muon": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "weight_decay": 5e-4},
    "batch norm's momentum 0.1": {"batch_norm_momentum": 0.1},
    "one cycle in place of a straight line": {"schedule": "one-cycle", "warmup_epochs": 1.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "mirrored at random, not in turn": {"mirror": "random"},
    "not mirrored": {"mirror": "none"},
    "not shifted": {"augmentation": "none"},
    "also: a learnt convolution before the first pool": {
        "model": "vgg11_bn",
        "blocks": "32,64/64,128/256,256/256,256",
        "head": "pool",
    },
    "also: biases learn 4 times as fast": {"bias_rate_factor": 4.0},
    "also: an average of the weights (EMA)": {"ema_decay": 0.95},
}


def divide_further(images: vk.ImageDataset) -> vk.ImageDataset:
    """20,000 to learn from, 1,000 for the epochs and 4,000 to measure on."""
    divided = divide(images)
    train = divided.split("train")
    return divided.keep(
        {"train": list(train[:20_000]), "val": list(divided.split("val")), "test": list(train[-4_000:])}
    )


def train(variant: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training, measured with each kind of views."""
    images = divide_further(vk.open_dataset(str(DATA)))
    with tempfile.TemporaryDirectory() as folder:
        run = vk.train(
            images,
            preset="small-images",
            **(SMALLER | VARIANTS[variant]),
            epochs=epochs,
            seed=seed,
            out=Path(folder) / "run",
            despite_findings=True,
        )
    averaged = run.classifier.evaluate(images, split="test", views="mirror-shift")
    right = {
        views: round(found.top1 * found.n) for views, found in (("one", run.evaluation), ("mirror-shift", averaged))
    }
    return {"variant": variant, "seed": seed, "epochs": epochs, "n": len(images.split("test")), "right": right}


def draw_table(lines: list[dict[str, Any]]) -> list[str]:
    """A row for each variant, means over its seeds; the interval is that of all its images together."""
    rows = ["| variant | one view | 6 views | difference | seeds |", "|---|---|---|---|---|"]
    usual = None
    for variant in VARIANTS:
        own = [line for line in lines if line["variant"] == variant]
        if not own:
            continue
        n = sum(line["n"] for line in own)
        counts = {views: sum(line["right"][views] for line in own) for views in ("one", "mirror-shift")}
        figure = mean(line["right"]["mirror-shift"] / line["n"] for line in own)
        usual = figure if usual is None else usual
        low, high = proportion_interval(counts["mirror-shift"], n)
        rows.append(
            f"| {variant} | {counts['one'] / n:.4f} | {figure:.4f} ({low:.4f} to {high:.4f}) "
            f"| {'' if variant == RECIPE else f'{100 * (figure - usual):+.1f}'} | {len(own)} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=list(VARIANTS), default=RECIPE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one a training")
    parser.add_argument("--table", action="store_true", help="print the table of the results, and stop")
    options = parser.parse_args()
    if options.table:
        lines = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        print("\n".join(draw_table(lines)))
        return
    keep_freed_memory()
    line = train(options.variant, options.seed, options.epochs)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
