"""Transfer learning on photos: random weights, the head alone, all layers at one rate, and layer-wise rates.

`vggkit train` in a process of its own for each data set, way and seed: the ants and bees of PyTorch's tutorial,
and 30 photos of each of ten ImageNet classes; VGG-19 to relu3_4 with Oxford's weights, and for random weights VGG11
with batch norm to pool4. Writes layer_rates.md beside itself; `--keep` stores the results so far, and continues
from them.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
PRETRAINED = ["--model", "vgg19", "--until", "relu3_4", "--head", "pool", "--weights", str(WEIGHTS)]
SCRATCH = "everything, from random weights"
WAYS = {
    SCRATCH: ["--model", "vgg11_bn", "--until", "pool4", "--head", "pool"],
    "head alone": [*PRETRAINED, "--trainable", "head"],
    "all layers, one rate": [*PRETRAINED, "--trainable", "all"],
    "all layers, layer-wise rates": [*PRETRAINED, "--trainable", "all", "--layer-decay", "0.8"],
}
EPOCHS = {SCRATCH: 15}
"""Of other ways: the option `--epochs`; the head alone has none."""


def make_folders(folder: Path, photos: int) -> Iterator[tuple[str, Path]]:
    """Each data set's name and folder; of imagenette some training photos of each class."""
    yield "ants and bees", SHARED / "hymenoptera"
    for split in ("train", "val"):
        for label in sorted((SHARED / "imagenette" / split).iterdir()):
            place = folder / split / label.name
            place.mkdir(parents=True)
            paths = sorted(label.iterdir())
            for path in paths[:photos] if split == "train" else paths:
                (place / path.name).symlink_to(path)
    yield "imagenette", folder


def learn(data: Path, way: str, seed: int, options: argparse.Namespace) -> dict:
    """What `vggkit train --json` prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vggkit", "train", str(data), *WAYS[way]]
        command += ["--image-size", str(options.image_size), "--epochs", str(EPOCHS.get(way, options.epochs))]
        command += ["--seed", str(seed), "--out", f"{folder}/run", "--json", "--quiet"]
        environment = {**os.environ, "VGGKIT_HOME": f"{folder}/home"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--photos", type=int, default=30, help="training photos of each class of imagenette")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="a JSON file of results")
    options = parser.parse_args()

    found = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, data in make_folders(Path(folder) / str(seed), options.photos):
                for way in WAYS:
                    key = f"{name}|{way}|{seed}"
                    if key not in found:
                        result = learn(data, way, seed, options)
                        found[key] = {"top1": result["top1"], "n": result["n"]}
                        print(key, found[key], file=sys.stderr, flush=True)
                        if options.keep:
                            options.keep.write_text(json.dumps(found, indent=1))
    Path(__file__).with_suffix(".md").write_text(describe(found, options), encoding="utf-8")


def describe(found: dict[str, dict], options: argparse.Namespace) -> str:
    """The page of these results."""
    import torch

    from vggkit.evaluation.evaluation import proportion_interval
    from vggkit.hardware import describe_machine

    names = list(dict.fromkeys(key.split("|")[0] for key in found))
    every = range(options.seeds)
    seeds = {
        name: [seed for seed in every if all(f"{name}|{way}|{seed}" in found for way in WAYS)] for name in names
    }
    rows = []
    for way in WAYS:
        cells = []
        for name in names:
            runs = [found[f"{name}|{way}|{seed}"] for seed in seeds[name]]
            hits, n = sum(round(run["top1"] * run["n"]) for run in runs), sum(run["n"] for run in runs)
            low, high = proportion_interval(hits, n)
            cells.append(f"{hits / n:.3f} ({low:.3f} to {high:.3f})")
        rows.append(f"| {way} | {' | '.join(cells)} |")
    counts = [f"{found[f'{name}|head alone|0']['n']} × {len(seeds[name])}" for name in names]
    machine = describe_machine(torch.device("cpu"))
    text = (
        f"Top-1 on held-out photos of {options.image_size} pixels. The ants and bees of PyTorch's tutorial "
        f"have 244 training photos; of imagenette, ten classes of ImageNet, {options.photos} photos of each "
        "are taken. The network is VGG-19 to relu3_4 with Oxford's ImageNet weights and a new head, which "
        f"is fitted first; then all layers learn for {options.epochs} epochs. With layer-wise rates "
        "(`--layer-decay 0.8`) each layer learns by that factor more slowly than the one above it. From "
        f"random weights it is VGG11 with batch norm to pool4, for {EPOCHS[SCRATCH]} epochs. "
        "The best epoch is selected by the held-out photos, which biases its accuracy "
        "upwards slightly; the head alone selects nothing. The fitted head counts as epoch 0, so the same "
        "figure in the rows below it means that no later epoch was better. Intervals are Wilson's, 95 %, of "
        "all seeds together, and too narrow in so far as the seeds share their photos. ImageNet's weights "
        "have seen the classes of imagenette, and perhaps these photos."
    )
    return "\n".join(
        [
            "# Transfer learning on photos: which layers learn, and how fast",
            "",
            *textwrap.wrap(text, 110),
            "",
            f"| trained | {' | '.join(names)} |",
            f"|---|{'---|' * len(names)}",
            *rows,
            f"| photos × seeds | {' | '.join(counts)} |",
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
