"""Agreement of exported programs with the Classifier that they were written from, on 1,000 held-out JPEGs.

Two trained networks, one with a pool head on photos (VGG-19 to relu3_4, Oxford's weights) and one with FC layers on
CIFAR-10, are exported to each format, with and without resizing inside. Each program is run by its own runtime; the
reference is PyTorch in float32 on pixels that Pillow resized. Writes export.md beside itself.
"""

import argparse
import datetime
import itertools
import platform
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import vggkit as vk
from vggkit.classifier import Classifier
from vggkit.engines.model_weights import find_weights
from vggkit.engines.select import choose_engine
from vggkit.evaluation.evaluation import proportion_interval
from vggkit.exporting.formats import FormatName
from vggkit.exporting.plan import FITTED, ExportPlan
from vggkit.exporting.programs import find_program
from vggkit.hardware import describe_machine
from vggkit.images import resizing
from vggkit.images.dataset import ImageDataset
from vggkit.models.configure import configure

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "vgg19_oxford_features_to_relu3_4_caffeBGR.pth"
PROGRAMS: tuple[tuple[FormatName, str], ...] = (("onnx", ".onnx"), ("openvino", ".xml"), ("pt2", ".pt2"))
TOGETHER = 8
VALIDATED = 100
"""Images that choose the best epoch."""
Images = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Trained:
    """A trained Classifier with pixels of images that it has not seen."""

    name: str
    classifier: Classifier
    pixels: Images


def read(images: ImageDataset, split: str, count: int) -> list[NDArray[np.uint8]]:
    chosen = random.Random(0).sample(list(images.split(split)), count)
    return [image.decode() for image in chosen]


def divide(images: ImageDataset, learnt: int, count: int) -> ImageDataset:
    everything = list(images.split("train", "all"))
    random.Random(1).shuffle(everything)
    rest = everything[learnt:]
    return images.keep({"train": everything[:learnt], "val": rest[:VALIDATED], "test": rest[VALIDATED:][:count]})


def learn_photos(folder: Path, crop: int, count: int) -> Trained:
    images = divide(vk.open_dataset(str(SHARED / "imagenette")), 400, count)
    options = {"labels": images.labels, "weights": WEIGHTS, "until": "relu3_4", "head": "pool", "seed": 0}
    fed = Classifier.create("vgg19", **options).preprocessing
    fed = replace(fed, crop_pixels=crop, resize_pixels=crop * 256 // 224)
    classifier = Classifier.create("vgg19", preprocessing=fed, **options)
    recipe = vk.Recipe(trainable="head")
    run = vk.train(images, model=classifier, recipe=recipe, out=folder / "photos", despite_findings=True)
    return Trained(f"VGG-19 to relu3_4, pool head, photos at {crop}", run.classifier, read(images, "test", count))


def learn_cifar(folder: Path, learnt: int, count: int) -> Trained:
    images = divide(vk.open_dataset(str(SHARED / "cifar10")), learnt, count)
    network = replace(configure("vgg11_bn", num_classes=10), grid=1, hidden=(256,))
    fed = vk.Preprocessing(resize_pixels=36, crop_pixels=32)
    classifier = Classifier.create(network, labels=images.labels, preprocessing=fed, initialization="dirac", seed=0)
    recipe = vk.Recipe(epochs=3, optimizer="muon", learning_rate=0.004, batch_size=256, schedule="one-cycle")
    run = vk.train(images, model=classifier, recipe=recipe, out=folder / "cifar", despite_findings=True)
    return Trained("VGG11-BN, FC head, CIFAR-10 at 32", run.classifier, read(images, "test", count))


def compare(trained: Trained, folder: Path) -> list[str]:
    """A row for each format, with and without resizing inside."""
    resizing._find_quick = lambda: None  # type: ignore[assignment]  # the reference is Pillow's
    card, pixels = trained.classifier.card, trained.pixels
    fitted = np.stack([card.preprocessing.fit(each) for each in pixels])
    exact = choose_engine(trained.classifier, "cpu", output="probabilities", precision="fp32", engine="pytorch")
    expected = np.concatenate(
        [
            exact.run(np.stack([card.preprocessing.normalize(each) for each in fitted[first : first + TOGETHER]]))
            for first in range(0, len(fitted), TOGETHER)
        ]
    )
    rows = []
    for (to, ending), resize in itertools.product(PROGRAMS, (False, True)):
        path = folder / f"{to}{ending}"
        exported = trained.classifier.export(path, resize=resize)
        run, runtime = find_program(to).open(path)
        levels = ""
        if resize:
            plan = replace(ExportPlan.of(card, to, resize=True), outputs=(FITTED,))
            find_program(to).write(find_weights(trained.classifier), plan, folder / f"fitting{ending}")
            fit, _ = find_program(to).open(folder / f"fitting{ending}")
            levels = describe_levels(fit, pixels, fitted)
            found = np.concatenate([run(each[None]) for each in pixels])
        else:
            batches = (fitted[first : first + TOGETHER] for first in range(0, len(fitted), TOGETHER))
            found = np.concatenate([run(batch) for batch in batches])
        same = int((found.argmax(1) == expected.argmax(1)).sum())
        low, high = proportion_interval(same, len(found))
        rows.append(
            f"| {trained.name} | {runtime.partition('+')[0]} | {'inside' if resize else 'Pillow'} | "
            f"{same} of {len(found)} ({low:.4f} to {high:.4f}) | {np.abs(found - expected).max():.1e} | {levels} | "
            f"{exported.size_bytes / 1e6:.1f} |"
        )
        print(rows[-1], flush=True)
    return rows


def describe_levels(
    fit: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pixels: Images, fitted: NDArray[np.uint8]
) -> str:
    """Largest difference from Pillow's pixels in levels, and the share of values that differ."""
    apart = [
        np.abs(fit(each[None])[0].transpose(1, 2, 0) - wanted) for each, wanted in zip(pixels, fitted, strict=True)
    ]
    return f"{int(max(each.max() for each in apart))}, {np.mean([(each > 0).mean() for each in apart]):.2%}"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crop", type=int, default=224, help="pixels of a photo")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--learnt", type=int, default=6000, help="images of CIFAR-10 that are learnt from")
    parser.add_argument("--networks", nargs="+", default=["cifar", "photos"], choices=("cifar", "photos"))
    given = parser.parse_args()
    if not SHARED.is_dir():
        print(f"skipped: {SHARED} is not there")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learn = {
            "cifar": lambda: learn_cifar(folder, given.learnt, given.images),
            "photos": lambda: learn_photos(folder, given.crop, given.images),
        }
        rows = [row for network in given.networks for row in compare(learn[network](), folder)]
    machine = describe_machine(torch.device("cpu"))
    text = "\n".join(
        [
            "# Exported programs beside the Classifier",
            "",
            f"{given.images} held-out JPEGs; the reference is PyTorch in float32 on pixels that Pillow resized.",
            "Same class: the most probable class, with Wilson's 95 % interval. Levels: largest difference of a",
            "resized pixel from Pillow's, of 255 levels, and the share of values that differ.",
            "",
            "| network | runtime | resized | same class | probabilities differ by | levels | MB |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{machine['device']}; {machine['system']}; torch {machine['torch']}, Python "
            f"{platform.python_version()}; {datetime.datetime.now(datetime.UTC).date()}.",
            "",
        ]
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
