"""Trains the classifier of handwritten digits that comes with vggkit, and writes its file into the package.

    python tools/train_digits.py [OUT]

Data: scikit-learn's 1,797 digits in vggkit's fixed splits, the test split set apart first. Only the 1,259 training
digits are rendered for training, and only renderings of the 179 validation digits choose the epoch. The 359 test
digits are used once, by `measure`, when the file is written.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from render_digits import enlarge, measure_distances, render

import vggkit as vk
from vggkit.engines.activation_ranges import measure_ranges
from vggkit.images.dataset import ImageDataset, ImageSample

BLOCKS: Final = "32,32/64,64/128,128"
RENDERINGS: Final = 48
"""Renderings of each training digit; the 8×8 original is there a few times, too."""
ORIGINALS: Final = 8
SEED: Final = 0
TEST_SEED: Final = 2
TEST_RENDERINGS: Final = 10
FILE: Final = Path(vk.__file__).parent / "weights" / "digits.safetensors"

Images = NDArray[np.uint8]


def read_split(digits: ImageDataset, split: str) -> tuple[Images, list[str]]:
    """Grey pixels (N, 8, 8) and labels of a split."""
    samples = digits.splits[split]
    return np.stack([sample.pixels[..., 0] for sample in samples]), [str(sample.label) for sample in samples]


def render_many(originals: Images, labels: list[str], times: int, *, seed: int) -> tuple[Images, list[str]]:
    """`times` renderings of each digit (N * times, 32, 32), and their labels."""
    draws = torch.Generator().manual_seed(seed)
    ink = enlarge(originals)
    distances = measure_distances(ink)
    return np.concatenate([render(ink, distances, draws=draws) for _ in range(times)]), labels * times


def name_samples(split: str, images: Images, labels: list[str], kind: str) -> list[tuple[str, ImageSample]]:
    """Images with names of their own, as RGB pixels."""
    wide = np.repeat(images[..., None], 3, axis=-1)
    return [
        (split, ImageSample(f"{kind}/{number:06d}", label, pixels))
        for number, (pixels, label) in enumerate(zip(wide, labels, strict=True))
    ]


def make_dataset(digits: ImageDataset) -> ImageDataset:
    """Renderings and originals of the training and validation digits; no test digit."""
    samples = []
    for split, renderings, originals in (("train", RENDERINGS, ORIGINALS), ("val", 8, 2)):
        pixels, labels = read_split(digits, split)
        images, names = render_many(pixels, labels, renderings, seed=SEED if split == "train" else SEED + 1)
        samples += name_samples(split, images, names, f"{split}-rendered")
        for number in range(originals):
            samples += name_samples(split, pixels, labels, f"{split}-original-{number}")
    return ImageDataset.of("digits, rendered", samples)


def train(dataset: ImageDataset, out: Path, *, epochs: int = 8) -> vk.Classifier:
    """Train the network; the epoch of the highest validation accuracy is kept."""
    run = vk.train(
        dataset,
        out=out,
        blocks=BLOCKS,
        model="vgg11_bn",
        head="pool",
        image_size=32,
        fit_mode="pad",
        in_channels=1,
        mean=[0.5],
        std=[0.25],
        dropout=0.0,
        epochs=epochs,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="one-cycle",
        label_smoothing=0.05,
        ema_decay=0.995,
        augmentation="none",
        mirror="none",
        seed=SEED,
        despite_findings=True,  # renderings of one digit are similar on purpose
    )
    return run.classifier


def measure(classifier: vk.Classifier, digits: ImageDataset) -> dict[str, Any]:
    """Accuracy on the test digits: of their 8×8 originals, and of ten renderings of each."""
    pixels, labels = read_split(digits, "test")
    originals = vk.evaluate(classifier, digits, split="test")
    images, names = render_many(pixels, labels, TEST_RENDERINGS, seed=TEST_SEED)
    predicted = [each.labels[0] for each in classifier.predict(np.repeat(images[..., None], 3, axis=-1), top=1)]
    right = np.equal(predicted, names).reshape(TEST_RENDERINGS, len(labels)).mean(axis=0)
    # Renderings of one digit are not independent: digits are drawn, not images.
    draws = np.random.default_rng(0).integers(len(right), size=(10_000, len(right)))
    low, high = np.quantile(right[draws].mean(axis=1), (0.025, 0.975))
    return {
        "split": "test",
        "n": originals.n,
        "top1": originals.top1,
        "top1_interval": list(originals.top1_interval),
        "loss": originals.loss,
        "rendered": {
            "about": "ten random renderings of each test digit: sizes, pens, papers and lights as in training",
            "n": len(names),
            "digits": len(labels),
            "top1": float(right.mean()),
            "top1_interval": [float(low), float(high)],
        },
    }


def describe(digits: ImageDataset, trained: vk.Classifier) -> dict[str, Any]:
    """The provenance that the file states."""
    versions = trained.provenance["machine"]
    return {
        "data": {
            "name": "digits",
            "images": {split: len(samples) for split, samples in digits.splits.items()},
            "fingerprint": digits.fingerprint(),
            "source": "1,797 handwritten digits of 13 people, 8×8 pixels, as scikit-learn has them; they are the "
            "test set of: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine "
            "Learning Repository, CC BY 4.0",
            "held_out": "the splits are vggkit's fixed ones; the 359 test digits were set apart first, and neither "
            "they nor renderings of them were used to train, to choose the epoch or to calibrate; people who "
            "wrote test digits wrote training digits, too",
            "rendered": f"{RENDERINGS} random renderings of each training digit, and {ORIGINALS} copies of it "
            "(tools/render_digits.py)",
        },
        "recipe": trained.provenance["recipe"],
        "versions": {name: versions[name] for name in ("python", "torch", "vggkit")},
        "licence": "MIT",
        "purpose": "lessons, examples and tests without a network; it was not made for decisions about people",
    }


def finish(trained: vk.Classifier, dataset: ImageDataset, digits: ImageDataset, out: Path) -> None:
    """Write the file: weights in 16 bits, activation ranges for int8, what it was made of and its accuracy."""
    batch = np.stack([trained.preprocessing.see(sample) for sample in dataset.splits["val"][:512]])
    ranges = measure_ranges(trained.network, np.array_split(batch, 8))
    origin = vk.WeightsOrigin(kind="trained")
    card = replace(trained.card, activation_ranges=ranges, storage="fp16", origin=origin, provenance={})
    provenance = describe(digits, trained)
    trained.card = card
    trained.save(out, provenance=provenance)
    stored = vk.load(out)
    stored.save(out, provenance={"metrics": measure(stored, digits)})
    print(json.dumps(stored.provenance["metrics"], indent=1))


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    digits = vk.open_dataset("digits")
    dataset = make_dataset(digits)
    with tempfile.TemporaryDirectory() as folder:
        finish(train(dataset, Path(folder) / "run"), dataset, digits, out)


if __name__ == "__main__":
    main()
