"""CIFAR-10's training images from scratch on two cores, by the preset small-images.

Of the 50,000 images, in the order of the files, a permutation (torch's generator, seed 0) sets 5,000 apart
that were the measure when an earlier recipe was chosen, and the next 5,000 for the reported accuracy alone. The
network learns from 44,000 and each epoch is evaluated on 1,000; the weights are those of the best epoch by these.

`python benchmarks/cifar10.py --seed 0` trains one seed and appends its result to a file of JSON lines; `--table`
prints the table of cifar10.md from the lines of all seeds. Intervals are Wilson's, 95 %.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import vggkit as vk
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import describe_machine, keep_freed_memory
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.training.presets import find_preset

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
RESULTS = Path(__file__).resolve().parents[1] / "build" / "cifar10.jsonl"
NETWORKS: dict[str, dict[str, Any]] = {
    "chain": {},  # the preset's own
    # Its first convolution is its only one before a pool, and is learnt: fixed whitening loses 3 points there.
    "vgg11_bn": {"model": "vgg11_bn", "head": "pool", "whitening": False},
}
VIEWS = {"one": "each image once", "mirror": "with its mirror image", "mirror-shift": "mirrored and moved, 6 views"}


def divide(opened: ImageDataset) -> ImageDataset:
    """5,000 for the figure that is reported, 1,000 for the epochs, 44,000 to learn from."""
    everything = opened.split("train", "all")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()

    def take(start: int, stop: int) -> list[ImageSample]:
        return [everything[place] for place in order[start:stop]]

    # The first 5,000 were the measure when an earlier recipe was chosen: they are learnt from now.
    return opened.keep(
        {"train": take(0, 5000) + take(11_000, 50_000), "val": take(10_000, 11_000), "test": take(5000, 10_000)}
    )


def train(network: str, seed: int, *, epochs: int | None, precision: str, folder: Path) -> dict[str, Any]:
    """Train one seed, evaluate it on the 5,000 images, and leave its Classifier in the folder."""
    images = divide(vk.open_dataset(str(DATA)))
    options = {} if epochs is None else {"epochs": epochs}
    started, used = time.perf_counter(), time.process_time()
    if (folder / "config.yaml").is_file():
        run = vk.train(images, resume=folder)
    else:
        run = vk.train(
            images,
            preset="small-images",
            **NETWORKS[network],
            **options,
            precision=precision,
            seed=seed,
            out=folder,
            despite_findings=True,
        )
    wall, processor = time.perf_counter() - started, time.process_time() - used
    right = {}
    for views in VIEWS:
        found = run.classifier.evaluate(images, split="test", views=views)
        right[views] = round(found.top1 * found.n)
    machine = describe_machine(torch.device("cpu"))
    return {
        "network": network,
        "parameters": run.classifier.configuration.parameters,
        "seed": seed,
        "epochs": len(run.history),
        "precision": precision,
        "right": right,
        "n": len(images.split("test")),
        "training_seconds": sum(epoch.seconds for epoch in run.history),
        "script_seconds": wall,
        "processor_seconds": processor,
        "val": [round(epoch.val_top1, 4) for epoch in run.history],
        "machine": f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
        f"Python {platform.python_version()}",
        "date": str(datetime.datetime.now(datetime.UTC).date()),
    }


def measure_time(network: str, *, precision: str, images: int) -> dict[str, Any]:
    """Seconds of an epoch of 44,000 images and their validation, by the second epoch of a training on fewer."""
    divided = divide(vk.open_dataset(str(DATA)))
    val = divided.split("val")[: round(1000 * images / 44_000)]
    fewer = divided.keep({"train": list(divided.split("train")[:images]), "val": list(val)})
    with tempfile.TemporaryDirectory() as folder:
        run = vk.train(
            fewer,
            preset="small-images",
            **NETWORKS[network],
            epochs=2,
            precision=precision,
            out=Path(folder) / "run",
            despite_findings=True,
        )
    seconds = run.history[-1].seconds * 44_000 / images
    epochs = find_preset("small-images").recipe.epochs
    return {
        "network": network,
        "precision": precision,
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "images": images,
        "epoch_seconds": round(seconds, 1),
        "images_per_second": round(44_000 / seconds),
        "minutes": round(epochs * seconds / 60, 1),
    }


def draw_table(lines: list[dict[str, Any]]) -> list[str]:
    """A row for each seed of a network and a number of epochs, and one for all of these seeds together."""
    rows = [f"| network | epochs | seed | {' | '.join(VIEWS.values())} |", f"|---|---|---|{'---|' * len(VIEWS)}"]
    for network, epochs in dict.fromkeys((line["network"], line["epochs"]) for line in lines):
        own = [line for line in lines if (line["network"], line["epochs"]) == (network, epochs)]
        for line in own:
            cells = [show(line["right"][views], line["n"]) for views in VIEWS]
            rows.append(f"| {network} | {epochs} | {line['seed']} | {' | '.join(cells)} |")
        if len(own) > 1:
            means = [f"{mean(line['right'][views] / line['n'] for line in own):.4f}" for views in VIEWS]
            rows.append(f"| {network} | {epochs} | mean of {len(own)} | {' | '.join(means)} |")
    return rows


def show(right: int, n: int) -> str:
    """An accuracy with its interval."""
    low, high = proportion_interval(right, n)
    return f"{right / n:.4f} ({low:.4f} to {high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(NETWORKS), default="chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="in place of the preset's")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--folder", type=Path, help="the run's folder, new, or of a run that was stopped")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines, one a seed")
    parser.add_argument("--time-images", type=int, help="measure the time of an epoch by so many images, and stop")
    parser.add_argument("--table", action="store_true", help="write cifar10.md's table from the results, and stop")
    options = parser.parse_args()
    if options.table:
        lines = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        print("\n".join(draw_table(lines)))
        return
    if options.time_images:
        keep_freed_memory()
        print(json.dumps(measure_time(options.network, precision=options.precision, images=options.time_images)))
        return
    keep_freed_memory()
    folder = options.folder or Path("runs") / f"cifar10-{options.network}-{options.seed}"
    line = train(options.network, options.seed, epochs=options.epochs, precision=options.precision, folder=folder)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    print("\n".join(draw_table([line])))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
