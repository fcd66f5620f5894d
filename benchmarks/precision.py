"""Effect of bfloat16 and int8 on the predictions of trained networks, on held-out images.

VGG-19 to relu3_4 (Oxford's weights) with a head trained on photos, and VGG11 with batch norm trained from random
weights on CIFAR-10; each predicts held-out images in float32, bfloat16 and int8. Activation ranges for int8 are
measured on training images. Writes precision.md beside itself. With ONEDNN_MAX_CPU_ISA=AVX2 OpenVINO computes as on
a processor without AVX-512 and VNNI, where weights are rounded to 7 bits: `--epochs 0 --out precision_avx2.md`.
"""

import argparse
import datetime
import platform
import random
import tempfile
from pathlib import Path

import numpy as np

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.hardware import computes_bf16, describe_machine, multiplies_bytes
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import choose_preprocessing

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
RANGES_FROM = 128
"""Images that ranges are measured on."""


def divide_photos(name: str, each: int | None) -> ImageDataset:
    """The folder's own parts, or `each` photos of a class to learn from and all others held out."""
    opened = vk.open_dataset(str(SHARED / name))
    if each is None:
        return opened
    learnt: list[ImageSample] = []
    for label in opened.labels:
        learnt += [image for image in opened.split("train") if image.label == label][:each]
    paths = {image.path for image in learnt}
    rest = [image for image in opened.split("train") if image.path not in paths]
    return opened.keep({"train": learnt, "val": [*rest, *opened.split("val")]})


def divide_cifar() -> ImageDataset:
    opened = vk.open_dataset(str(SHARED / "cifar10"))
    everything = list(opened.split("train", "all"))
    random.Random(1).shuffle(everything)
    return opened.keep({"train": everything[5000:], "val": everything[:5000]})


def learn_head(images: ImageDataset, folder: Path) -> Classifier:
    classifier = Classifier.create(
        "vgg19", labels=images.labels, weights=WEIGHTS, until="relu3_4", head="pool", seed=0
    )
    recipe = vk.Recipe(trainable="head")
    return vk.train(images, model=classifier, recipe=recipe, out=folder / "run", despite_findings=True).classifier


def learn_all(images: ImageDataset, folder: Path, epochs: int) -> Classifier:
    classifier = Classifier.create(
        "vgg11_bn",
        labels=images.labels,
        head="pool",
        preprocessing=choose_preprocessing(32),
        initialization="dirac",
        seed=0,
    )
    recipe = vk.Recipe(
        epochs=epochs, optimizer="muon", learning_rate=0.004, batch_size=512, schedule="one-cycle", clip_norm=0.0
    )
    return vk.train(images, model=classifier, recipe=recipe, out=folder / "run", despite_findings=True).classifier


def compare(classifier: Classifier, images: ImageDataset) -> list[str]:
    """A row a precision: top-1, and the share of images with float32's class."""
    seen = random.Random(0).sample(list(images.split("train")), RANGES_FROM)
    batch = np.stack([classifier.preprocessing(image.decode()) for image in seen])
    classifier.keep_ranges(measure_ranges(classifier.network, np.split(batch, 16)), about={})
    found = {}
    for precision in ("fp32", "bf16", "int8"):
        if precision != "bf16" or computes_bf16("cpu"):
            found[precision] = vk.evaluate(classifier, images, split="val", precision=precision)
    exact, rows = found["fp32"].predictions, []
    for precision, scored in found.items():
        same = int((scored.predictions.log_probabilities.argmax(1) == exact.log_probabilities.argmax(1)).sum())
        low, high = proportion_interval(same, scored.n)
        share = (
            "" if precision == "fp32" else f"{same} of {scored.n}: {same / scored.n:.4f} ({low:.4f} to {high:.4f})"
        )
        low, high = scored.top1_interval
        rows.append(f"{precision} | {scored.top1:.4f} ({low:.4f} to {high:.4f}) | {share} |")
    return rows


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5, help="on CIFAR-10; 0: without CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    epochs = arguments.epochs
    if not SHARED.is_dir():
        print(f"skipped: {SHARED} is not there")
        return
    rows = []
    for name, images in (
        ("VGG-19 to relu3_4, imagenette", divide_photos("imagenette", 100)),
        ("VGG-19 to relu3_4, hymenoptera", divide_photos("hymenoptera", None)),
        *([(f"VGG11-BN, CIFAR-10, {epochs} epochs", divide_cifar())] if epochs else []),
    ):
        with tempfile.TemporaryDirectory() as folder:
            cifar = "CIFAR" in name
            learnt = learn_all(images, Path(folder), epochs) if cifar else learn_head(images, Path(folder))
        rows += [f"| {name} | {row}" for row in compare(learnt, images)]
        print("\n".join(rows), flush=True)
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Effect of bfloat16 and int8 on predictions",
            "",
            "Predictions of trained networks for held-out images: 1,300 of imagenette, with 100 photos per class",
            "for training, the 153 of hymenoptera's own folder, and (where named) 5,000 of CIFAR-10's training",
            "images. These images selected the best epoch in training, and nothing here. The activation ranges of",
            "int8 were measured on 128 training images. Top-1 has a 95 % bootstrap interval, agreement with",
            f"float32's class Wilson's. In int8 weights had {8 if multiplies_bytes() else 7} bits.",
            "",
            "| network, images | precision | top-1 | same class |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, Python "
            f"{platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
