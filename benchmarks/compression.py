"""What compression costs a VGG11 with batch norm that was trained on CIFAR-10's training images at 32 pixels.

Of the 50,000 images a permutation (torch's generator, seed 0) sets the last 5,000 apart, which nothing else looks
at, 1,000 before them to choose by, and up to 44,000 to learn from and fit on. For each seed a network is trained,
or taken from --model, and compressed as `vggkit compress` does: channels in steps of the multiply-adds, each
followed by fine-tuning with the network as it was as the teacher. Each network is measured with its weights in
float32, int8 and int4, beside the network as it was, on the 5,000. Without any training: the same network with its
weights in int8 and int4, and, with --head fc, with fc6 folded and fully connected layers of low rank. Writes
compression.md beside itself.
"""

import argparse
import datetime
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import vggkit as vk
from vggkit.compression.fine_tuning import FineTuning
from vggkit.compression.images import divide_roles
from vggkit.compression.measuring import count_multiply_adds, measure_speedup, predict_all
from vggkit.compression.rebuild import build_network, copy_state
from vggkit.compression.records import RunPrecision
from vggkit.compression.steps import Made, Workshop
from vggkit.evaluation.comparison import PairedComparison, compare_predictions
from vggkit.hardware import name_processor
from vggkit.images.dataset import ImageDataset, ImageSample
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.weights.model import Model
from vggkit.weights.storage import Storage

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"
CPU = torch.device("cpu")
REMOVED = (0.3, 0.45, 0.58, 0.7, 0.77, 0.83, 0.88)
SHOWN = (0.58, 0.77, 0.88)
QUICK = SHOWN
ENERGIES = (0.99, 0.95, 0.9)
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


@dataclass(frozen=True)
class Row:
    """A network that was measured."""

    name: str
    storage: Storage
    precision: RunPrecision
    trained: bool
    size_bytes: int
    removed: float
    comparison: PairedComparison
    accuracy: float
    images_per_second: float
    speedup: float


def divide(opened: ImageDataset, *, train: int, test: int) -> ImageDataset:
    everything = opened.split("train", "all")
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0)).tolist()

    def take(start: int, stop: int) -> list[ImageSample]:
        return [everything[place] for place in order[start:stop]]

    return opened.keep(
        {"train": take(0, min(train, 44_000)), "val": take(44_000, 45_000), "test": take(50_000 - test, 50_000)}
    )


def train(images: ImageDataset, *, seed: int, epochs: int, blocks: str | None, head: str, folder: Path) -> Model:
    classifier = vk.Classifier.create(
        vk.configure("vgg11_bn", blocks=blocks, num_classes=10),
        labels=images.labels,
        head="pool" if head == "pool" else None,
        preprocessing=choose_preprocessing(32),
        seed=seed,
    )
    batch_size = 512 if len(images.split("train")) > 20_000 else 256
    recipe = replace(RECIPE, epochs=epochs, seed=seed, batch_size=batch_size)
    return vk.train(images, model=classifier, recipe=recipe, out=folder, despite_findings=True).classifier


def measure(made: Made, shop: Workshop, storage: Storage, precision: RunPrecision, *, trained: bool) -> Row:
    """One network in one storage, beside the network as it was."""
    assert shop.images is not None
    rounded = shop.round(made) if storage == "int4" else made.model
    rounded.card = replace(rounded.card, storage=storage)
    path = shop.folder / "measured.safetensors"
    rounded.save(path)
    model = Model.load(path)
    before, after = (
        predict_all(each, shop.images.report, precision=kind, device=CPU)
        for each, kind in ((shop.original, "fp32"), (model, precision))
    )
    whole = count_multiply_adds(shop.original.configuration, shop.pixels)
    speed, ratio = measure_speedup(shop.original, model, precision=precision, device=CPU)
    steps = ", ".join(str(step) for step in made.steps) or "as it was"
    row = Row(
        name=steps,
        storage=storage,
        precision=precision,
        trained=trained,
        size_bytes=path.stat().st_size,
        removed=1 - count_multiply_adds(model.configuration, shop.pixels) / whole,
        comparison=compare_predictions(before, after, names=("before", "after")),
        accuracy=float(after.correct.mean()),
        images_per_second=speed,
        speedup=ratio,
    )
    print(describe(row), flush=True)
    return row


