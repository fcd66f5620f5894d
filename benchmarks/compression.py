"""What compression costs a VGG11 with batch norm that was trained on CIFAR-10's training images at 32 pixels.

The images are divided as in cifar10.py: 5,000 that nothing else looks at, 1,000 to choose by, and up to 44,000 to
learn from and fit on. For each seed a network is trained,
or taken from --models, and compressed as `vggkit compress` does: channels in steps of the multiply-adds, each
followed by fine-tuning with the network as it was as the teacher. Each network is measured with its weights in
float32, int8 and int4, beside the network as it was, on the 5,000. Without any training: the same network with its
weights in int8 and int4, the same network quantised by NNCF from the same images, and, with --head fc, fully
connected layers of low rank. Speeds are compared with torchvision's modules, eager and in float32, by turns in one
process. Writes compression.md beside itself, or --out.
"""

import argparse
import datetime
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cifar10 import DATA, divide
from numpy.typing import NDArray
from torch import nn
from torchvision.models.vgg import make_layers

import vggkit as vk
from vggkit.compression.fine_tuning import FineTuning
from vggkit.compression.images import divide_roles
from vggkit.compression.measuring import count_multiply_adds, predict_all
from vggkit.compression.rebuild import build_network, copy_state
from vggkit.compression.records import RunPrecision
from vggkit.compression.steps import Compressed, Compressor
from vggkit.engines.select import choose_engine
from vggkit.hardware import name_processor
from vggkit.images.dataset import ImageDataset
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.weights.model import Model
from vggkit.weights.storage import Storage

CPU = torch.device("cpu")
STAGES = (0.58, 0.77, 0.88)
ENERGIES = (0.99, 0.95, 0.9)
BATCH = 8
TURNS = 5
TURN_SECONDS = 0.2
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
Run = Callable[[NDArray[np.float32]], object]


@dataclass(frozen=True)
class Row:
    """A network that was measured."""

    name: str
    """What was done to it."""
    storage: Storage
    """How its file holds the weights."""
    computes: str
    """What its engine computes in."""
    trained: bool
    """Whether it was fine-tuned."""
    megabytes: float
    """Size of its file."""
    removed: float
    """Share of the multiply-adds that are gone."""
    before: NDArray[np.bool_]
    """(N,) whether each image is predicted correctly by the network as it was."""
    after: NDArray[np.bool_]
    """(N,) the same of this network."""
    images_per_second: float
    """At batch 8."""
    times_own: float
    """Times the network as it was, in float32 by the same engine."""
    times_torchvision: float
    """Times torchvision's modules with the weights as they were, eager and in float32."""


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


def build_peer(model: Model) -> nn.Module:
    """The same weights in the modules of torchvision."""
    network, widths = model.network, []
    for block in model.configuration.blocks:
        widths += [*block, "M"]
    features = make_layers(widths, batch_norm=model.configuration.batch_norm)
    features.load_state_dict(network.features.state_dict())
    peer = nn.Sequential(features, network.avgpool, nn.Flatten(), network.classifier).eval()
    probe = torch.randn(2, 3, model.preprocessing.crop_pixels, model.preprocessing.crop_pixels)
    with torch.inference_mode():
        torch.testing.assert_close(peer(probe), network.eval()(probe))
    return peer


def measure_speeds(runs: Sequence[Run], batch: NDArray[np.float32]) -> list[list[float]]:
    """Images a second of each, turn by turn; the order changes, and the first pass of a turn does not count."""
    found: list[list[float]] = [[] for _ in runs]
    for turn in range(TURNS):
        for place in range(len(runs)) if turn % 2 else reversed(range(len(runs))):
            runs[place](batch)
            passes, started = 0, time.perf_counter()
            while passes < 2 or time.perf_counter() - started < TURN_SECONDS:
                runs[place](batch)
                passes += 1
            found[place].append(passes * len(batch) / (time.perf_counter() - started))
    return found


