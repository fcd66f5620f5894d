"""VGG11 with batch norm from scratch on CIFAR-10's training images, as far as half an hour on two cores takes it.

Of the 50,000 images, in the order of the files, a permutation (torch's generator, seed 0) sets 5,000 apart
for the choice of the recipe, in short runs, and the next 5,000 for the reported accuracy alone. The network trains
on the other 45,000 except for 1,000 that each epoch is evaluated on; the weights are those of the best epoch by
these. Writes cifar10.md beside itself.
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import describe_machine
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import choose_preprocessing

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
RECIPE = vk.Recipe(
    optimizer="muon",
    learning_rate=0.004,
    weight_decay=0.05,
    batch_size=512,
    schedule="one-cycle",
    clip_norm=0.0,
    label_smoothing=0.1,
    augmentation="shift",
    mirror="alternating",
)


def divide(opened: ImageDataset) -> ImageDataset:
    """5,000 for the figure that is reported, 1,000 for the epochs, 44,000 to learn from."""
    everything = opened.split("train", "all")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()

    def take(start: int, stop: int) -> list[ImageSample]:
        return [everything[place] for place in order[start:stop]]

    # The first 5,000 were the measure when the recipe was chosen: they are learnt from now.
    return opened.keep(
        {"train": take(0, 5000) + take(11_000, 50_000), "val": take(10_000, 11_000), "test": take(5000, 10_000)}
    )


def measure_with_mirrors(classifier: Classifier, images: tuple[ImageSample, ...]) -> int:
    """How many are right when each image and its mirror image are asked together."""
    engine = PyTorchEngine(classifier.network, torch.device("cpu"))
    numbers = {label: number for number, label in enumerate(classifier.labels)}
    right = 0
    for start in range(0, len(images), 500):
        some = images[start : start + 500]
        inputs = np.stack([classifier.preprocessing(image.decode()) for image in some])
        chances = [torch.from_numpy(engine.run(seen)).softmax(1) for seen in (inputs, inputs[..., ::-1].copy())]
        predictions = (chances[0] + chances[1]).argmax(1).tolist()
        right += sum(numbers[str(p.label)] == answer for p, answer in zip(some, predictions, strict=True))
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=19)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = replace(RECIPE, epochs=options.epochs, seed=options.seed)
    started, used = time.perf_counter(), time.process_time()
    images = divide(vk.open_dataset(str(DATA)))
    fed = choose_preprocessing(32)
    classifier = Classifier.create(
        "vgg11_bn",
        labels=images.labels,
        head="pool",
        preprocessing=fed,
        initialization="dirac",
        seed=options.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = vk.train(images, model=classifier, recipe=recipe, out=Path(folder) / "run", despite_findings=True)
        learning = sum(epoch.seconds for epoch in run.history)
    wall, processor = time.perf_counter() - started, time.process_time() - used
    test = images.split("test")
    hits = round(run.evaluation.top1 * run.evaluation.n)
    mirrored = measure_with_mirrors(run.classifier, test)
    rows = []
    for name, right in (("each image once", hits), ("with its mirror image", mirrored)):
        low, high = proportion_interval(right, len(test))
        rows.append(f"| {name} | {right / len(test):.4f} ({low:.4f} to {high:.4f}) | {len(test)} |")
    machine = describe_machine(torch.device("cpu"))
    curve = ", ".join(f"{epoch.val_top1:.3f}" for epoch in run.history)
    text = "\n".join(
        [
            "# CIFAR-10 from scratch on two cores",
            "",
            "VGG11 with batch norm and the pool head at 32 pixels, "
            f"{classifier.configuration.parameters:,} parameters, random weights (dirac);",
            f"{options.epochs} epochs of 44,000 images: {recipe.optimizer}, rate {recipe.learning_rate:g},",
            f"one cycle, {recipe.batch_size} a step, label smoothing {recipe.label_smoothing:g}, shifted",
            "by up to 4 pixels, mirrored in turn, bfloat16. The 5,000 test images are a subset of CIFAR-10's",
            "training set (its own test set was not available), separated before any tuning and evaluated",
            "once; see cifar10.py. Intervals are Wilson's, 95 %.",
            "",
            "| measured | top-1 | n |",
            "|---|---|---|",
            *rows,
            "",
            f"The script took {wall / 60:.1f} minutes, {learning / 60:.1f} of them for training;",
            f"{processor / 60:.1f} minutes of processor time, {processor / 120:.1f} on each of two cores. Accuracy",
            f"on the 1,000 validation images by epoch: {curve}.",
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, "
            f"Python {platform.python_version()}; seed {options.seed}; "
            f"{datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    main()