def describe(row: Row) -> str:
    low, high = row.comparison.interval
    cells = (
        row.name,
        row.storage,
        row.precision,
        f"{row.size_bytes / 1e6:.2f}",
        f"-{100 * row.removed:.0f} %",
        f"{100 * row.accuracy:.2f}",
        f"{100 * row.comparison.difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        f"{row.images_per_second:,.0f}",
        f"{row.speedup:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def log(sentence: str) -> None:
    print(sentence, flush=True)


def compress(
    model: Model, images: ImageDataset, *, seed: int, epochs: int, stages: tuple[float, ...], folder: Path
) -> list[Row]:
    network = build_network(model.configuration, copy_state(model.network))
    original = Model(network, labels=model.labels, preprocessing=model.preprocessing)
    original.card = model.card
    shop = Workshop(
        original=original,
        images=divide_roles(images, original),
        fine_tuning=FineTuning(epochs=epochs, seed=seed),
        device=CPU,
        folder=folder,
        on_progress=lambda what, done, total: None,
        log=log,
    )
    rows = []

    def measure_all(made: Made, *, trained: bool) -> None:
        ranges = shop.find_ranges(made.model) is None
        for storage in ("fp32", "int8", "int4"):
            rows.append(measure(made, shop, storage, "fp32", trained=trained))
        if ranges:
            rows.append(measure(made, shop, "int8", "int8", trained=trained))

    base = shop.fold(Made(original))
    measure_all(base, trained=False)
    if base.model.configuration.hidden:
        for energy in ENERGIES:
            measure_all(shop.factorize(base, energy=energy), trained=False)
    for removed in stages:
        base = shop.fine_tune(shop.prune(base, removed))
        if removed in SHOWN:
            measure_all(base, trained=True)
    return rows


def write_report(runs: list[list[Row]], *, options: argparse.Namespace, seconds: float) -> str:
    versions = f"torch {torch.__version__}, vggkit {vk.__version__}, Python {platform.python_version()}"
    mean = statistics.mean(rows[0].accuracy for rows in runs)
    removed = ", ".join(f"{100 * each:.0f} %" for each in options.stages)
    lines = [
        "# Compression of a VGG11 with batch norm, CIFAR-10 images at 32 pixels",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {name_processor()}, {torch.get_num_threads()} threads; "
        f"{versions}.",
        f"{options.images:,} images to learn from, {options.train_epochs} epochs; {options.epochs} epochs of "
        f"fine-tuning after each removal of channels ({removed}); "
        f"{runs[0][0].comparison.n:,} images that nothing else looked at; {len(runs)} seed(s); "
        f"blocks {options.blocks or 'of VGG11'}, head {options.head}. Accuracy as it was: {100 * mean:.2f} %. "
        f"{seconds / 60:.0f} minutes in all.",
        "",
        "size: the Classifier's file, MB. Difference: percentage points of top-1 accuracy, after minus before on",
        "the same images, with the paired 95 % interval. Speed: batch 8, and times the network as it was in",
        "float32 by the same engine (medians of 5 turns).",
    ]
    for number, rows in enumerate(runs):
        lines += ["", f"## Seed {number}", ""]
        titles = {False: "Without any training", True: "Channels removed, fine-tuned with a teacher"}
        for trained, title in titles.items():
            lines += [
                f"{title}:",
                "",
                "| network | weights | in | size | mult-adds | top-1 % | difference | images/s | times |",
                "|---|---|---|---|---|---|---|---|---|",
                *(describe(row) for row in rows if row.trained == trained),
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=44_000)
    parser.add_argument("--train-epochs", type=int, default=19)
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning after each removal")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--blocks", help="widths other than VGG11's")
    parser.add_argument("--head", choices=("pool", "fc"), default="pool")
    parser.add_argument("--model", type=Path, help="a trained Classifier in place of a training")
    parser.add_argument("--quick", action="store_true", help="half the channels, 8,000 images, one seed")
    options = parser.parse_args()
    options.stages = QUICK if options.quick else REMOVED
    if options.quick:
        options.images, options.train_epochs, options.epochs, options.seeds = 8_000, 6, 2, 1
        options.blocks = options.blocks or "32/64/128,128/256,256/256,256"
    started = time.perf_counter()
    images = divide(vk.open_dataset(str(DATA)), train=options.images, test=5_000)
    runs: list[list[Row]] = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if options.model is not None:
                model = Model.load(options.model)
            else:
                model = train(
                    images,
                    seed=seed,
                    epochs=options.train_epochs,
                    blocks=options.blocks,
                    head=options.head,
                    folder=folder / "run",
                )
            runs.append(
                compress(model, images, seed=seed, epochs=options.epochs, stages=options.stages, folder=folder)
            )
        report = write_report(runs, options=options, seconds=time.perf_counter() - started)
        Path(__file__).with_suffix(".md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