class Bench:
    """Measures networks beside the one as it was."""

    def __init__(self, compressor: Compressor) -> None:
        assert compressor.images is not None
        self.compressor, self.images, self.original = compressor, compressor.images.report, compressor.original
        self.before = predict_all(self.original, self.images, precision="fp32", device=CPU).correct
        side = compressor.pixels
        self.batch = np.random.default_rng(0).standard_normal((BATCH, 3, side, side), np.float32)
        peer = build_peer(self.original)

        def run_peer(batch: NDArray[np.float32]) -> object:
            with torch.inference_mode():
                return peer(torch.from_numpy(batch))

        self.peers: list[Run] = [run_peer, choose_engine(self.original, CPU, precision="fp32").run]

    def add(self, made: Compressed, storage: Storage, precision: RunPrecision, *, trained: bool) -> Row:
        """One network in one storage."""
        rounded = self.compressor.round(made) if storage == "int4" else made.model
        rounded.card = replace(rounded.card, storage=storage)
        path = self.compressor.folder / "measured.safetensors"
        rounded.save(path)
        model = Model.load(path)
        after = predict_all(model, self.images, precision=precision, device=CPU).correct
        name = ", ".join(str(step) for step in made.steps) or "as it was"
        run = choose_engine(model, CPU, precision=precision).run
        return self._describe(
            name, run, after, storage=storage, computes=precision, trained=trained, model=model, path=path
        )

    def add_nncf(self) -> Row:
        """The network as it was, quantised by NNCF with its own estimators of ranges on the same images."""
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # neither reports to its makers
        import nncf
        import openvino

        side = self.compressor.pixels
        shape = openvino.PartialShape([-1, 3, side, side])
        network = build_peer(self.original)
        converted = openvino.convert_model(network, example_input=torch.randn(1, 3, side, side), input=shape)
        images = np.concatenate([batch.numpy() for batch in self.compressor.batches])[:128]
        quantised = nncf.quantize(converted, nncf.Dataset([image[None] for image in images]), subset_size=128)
        compiled = openvino.compile_model(quantised, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        path = self.compressor.folder / "nncf.xml"
        openvino.save_model(quantised, path)

        def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
            return compiled(batch)[0]

        seen = [np.stack([self.original.preprocessing.see(image)]) for image in self.images]
        predicted = np.array([run(image)[0].argmax() for image in seen])
        labels = {label: place for place, label in enumerate(self.original.labels)}
        targets = np.array([labels[image.label] for image in self.images])
        return self._describe(
            "as it was, NNCF",
            run,
            predicted == targets,
            storage="int8",
            computes="int8",
            trained=False,
            model=self.original,
            path=path.with_suffix(".bin"),
        )

    def _describe(
        self,
        name: str,
        run: Run,
        after: NDArray[np.bool_],
        *,
        storage: Storage,
        computes: str,
        trained: bool,
        model: Model,
        path: Path,
    ) -> Row:
        peer, own, mine = measure_speeds([*self.peers, run], self.batch)
        whole = count_multiply_adds(self.original.configuration, self.compressor.pixels)
        row = Row(
            name=name,
            storage=storage,
            computes=computes,
            trained=trained,
            megabytes=path.stat().st_size / 1e6,
            removed=1 - count_multiply_adds(model.configuration, self.compressor.pixels) / whole,
            before=self.before,
            after=after,
            images_per_second=statistics.median(mine),
            times_own=statistics.median(a / b for a, b in zip(mine, own, strict=True)),
            times_torchvision=statistics.median(a / b for a, b in zip(mine, peer, strict=True)),
        )
        print(describe([row]), flush=True)
        return row


def find_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of a mean; images are drawn, each with all of its seeds."""
    generator = np.random.default_rng(0)
    means = [differences[generator.integers(0, len(differences), len(differences))].mean() for _ in range(10_000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def describe(rows: Sequence[Row]) -> str:
    """A line of the table: one network, or the mean over the same network of several seeds."""
    differences = np.mean([row.after.astype(float) - row.before for row in rows], axis=0)
    low, high = find_interval(differences)

    def mean(name: str) -> float:
        return statistics.mean(getattr(row, name) for row in rows)

    cells = (
        rows[0].name,
        rows[0].storage,
        rows[0].computes,
        f"{mean('megabytes'):.2f}",
        f"-{100 * mean('removed'):.0f} %",
        f"{100 * statistics.mean(row.after.mean() for row in rows):.2f}",
        f"{100 * differences.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
        f"{mean('images_per_second'):,.0f}",
        f"{mean('times_own'):.2f}",
        f"{mean('times_torchvision'):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def log(sentence: str) -> None:
    print(sentence, flush=True)


def compress(
    model: Model,
    images: ImageDataset,
    *,
    seed: int,
    epochs: int,
    rate: float | None,
    stages: Sequence[float],
    folder: Path,
) -> list[Row]:
    network = build_network(model.configuration, copy_state(model.network))
    original = Model(network, labels=model.labels, preprocessing=model.preprocessing)
    original.card = model.card
    compressor = Compressor(
        original=original,
        images=divide_roles(images, original),
        fine_tuning=FineTuning(epochs=epochs, learning_rate=rate, seed=seed),
        device=CPU,
        folder=folder,
        on_progress=lambda what, done, total: None,
        log=log,
    )
    bench = Bench(compressor)
    rows: list[Row] = []

    def measure_all(made: Compressed, *, trained: bool) -> None:
        ranges = compressor.find_ranges(made.model) is None
        for storage in ("fp32", "int8", "int4"):
            rows.append(bench.add(made, storage, "fp32", trained=trained))
        if ranges:
            rows.append(bench.add(made, "int8", "int8", trained=trained))

    base = compressor.fold(Compressed(original))
    measure_all(base, trained=False)
    rows.append(bench.add_nncf())
    if base.model.configuration.hidden:
        for energy in ENERGIES:
            measure_all(compressor.factorize(base, energy=energy), trained=False)
    for removed in stages:
        base = compressor.fine_tune(compressor.prune(base, removed))
        measure_all(base, trained=True)
    return rows


def write_table(seeds: Sequence[Sequence[Row]]) -> list[str]:
    """The rows of the seeds, averaged: those without training, and those with."""
    lines = []
    titles = {False: "Without any training", True: "Channels removed, fine-tuned with a teacher"}
    for trained, title in titles.items():
        lines += [
            f"{title}:",
            "",
            "| network | weights | computes | MB | mult-adds | top-1 % | difference | images/s | times itself "
            "| times torchvision |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(describe(rows) for rows in zip(*seeds, strict=True) if rows[0].trained == trained),
            "",
        ]
    return lines


def write_report(seeds: list[list[Row]], *, options: argparse.Namespace, seconds: float) -> str:
    versions = f"torch {torch.__version__}, vggkit {vk.__version__}, Python {platform.python_version()}"
    accuracies = [100 * rows[0].before.mean() for rows in seeds]
    removed = ", ".join(f"{100 * each:.0f} %" for each in options.stages)
    trained = "" if options.models else f"{options.images:,} images to learn from, {options.train_epochs} epochs; "
    lines = [
        "# Compression of a VGG11 with batch norm, CIFAR-10 images at 32 pixels",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {name_processor()}, {torch.get_num_threads()} threads; "
        f"{versions}.",
        f"{trained}{options.epochs} epochs of "
        f"fine-tuning after each removal of channels ({removed} of the multiply-adds); "
        f"{len(seeds[0][0].before):,} images that nothing else looked at; {len(seeds)} seed(s). Accuracy as it "
        f"was: {statistics.mean(accuracies):.2f} % ({', '.join(f'{each:.2f}' for each in accuracies)}). "
        f"{seconds / 60:.0f} minutes in all.",
        "",
        "MB: the Classifier's file (for NNCF the weights' file of OpenVINO). Difference: percentage points of",
        "top-1 accuracy, after minus before on the same images, mean over the seeds, with the 95 % bootstrap",
        "interval over images. Speed: batch 8; times itself: the network as it was, in float32 by the same engine;",
        "times torchvision: its modules with the weights as they were, eager, float32 (medians of 5 turns in one",
        "process).",
        "",
        *write_table(seeds),
    ]
    if len(seeds) > 1:
        for number, rows in enumerate(seeds):
            lines += [f"## Seed {number}", "", *write_table([rows])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=44_000)
    parser.add_argument("--train-epochs", type=int, default=19)
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning after each removal")
    parser.add_argument("--learning-rate", type=float, help="of fine-tuning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stages", type=float, nargs="+", default=STAGES, help="shares of the multiply-adds")
    parser.add_argument("--blocks", help="widths other than VGG11's")
    parser.add_argument("--head", choices=("pool", "fc"), default="pool")
    parser.add_argument("--models", type=Path, nargs="+", help="trained Classifiers, one for each seed")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    started = time.perf_counter()
    images = divide(vk.open_dataset(str(DATA)))
    images = images.keep({name: list(images.split(name))[: options.images] for name in ("train", "val", "test")})
    seeds: list[list[Row]] = []
    for seed in range(len(options.models) if options.models else options.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if options.models:
                model = Model.load(options.models[seed])
            else:
                model = train(
                    images,
                    seed=seed,
                    epochs=options.train_epochs,
                    blocks=options.blocks,
                    head=options.head,
                    folder=folder / "run",
                )
            seeds.append(
                compress(
                    model,
                    images,
                    seed=seed,
                    epochs=options.epochs,
                    rate=options.learning_rate,
                    stages=options.stages,
                    folder=folder,
                )
            )
        report = write_report(seeds, options=options, seconds=time.perf_counter() - started)
        options.out.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
